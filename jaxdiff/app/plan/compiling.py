"""Compiles in a child process, since libtpu may abort, and returns what the compiler wrote.

Code generation takes very long and changes no figure: a child is stopped as soon as XLA has written the scheduled HLO.
"""

import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import NamedTuple

from jaxdiff.io.errors import UserError

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
UNCHANGED = 4  # looks, half a second apart, after which a text is complete
DUMPED = ("*.after_optimizations_after_buffer_assignment.txt", "*.after_optimizations-memory-usage-report.txt")


class CompilerError(UserError):
    """The TPU compiler stopped without a result."""


class Aborted(CompilerError):
    """The TPU compiler aborted its process, as it does for a topology that does not exist."""


class Compiled(NamedTuple):
    """What the compiler wrote of a program: scheduled HLO and memory report, or why the program does not fit."""

    hlo: str
    report: str
    too_big: str
    seconds: float


def compiled(arguments: Sequence[str], limit_s: float, full: bool = False, folder: pathlib.Path | None = None) -> Compiled | None:
    """What XLA writes of the one TPU program that `python arguments` compiles; None if it exits cleanly and compiles none.

    XLA writes into `folder`, by default a temporary one; seconds count from the child's program.json there, if it writes one.
    With `full` the result waits for the finished executable.

    Raises:
        CompilerError: the child failed, or took longer than `limit_s`.
    """
    if folder is None:
        with tempfile.TemporaryDirectory(prefix="jaxdiff_plan_") as name:
            return compiled(arguments, limit_s, full, pathlib.Path(name))
    environment = {**os.environ, **ENVIRONMENT, "XLA_FLAGS": f"--xla_dump_to={folder / 'dump'} --xla_dump_hlo_as_text=true"}
    started, program = time.time(), folder / "program.json"
    with (folder / "log").open("wb") as out:
        child = subprocess.Popen([sys.executable, *arguments], env=environment, stdout=out, stderr=out)
    try:
        texts = _texts(child, folder, limit_s, full)
    finally:
        child.kill()
        child.wait()
    return texts and Compiled(*texts, time.time() - (program.stat().st_mtime if program.exists() else started))


def _texts(child: subprocess.Popen, folder: pathlib.Path, limit_s: float, full: bool) -> tuple[str, str, str] | None:
    """HLO and report once they are complete, or that the program is too big; None where nothing was compiled."""
    end, before, unchanged = time.monotonic() + limit_s, None, 0
    while time.monotonic() < end:
        ended = child.poll() is not None
        paths = [path for pattern in DUMPED for path in sorted((folder / "dump").glob(pattern))[-1:]]
        sizes = [path.stat().st_size for path in paths]
        unchanged = unchanged + 1 if sizes == before else 0
        if len(paths) == 2 and all(sizes) and (child.returncode == 0 if full else ended or unchanged == UNCHANGED):
            return paths[0].read_text(), paths[1].read_text(), ""
        if ended:
            return _ended(child.returncode, (folder / "log").read_text(errors="replace"))
        before = sizes
        time.sleep(0.5)
    raise CompilerError(f"no result after {limit_s:.0f} s; allow more by --limit-s")


def _ended(status: int, log: str) -> tuple[str, str, str] | None:
    """The result of a child that ended without the texts, by its log: too big, or None for nothing to compile."""
    if status == 0:
        return None
    if full := re.search(r"RESOURCE_EXHAUSTED:(?!.*No space left on device)[^\n]*", log):  # a full disk has the same code
        return "", "", full[0]
    lines = log.splitlines()
    errors = [line for line in lines if re.match(r"F\d{4} |\w*(?:Error|Exception)\b", line)] or lines[-1:] or [""]
    said = f"the TPU compiler stopped with status {status}: {errors[-1].strip()[:300]}"
    raise Aborted(said) if status < 0 else CompilerError(said)
