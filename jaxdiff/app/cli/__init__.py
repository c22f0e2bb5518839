"""The command line: `jaxdiff train | ladder | sample | evaluate | report | plan | verify | data | latents | doctor | completion`.

Each command is a function of a dataclass, whose fields tyro makes flags. Errors that the user can fix are printed as one line.
"""

from __future__ import annotations

import difflib
import logging
import sys
import traceback
import typing
from collections.abc import Callable, Sequence
from typing import Any

from jaxdiff.app.cli import arguments, global_flags
from jaxdiff.app.cli.completion_command import completion
from jaxdiff.app.cli.data_command import data
from jaxdiff.app.cli.doctor_command import doctor
from jaxdiff.app.cli.evaluate_command import evaluate
from jaxdiff.app.cli.help_text import USAGE
from jaxdiff.app.cli.ladder_command import ladder
from jaxdiff.app.cli.latents_command import latents
from jaxdiff.app.cli.plan_command import plan
from jaxdiff.app.cli.report_command import report
from jaxdiff.app.cli.sample_command import sample
from jaxdiff.app.cli.train_command import train
from jaxdiff.app.cli.verify_command import verify
from jaxdiff.io.errors import UsageError, UserError

COMMANDS: dict[str, tuple[Any, Callable[[Any], int]]] = {  # name -> dataclass of its arguments, function
    command.__name__: (typing.get_type_hints(command)["args"], command)
    for command in (train, ladder, sample, evaluate, report, plan, verify, data, latents, doctor, completion)
}
BUG = "this is a bug of jaxdiff; please report the lines above, with what `jaxdiff doctor` prints: https://github.com/jaxdiff/jaxdiff/issues"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit status, as `jaxdiff --help` documents it."""
    from jaxdiff import __version__
    from jaxdiff.training import distributed

    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in arguments.HELP:
        print(USAGE, end="")
        return 0
    if argv[0] == "--version":
        print(f"jaxdiff {__version__}")
        return 0
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("jaxdiff").setLevel(logging.INFO)
    logging.getLogger("absl").setLevel(logging.CRITICAL)  # tfds's and orbax's warnings are not for users
    _use_compilation_cache()
    try:
        function, parsed = _command(argv[0], argv[1:])
        if isinstance(parsed, int):
            return parsed
        own, shared = parsed
        with global_flags.apply_global_flags(shared, own):
            status = function(own)
        return distributed.exit_together(status)
    except KeyboardInterrupt:
        return distributed.exit_now(130)
    except Exception as error:
        status, message = 2 if isinstance(error, UsageError) else 1, _message(error)
    print(message, file=sys.stderr)  # after the except block, which frees the error's frames and their progress bars
    return distributed.exit_now(status)


def _message(error: Exception) -> str:
    """The message for an error: one line if the user can fix it, with notes; else its traceback and that it is a bug."""
    from jaxdiff.training import distributed

    who = f"jaxdiff: {distributed.line_prefix()}"
    if isinstance(error, UserError):
        return "\n".join([who + " ".join(str(error).split()), *getattr(error, "__notes__", ())])
    known = global_flags.out_of_room(error) or (_refused(error) if isinstance(error, OSError) else None)
    known = known or distributed.lost_process(error) or global_flags.missing_device(error)
    return who + " ".join(str(known).split()) if known else f"{''.join(traceback.format_exception(error))}{who}{BUG}"


def _refused(error: OSError) -> str:
    """The message where the system refuses a file or a connection."""
    if error.filename is None:
        return str(error)
    return f"{error.filename}: {error.strerror}; choose another path, or fix this one"


def _use_compilation_cache() -> None:
    """Turns on JAX's persistent compilation cache, unless it is configured already."""
    import jax

    from jaxdiff.io import files

    if getattr(jax.config, "jax_compilation_cache_dir", None) is None:
        jax.config.update("jax_compilation_cache_dir", str(files.cache_dir() / "compiled"))


def _command(name: str, argv: list[str]) -> tuple[Callable[[Any], int], Any]:
    """The function of a command, and its arguments; or, where there are none to act on, the exit status."""
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"write one of {', '.join(COMMANDS)}; flags come after it"
        raise UsageError(f"no command {name!r}; {hint}")
    kind, function = COMMANDS[name]
    return function, arguments.parsed(name, kind, argv)


def entry() -> None:
    """The console script."""
    sys.exit(main())
