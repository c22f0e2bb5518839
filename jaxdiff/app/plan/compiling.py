"""Compiles in a child process, for a topology may abort libtpu, and keeps what the compiler wrote.

Code generation takes very long and changes no figure: a child is stopped as soon as XLA has written the scheduled HLO.
"""

from __future__ import annotations

import gzip
import importlib.util
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from jaxdiff.app.plan.chips import VALID
from jaxdiff.io import files
from jaxdiff.io.errors import ConfigError, UserError

ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "JAX_ENABLE_COMPILATION_CACHE": "false",  # what is taken from there is not dumped
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
UNCHANGED = 4  # looks, half a second apart, after which a text is whole
DUMPED = ("*.after_optimizations_after_buffer_assignment.txt", "*.after_optimizations-memory-usage-report.txt")


class CompilerError(UserError):
    """The TPU compiler stopped without a result."""


class Aborted(CompilerError):
    """The TPU compiler took its process down, as it does where a topology is none."""


class Compiled(NamedTuple):
    """What the compiler wrote of a program: scheduled HLO and memory report, or why the program does not fit."""

    hlo: str
    report: str
    too_big: str
    seconds: float


def check_installed() -> None:
    """Whether the TPU compiler is there.

    Raises:
        ConfigError: it is not.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise ConfigError('the TPU compiler is not installed; run: pip install -e ".[tpu]" (no TPU is needed)')


def program(job: dict[str, Any]) -> tuple[Compiled, dict[str, Any]]:
    """What the compiler says of a job of `program.main`, from the cache if it is there, and what program.json says.

    Raises:
        ConfigError: the config or topology cannot be used as it is.
        CompilerError: the compiler stopped, or took longer than the limit.
    """
    check_installed()
    with tempfile.TemporaryDirectory(prefix="jaxdiff_plan_") as name:
        folder = pathlib.Path(name)
        (folder / "job.json").write_text(json.dumps(job))
        try:
            arguments = ["-m", "jaxdiff.app.plan.program", str(folder / "job.json")]
            found = compiled(arguments, job["limit_s"], full=job["full"], folder=folder, begun=folder / "program.json")
        except CompilerError as error:
            told = folder / "error.txt"
            if told.exists():
                raise ConfigError(told.read_text()) from error
            if isinstance(error, Aborted):
                raise CompilerError(f"--topology {job['topology']}: {error}; write {VALID}") from error
            raise
        about = json.loads((folder / "program.json").read_text())
        kept = pathlib.Path(job["cache"], f"{about['key']}.gz")
        if found is None:
            return Compiled(**json.loads(gzip.decompress(kept.read_bytes()))), {**about, "cached": True}
        with files.atomic_write(kept) as draft:
            draft.write_bytes(gzip.compress(json.dumps(found._asdict()).encode()))
        return found, {**about, "cached": False}


def compiled(
    arguments: Sequence[str],
    limit_s: float,
    full: bool = False,
    folder: pathlib.Path | None = None,
    begun: pathlib.Path | None = None,
) -> Compiled | None:
    """What XLA writes of the one TPU program that `python arguments` compiles; None if that ends well and compiles none.

    Args:
        arguments: of the interpreter.
        limit_s: how long it may take.
        full: wait for the finished executable.
        folder: for what XLA writes; a temporary one if not given.
        begun: a file that the child writes when it begins to compile, from when on seconds count.

    Raises:
        CompilerError: the child failed, or took longer.
    """
    if folder is None:
        with tempfile.TemporaryDirectory(prefix="jaxdiff_plan_") as name:
            return compiled(arguments, limit_s, full, pathlib.Path(name), begun)
    dump, log = folder / "dump", folder / "log"
    flags = f"--xla_dump_to={dump} --xla_dump_hlo_as_text=true"
    environment = {**os.environ, **ENVIRONMENT, "XLA_FLAGS": flags}
    started = time.time()
    with log.open("wb") as out:
        child = subprocess.Popen([sys.executable, *arguments], env=environment, stdout=out, stderr=out)
    try:
        texts = _texts(child, dump, log, limit_s, full)
    finally:
        child.kill()
        child.wait()
    since = begun.stat().st_mtime if begun and begun.exists() else started
    if isinstance(texts, str):
        return Compiled("", "", texts, time.time() - since)
    return None if texts is None else Compiled(texts[0], texts[1], "", time.time() - since)


def _texts(child: subprocess.Popen, dump: pathlib.Path, log: pathlib.Path, limit_s: float, full: bool) -> Any:
    """The dumped texts once they are whole; or a message that the program is too big; or None where nothing was compiled."""
    end, before, unchanged = time.monotonic() + limit_s, None, 0
    while time.monotonic() < end:
        ended = child.poll() is not None
        found = [path for pattern in DUMPED for path in sorted(dump.glob(pattern))[-1:]]
        sizes = [path.stat().st_size for path in found]
        unchanged = unchanged + 1 if sizes == before else 0
        if len(found) == 2 and all(sizes) and (child.returncode == 0 if full else ended or unchanged == UNCHANGED):
            return [path.read_text() for path in found]
        if ended:
            return _ended(child.returncode, log.read_text(errors="replace"))
        before = sizes
        time.sleep(0.5)
    raise CompilerError(f"no result after {limit_s:.0f} s; allow more by --limit-s")


def _ended(status: int, log: str) -> str | None:
    """What the log of a child says that ended without the texts: the program is too big, or None for nothing to compile."""
    if status == 0:
        return None
    if found := re.search(r"RESOURCE_EXHAUSTED:(?!.*No space left on device)[^\n]*", log):  # a full disk has the same code
        return found[0]
    lines = (
        [line for line in log.splitlines() if re.match(r"F\d{4} |\w*(?:Error|Exception)\b", line)] or log.splitlines()[-1:] or [""]
    )
    said = f"the TPU compiler stopped with status {status}: {lines[-1].strip()[:300]}"
    raise Aborted(said) if status < 0 else CompilerError(said)
