"""The command line: `jaxdiff train | ladder | sample | evaluate | plan | verify | data | latents`.

Each command is a function of typed arguments, of which tyro makes flags and help. What a user can mend ends in one line.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Sequence
from typing import Any

from jaxdiff.cli import arguments
from jaxdiff.cli.house import Data, data
from jaxdiff.cli.judging import Evaluate, Verify, evaluate, verify
from jaxdiff.cli.planning import Plan, plan
from jaxdiff.cli.sampling import Latents, Sample, latents, sample
from jaxdiff.cli.training import Ladder, Train, ladder, train
from jaxdiff.cli.usage import USAGE
from jaxdiff.errors import ConfigError, UserError

COMMANDS: dict[str, tuple[Any, Callable[[Any], int]]] = {
    "train": (Train, train),
    "ladder": (Ladder, ladder),
    "sample": (Sample, sample),
    "evaluate": (Evaluate, evaluate),
    "plan": (Plan, plan),
    "verify": (Verify, verify),
    "data": (Data, data),
    "latents": (Latents, latents),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; the exit status: 0 done, 1 a line on stderr says what is wrong, 2 wrong arguments, 130 Ctrl-C."""
    from jaxdiff import processes

    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help"):
        print(USAGE, end="")
        return 0
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("jaxdiff").setLevel(logging.INFO)
    logging.getLogger("absl").setLevel(logging.CRITICAL)  # tfds and orbax warn of what a user cannot mend; we say their errors
    _keep_compiled()
    try:
        return processes.leave(_run(argv[0], argv[1:]))
    except KeyboardInterrupt:
        return processes.abandon(130)
    except (UserError, OSError) as error:
        print(f"jaxdiff: {processes.who()}{error}", file=sys.stderr)
        return processes.abandon(1)


def _keep_compiled() -> None:
    """Keeps what takes over a second to compile for the next command, where JAX's own setting does not say where already."""
    import jax

    from jaxdiff import files

    if getattr(jax.config, "jax_compilation_cache_dir", None) is None:
        jax.config.update("jax_compilation_cache_dir", str(files.cache() / "compiled"))


def _run(name: str, argv: list[str]) -> int:
    if name not in COMMANDS:
        raise ConfigError(f"no command {name!r}; write one of {', '.join(COMMANDS)}")
    kind, function = COMMANDS[name]
    args = arguments.parsed(name, kind, argv)
    return args if isinstance(args, int) else function(args)


def entry() -> None:
    """The console script."""
    sys.exit(main())
