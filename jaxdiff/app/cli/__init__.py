"""The command line: `jaxdiff train`, `jaxdiff sample` and the other commands that `jaxdiff --help` lists.

Each command is a function of a dataclass, whose fields tyro makes flags. Errors that the user can fix are printed as one line.
"""

import logging
import os
import re
import sys
import traceback
import typing
from collections.abc import Callable, Sequence
from typing import Any

import jax
from tqdm.contrib.logging import logging_redirect_tqdm

from jaxdiff.app.cli import arguments
from jaxdiff.app.cli.completion_command import completion
from jaxdiff.app.cli.data_command import data
from jaxdiff.app.cli.demo_command import demo
from jaxdiff.app.cli.doctor_command import doctor
from jaxdiff.app.cli.ema_command import ema
from jaxdiff.app.cli.evaluate_command import evaluate
from jaxdiff.app.cli.export_command import export
from jaxdiff.app.cli.flags import USAGE
from jaxdiff.app.cli.import_command import import_
from jaxdiff.app.cli.inspect_command import inspect
from jaxdiff.app.cli.ladder_command import ladder
from jaxdiff.app.cli.latents_command import latents
from jaxdiff.app.cli.plan_command import plan
from jaxdiff.app.cli.recipes_command import recipes
from jaxdiff.app.cli.report_command import report
from jaxdiff.app.cli.sample_command import sample
from jaxdiff.app.cli.train_command import train
from jaxdiff.app.cli.verify_command import verify
from jaxdiff.io import files, gcs
from jaxdiff.io.errors import UsageError, UserError, did_you_mean, disk_full, first_line
from jaxdiff.training import distributed

RUNS = (train, ladder, sample, demo, evaluate, report, ema, latents)
COMMANDS: dict[str, tuple[Any, Callable[[Any], int]]] = {  # name -> dataclass of its arguments, function
    command.__name__.rstrip("_"): (typing.get_type_hints(command)["args"], command)
    for command in (*RUNS, import_, export, inspect, plan, verify, data, recipes, doctor, completion)
}
BUG = "this is a bug of jaxdiff; please report the lines above, with what `jaxdiff doctor` prints: https://github.com/jaxdiff/jaxdiff/issues"
PLAIN = "%(message)s"  # how what is logged is printed
ABSENT = r"initialize backend|Unknown backend|[Nn]o visible (GPU|TPU)"  # JAX's errors for a missing device
# Its errors where memory is full, or an array too big for any. RESOURCE_EXHAUSTED alone may be a full disk or a quota.
TOO_MUCH = r"[Oo]ut of memory|RESOURCE_EXHAUSTED.*[Aa]llocat|exceeding 2 \*\* 64"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit status, as `jaxdiff --help` documents it."""
    from jaxdiff import __version__

    name, *argv = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    if name in (*arguments.HELP, "--version"):
        print(f"jaxdiff {__version__}\n" if name == "--version" else USAGE, end="")
        return 0
    logging.basicConfig(level=logging.WARNING, format=PLAIN)
    for handler in logging.getLogger().handlers:
        if type(handler) is logging.StreamHandler:  # which some versions of orbax make when they are imported
            handler.setFormatter(logging.Formatter(PLAIN))
    logging.getLogger("jaxdiff").setLevel(logging.INFO)
    logging.getLogger("absl").setLevel(logging.CRITICAL)  # tfds's and orbax's warnings are not for users
    if getattr(jax.config, "jax_compilation_cache_dir", None) is None:
        jax.config.update("jax_compilation_cache_dir", str(files.cache_dir() / "compiled"))
    try:
        if name not in COMMANDS:
            hint = did_you_mean(name, COMMANDS, f"write one of {', '.join(COMMANDS)}; flags come after it")
            raise UsageError(f"no command {name!r}{hint}")
        kind, command = COMMANDS[name]
        parsed = arguments.parsed(name, kind, argv)
        if isinstance(parsed, int):
            return parsed
        own, shared = parsed
        arguments.apply_global_flags(shared, own)
        with logging_redirect_tqdm():  # log lines are printed above progress bars
            status = command(own)
        return distributed.exit_together(status)
    except KeyboardInterrupt:
        return distributed.exit_now(130)
    except Exception as error:
        status, message = 2 if isinstance(error, UsageError) else 1, _message(error)
    print(message, file=sys.stderr)  # after the except block, which frees the error's frames and their progress bars
    return distributed.exit_now(status)


def _message(error: Exception) -> str:
    """One line if the user can fix the error, with its notes; else the traceback, and that it is a bug."""
    who = f"jaxdiff: {distributed.line_prefix()}"
    if isinstance(error, UserError):
        return "\n".join([who + " ".join(str(error).split()), *getattr(error, "__notes__", ())])
    known = _refusal(error) or distributed.lost_process(error) or _missing_device(error)
    return who + " ".join(str(known).split()) if known else f"{''.join(traceback.format_exception(error))}{who}{BUG}"


def _refusal(error: Exception) -> str | None:
    """The message where a disk or memory is full, or the system refuses a file or a connection; None for any other error."""
    if disk_full(error):
        return f"the disk is full ({first_line(error)}); free some space and rerun the command"
    if isinstance(error, MemoryError) or re.search(TOO_MUCH, str(error)):
        how = "ask for less at once: --batch-size, --num; of train --data.batch-size, --model.remat"
        return f"out of memory ({first_line(error)}); {how}"
    if bucket := gcs.refusal(error):
        return bucket
    if not isinstance(error, OSError):
        return None
    return f"{error.filename}: {error.strerror}; choose another path, or fix this one" if error.filename else str(error)


def _missing_device(error: Exception) -> str | None:
    """The message for JAX's error that a device is missing, such as one in JAX_PLATFORMS; None for any other error."""
    frames = traceback.extract_tb(error.__traceback__)
    inside = bool(frames) and frames[-1].filename.endswith("xla_bridge.py")  # where also assertions fail
    if not inside and not (isinstance(error, RuntimeError) and re.search(ABSENT, str(error))):
        return None
    wanted = jax.config.jax_platforms  # type: ignore[attr-defined]
    jax.config.update("jax_platforms", None)
    return f"JAX cannot use {wanted or 'its devices'} ({first_line(error)}); {arguments.present_devices()}"


def entry() -> None:
    """The console script. Where it failed, it ends at once: the threads of a failed save would wait for each other."""
    if status := main():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
