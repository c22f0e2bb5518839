"""Parses a command line into a command's typed arguments, and reports what is wrong with it in one line."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import pathlib
import re
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import tyro

from jaxdiff.app.cli import help_text
from jaxdiff.app.cli.global_flags import GlobalFlags
from jaxdiff.app.config import Experiment, load
from jaxdiff.io.errors import ConfigError, UsageError

HELP = ("-h", "--help")


def parsed(name: str, kind: Any, argv: list[str]) -> tuple[Any, GlobalFlags] | int:
    """A command's own arguments, of that kind, and the global flags; the exit status if help was printed or a flag is wrong.

    Raises:
        ConfigError: the recipe is missing or wrong.
    """
    default = _default(name, kind, argv)
    if wanted := [number for number, word in enumerate(argv) if word in HELP]:
        group = next((word for word in argv[wanted[0] + 1 :][:1] if not word.startswith("-") and not word.endswith(".py")), "")
        print(help_text.command_help(name, kind, GlobalFlags, default, group))
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
    path = pathlib.Path(words[0]) if words else None
    known = {"config": path or pathlib.Path("CONFIG"), "experiment": _recipe(name, path, argv)}
    known |= {"workdir": pathlib.Path("runs") / (path.stem if path else "CONFIG")}
    return kind(**{field: known.get(field, tyro.MISSING) for field in required})


def _recipe(name: str, path: pathlib.Path | None, argv: list[str]) -> Experiment:
    if path is not None:
        return load(path)
    if set(HELP).isdisjoint(argv):
        raise UsageError(f"{name} needs a recipe, a file that ends in .py: jaxdiff {name} configs/digits.py")
    return Experiment()


def _one_line(box: str) -> str:
    """The message inside the box that tyro draws, without title, border and pointers to the help."""
    lines = [line.strip("│╭╰╮╯─|+ ") for line in box.splitlines()][1:]
    text = " ".join(line for line in lines if re.search(r"\w", line))
    text = re.split(r"(Argument helptext|For full helptext)", text)[0].strip()
    text = re.sub(r"'own\.(\w+)'", lambda found: found[1].upper(), text)
    text = re.sub(r"no type matching .* Got errors: - <class '\w+'>: |\s*\(required\)", "", text)
    text = re.sub(r"\. Expected one of \((.*?),?\)\.", lambda found: f"; write one of {_sorted(found[1])}", text)
    return re.sub(r"Perhaps you meant:\s*(--\S+).*", r"did you mean \1?", text)


def _sorted(choices: str) -> str:
    return ", ".join(sorted({each.strip(" '") for each in choices.split(",")} - {"None"}))


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
        if field.name in fields and getattr(args, field.name) != field.default:
            raise ConfigError(f"{flag(field.name)} {why}")
