"""Parses a command line into a command's typed arguments, reports what is wrong with it in one line, and applies global flags."""

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

import jax
import tyro

from jaxdiff.app.cli import flags
from jaxdiff.app.cli.flags import GlobalFlags
from jaxdiff.app.config import Experiment, load
from jaxdiff.io import paths, recipes
from jaxdiff.io.errors import ConfigError, UsageError, first_line
from jaxdiff.training import distributed

HELP = ("-h", "--help")
REGISTRY = tyro.constructors.ConstructorRegistry()  # by which tyro makes values of flags


@REGISTRY.primitive_rule
def _path_rule(kind: tyro.constructors.PrimitiveTypeInfo) -> tyro.constructors.PrimitiveConstructorSpec | None:
    """How flags become paths, on a disk or in a bucket."""
    from_words, to_words = (lambda words: paths.path(words[0])), (lambda value: [str(value)])
    spec = tyro.constructors.PrimitiveConstructorSpec(1, "PATH", from_words, lambda value: hasattr(value, "parent"), to_words)
    return spec if kind.type is pathlib.Path else None


def parsed(name: str, kind: Any, argv: list[str]) -> tuple[Any, GlobalFlags] | int:
    """A command's own arguments, of that kind, and the global flags; the exit status if help was printed or a flag is wrong."""
    default = _default(name, kind, argv)
    if positions := [number for number, word in enumerate(argv) if word in HELP]:
        after = [word for word in argv[positions[0] + 1 :][:1] if not word.startswith("-") and not word.endswith(".py")]
        print(flags.command_help(name, kind, default, *after))
        return 0
    both = [(field, Annotated[type_, tyro.conf.arg(name="")]) for field, type_ in (("own", kind), ("shared", GlobalFlags))]
    typed: Any = dataclasses.make_dataclass("Typed", both)
    complaint, options = io.StringIO(), (tyro.conf.AvoidSubcommands, tyro.conf.DisallowNone)
    known = None if default is None else typed(default, GlobalFlags())
    try:
        with contextlib.redirect_stderr(complaint):
            arguments = tyro.cli(typed, default=known, args=argv, prog=f"jaxdiff {name}", config=options, registry=REGISTRY)
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
    words = list(_recipes(argv))
    if not words and set(HELP).isdisjoint(argv):
        raise UsageError(f"{name} needs a recipe, a file that ends in .py, or a name: jaxdiff {name} digits")
    path = pathlib.Path(words[0] if words else "CONFIG")
    known = {"config": path, "experiment": load(path) if words else Experiment(), "workdir": pathlib.Path("runs") / path.stem}
    return kind(**{field: known.get(field, tyro.MISSING) for field in required})


def _recipes(argv: Sequence[str]) -> Iterator[str]:
    """Words that may be the recipe: the first, files that end in .py, and names of the library's that are no flag's value."""
    for before, word in zip(("--quiet", *argv), argv, strict=False):
        name = word in recipes.bundled() and not before.startswith("-")
        if not word.startswith("-") and (before == "--quiet" or word.endswith(".py") or name):
            yield word


def _one_line(box: str) -> str:
    """The message inside the box that tyro draws, without title, border and pointers to the help."""
    lines = [line.strip("│╭╰╮╯─|+ ") for line in box.splitlines()][1:]
    text = re.sub(r" (?=[,.)])", "", " ".join(line for line in lines if line.strip("-")))
    text = re.split(r"(Argument helptext|For full helptext)", text)[0].strip()
    text = re.sub(r"'own\.(\w+)'", lambda match: match[1].upper(), text)
    text = re.sub(r"no type matching .* Got errors: - <class '\w+'>: |\s*\(required\)", "", text)
    text = re.sub(r"\. Expected one of \((.*?),?\)\.", _choices, text)
    return re.sub(r"\s*Perhaps you meant:\s*(--\S+).*", r"; did you mean \1?", text)


def _choices(match: re.Match[str]) -> str:
    names = {*re.findall(r"[^\s',]+", match[1])} - {"None"}
    return f"; write one of {', '.join(sorted(names))}"


def apply_global_flags(shared: GlobalFlags, own: Any) -> None:
    """Applies the flags before a command with its own arguments runs."""
    if shared.quiet:
        logging.getLogger("jaxdiff").setLevel(logging.WARNING)
    if not shared.device:
        return
    before = jax.config.jax_platforms  # type: ignore[attr-defined]
    jax.config.update("jax_platforms", shared.device if shared.device == "cpu" else f"{shared.device},cpu")
    processes = getattr(own, "processes", None)
    if processes and (processes.coordinator is not None or distributed.in_cluster(os.environ)):
        return  # devices may be used only after the process has joined the others
    try:
        platform = jax.default_backend()
    except RuntimeError:
        platform = "none"
    if platform != shared.device:
        jax.config.update("jax_platforms", before)
        raise ConfigError(f"--device {shared.device}: JAX finds none here, {present_devices()}")


def present_devices() -> str:
    """Which devices there are, and how to find out why others are missing."""
    try:
        platforms = sorted({each.platform for each in jax.devices()} | {"cpu"})
    except RuntimeError as error:
        return f"and no other ({first_line(error)}); run: jaxdiff doctor"
    return f"but {', '.join(platforms)}; write --device {platforms[-1]}, or ask why: jaxdiff doctor"


def check_bounds(args: Any, **least: int) -> None:
    """Raises a ConfigError where a flag is set below its bound, or a seed has not the 32 bits that JAX's keys require."""
    for field, bound in least.items():
        if (value := getattr(args, field)) is not None and value < bound:
            raise ConfigError(f"--{field.replace('_', '-')} must be at least {bound}, got {value}")
    if not 0 <= (getattr(args, "seed", None) or 0) < 2**32:
        raise ConfigError(f"--seed must be at least 0 and below 2^32, got {args.seed}")


def names_in(text: str) -> list[str]:
    """The names in a list that is separated by commas."""
    return [name for part in text.split(",") if (name := part.strip())]


def refuse(args: Any, fields: Sequence[str], why: str) -> None:
    """Raises a ConfigError where one of `fields` is set, which do not apply."""
    for field in dataclasses.fields(args):
        value = getattr(args, field.name)
        if dataclasses.is_dataclass(value):
            refuse(value, fields, why)
        elif field.name in fields and value != field.default:
            raise ConfigError(f"--{field.name.replace('_', '-')} {why}")
