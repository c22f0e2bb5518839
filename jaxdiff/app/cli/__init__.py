"""The command line: `jaxdiff train | ladder | sample | evaluate | report | plan | verify | data | latents | doctor | completion`.

Each command is a function of a dataclass, whose fields tyro makes flags. Errors that the user can fix are printed as one line.
"""

from __future__ import annotations

import difflib
import logging
import sys
import typing
from collections.abc import Callable, Sequence
from typing import Any

from jaxdiff.app.cli import arguments
from jaxdiff.app.cli.completion_command import completion
from jaxdiff.app.cli.data_command import data
from jaxdiff.app.cli.doctor_command import doctor
from jaxdiff.app.cli.error_messages import error_message
from jaxdiff.app.cli.evaluate_command import evaluate
from jaxdiff.app.cli.flags import USAGE
from jaxdiff.app.cli.ladder_command import ladder
from jaxdiff.app.cli.latents_command import latents
from jaxdiff.app.cli.plan_command import plan
from jaxdiff.app.cli.report_command import report
from jaxdiff.app.cli.sample_command import sample
from jaxdiff.app.cli.train_command import train
from jaxdiff.app.cli.verify_command import verify
from jaxdiff.io.errors import UsageError

COMMANDS: dict[str, tuple[Any, Callable[[Any], int]]] = {  # name -> dataclass of its arguments, function
    command.__name__: (typing.get_type_hints(command)["args"], command)
    for command in (train, ladder, sample, evaluate, report, plan, verify, data, latents, doctor, completion)
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit status, as `jaxdiff --help` documents it."""
    import jax

    from jaxdiff import __version__
    from jaxdiff.io import files
    from jaxdiff.training import distributed

    name, *argv = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    if name in (*arguments.HELP, "--version"):
        print(f"jaxdiff {__version__}\n" if name == "--version" else USAGE, end="")
        return 0
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("jaxdiff").setLevel(logging.INFO)
    logging.getLogger("absl").setLevel(logging.CRITICAL)  # tfds's and orbax's warnings are not for users
    if getattr(jax.config, "jax_compilation_cache_dir", None) is None:
        jax.config.update("jax_compilation_cache_dir", str(files.cache_dir() / "compiled"))
    try:
        if name not in COMMANDS:
            near = difflib.get_close_matches(name, COMMANDS, n=1)
            hint = f"did you mean {near[0]}?" if near else f"write one of {', '.join(COMMANDS)}; flags come after it"
            raise UsageError(f"no command {name!r}; {hint}")
        kind, command = COMMANDS[name]
        parsed = arguments.parsed(name, kind, argv)
        if isinstance(parsed, int):
            return parsed
        own, shared = parsed
        with arguments.apply_global_flags(shared, own):
            status = command(own)
        return distributed.exit_together(status)
    except KeyboardInterrupt:
        return distributed.exit_now(130)
    except Exception as error:
        status, message = 2 if isinstance(error, UsageError) else 1, error_message(error)
    print(message, file=sys.stderr)  # after the except block, which frees the error's frames and their progress bars
    return distributed.exit_now(status)


def entry() -> None:
    """The console script."""
    sys.exit(main())
