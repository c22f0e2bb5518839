"""Parses a command line into a command's typed arguments, reports what is wrong with it in one line, and applies global flags."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import logging
import os
import pathlib
import re
import sys
from collections.abc import Iterator, Sequence
from typing import Annotated, Any

import tyro

from jaxdiff.app.cli import flags
from jaxdiff.app.cli.error_messages import present_devices
from jaxdiff.app.cli.flags import GlobalFlags
from jaxdiff.app.config import Experiment, load
from jaxdiff.io.errors import ConfigError, UsageError

HELP = ("-h", "--help")


def parsed(name: str, kind: Any, argv: list[str]) -> tuple[Any, GlobalFlags] | int:
    """A command's own arguments, of that kind, and the global flags; the exit status if help was printed or a flag is wrong.

    Raises:
        ConfigError: the recipe is missing or wrong.
    """
    default = _default(name, kind, argv)
    if positions := [number for number, word in enumerate(argv) if word in HELP]:
        after = [word for word in argv[positions[0] + 1 :][:1] if not word.startswith("-") and not word.endswith(".py")]
        print(flags.command_help(name, kind, default, *after))
        return 0
    both = [(field, Annotated[type_, tyro.conf.arg(name="")]) for field, type_ in (("own", kind), ("shared", GlobalFlags))]
    typed: Any = dataclasses.make_dataclass("Typed", both)
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            arguments = tyro.cli(
                typed,
                default=None if default is None else typed(default, GlobalFlags()),
                args=argv,
                prog=f"jaxdiff {name}",
                config=(tyro.conf.AvoidSubcommands, tyro.conf.DisallowNone),
            )
    except SystemExit as exit:
        if exit.code == 2:
            print(f"jaxdiff {name}: {_one_line(complaint.getvalue())}; see jaxdiff {name} --help", file=sys.stderr)
        return int(exit.code or 0)
    return arguments.own, arguments.shared


def _default(name: str, kind: Any, argv: list[str]) -> Any:
    """The defaults of a command that takes a recipe: its flags include the recipe's fields. None for other commands."""
    required = {field.name for field in dataclasses.fields(kind) if field.default is dataclasses.MISSING}
    if "experiment" not in required:
        return None
    words = [word for word in argv if word.endswith(".py")] or [word for word in argv[:1] if not word.startswith("-")]
    if not words and set(HELP).isdisjoint(argv):
        raise UsageError(f"{name} needs a recipe, a file that ends in .py: jaxdiff {name} configs/digits.py")
    path = pathlib.Path(words[0] if words else "CONFIG")
    known = {"config": path, "experiment": load(path) if words else Experiment(), "workdir": pathlib.Path("runs") / path.stem}
    return kind(**{field: known.get(field, tyro.MISSING) for field in required})


def _one_line(box: str) -> str:
    """The message inside the box that tyro draws, without title, border and pointers to the help."""
    lines = [line.strip("│╭╰╮╯─|+ ") for line in box.splitlines()][1:]
    text = " ".join(line for line in lines if re.search(r"\w", line))
    text = re.split(r"(Argument helptext|For full helptext)", text)[0].strip()
    text = re.sub(r"'own\.(\w+)'", lambda match: match[1].upper(), text)
    text = re.sub(r"no type matching .* Got errors: - <class '\w+'>: |\s*\(required\)", "", text)
    text = re.sub(r"\. Expected one of \((.*?),?\)\.", lambda match: f"; write one of {_sorted(match[1])}", text)
    return re.sub(r"Perhaps you meant:\s*(--\S+).*", r"did you mean \1?", text)


def _sorted(choices: str) -> str:
    return ", ".join(sorted({each.strip(" '") for each in choices.split(",")} - {"None"}))


@contextlib.contextmanager
def apply_global_flags(shared: GlobalFlags, own: Any) -> Iterator[None]:
    """Applies the flags to the block, a command with its own arguments; its log lines are printed above progress bars.

    Raises:
        ConfigError: there is no such device.
    """
    from tqdm.contrib.logging import logging_redirect_tqdm

    from jaxdiff.training import distributed

    if shared.quiet:
        logging.getLogger("jaxdiff").setLevel(logging.WARNING)
    if shared.device:
        processes = getattr(own, "processes", None)
        joins = processes is not None and (processes.coordinator is not None or distributed.in_cluster(os.environ))
        _use(shared.device, joins)
    with logging_redirect_tqdm():
        yield


def _use(device: str, joins: bool) -> None:
    """Makes JAX use a device, and checks that it is there; not if the process `joins` others first, before its first device."""
    import jax

    before = jax.config.jax_platforms  # type: ignore[attr-defined]
    jax.config.update("jax_platforms", device if device == "cpu" else f"{device},cpu")
    if joins:
        return
    try:
        platform = jax.default_backend()
    except RuntimeError:
        platform = "none"
    if platform != device:
        jax.config.update("jax_platforms", before)
        raise ConfigError(f"--device {device}: JAX finds none here, {present_devices()}")


def flag(field: str) -> str:
    """`--batch-size` for the field `batch_size`."""
    return f"--{field.replace('_', '-')}"


def check_bounds(args: Any, **least: int) -> None:
    """Checks lower bounds of flags that are set, and that a seed has 32 bits, as JAX's keys require.

    Raises:
        ConfigError: a value is out of bounds.
    """
    for field, bound in least.items():
        if (value := getattr(args, field)) is not None and value < bound:
            raise ConfigError(f"{flag(field)} must be at least {bound}, got {value}")
    if not 0 <= (getattr(args, "seed", None) or 0) < 2**32:
        raise ConfigError(f"--seed must be at least 0 and below 2^32, got {args.seed}")


def names_in(text: str) -> list[str]:
    """The names in a list that is separated by commas."""
    return [name for part in text.split(",") if (name := part.strip())]


def refuse(args: Any, fields: Sequence[str], why: str) -> None:
    """Refuses flags that do not apply.

    Raises:
        ConfigError: one of `fields` was set.
    """
    for field in dataclasses.fields(args):
        value = getattr(args, field.name)
        if dataclasses.is_dataclass(value):
            refuse(value, fields, why)
        elif field.name in fields and value != field.default:
            raise ConfigError(f"{flag(field.name)} {why}")
