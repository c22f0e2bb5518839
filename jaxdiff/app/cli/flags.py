"""The flags of a command, read from its dataclass, for help and completion. tyro parses them by the same rules."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import docstring_parser
import tyro

WORDS = {int: "N", float: "X", str: "TEXT", pathlib.Path: "PATH"}  # placeholders of values


class Flag(NamedTuple):
    """A flag or positional argument: name, placeholder of its value, choices, default, and help text."""

    name: str
    value: str
    choices: tuple[str, ...]
    default: str
    text: str

    @property
    def group(self) -> str:
        """`model` of --model.channels; empty for a flag without a dot."""
        return self.name.lstrip("-").partition(".")[0] if "." in self.name else ""


def of(kind: Any, values: Any = None, prefix: str = "") -> Iterator[Flag]:
    """The flags of a dataclass in order, with defaults from `values`, an instance."""
    hints, texts = typing.get_type_hints(kind, include_extras=True), _texts(kind)
    for field in dataclasses.fields(kind):
        hint, marks = _bare(hints[field.name])
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        value: Any = getattr(values, field.name, default)
        name = prefix + field.name.replace("_", "-")
        if dataclasses.is_dataclass(hint):
            inline = any(getattr(mark, "name", None) == "" for mark in marks)
            yield from of(hint, value if dataclasses.is_dataclass(value) else None, "" if inline else f"{name}.")
        elif typing.get_origin(hint) is Mapping:
            yield from (Flag(f"--{name}.{key}", "X", (), str(each), texts.get(field.name, "")) for key, each in value.items())
        elif tyro.conf.Positional in marks:
            yield Flag(field.name.upper(), "", _choices(hint), "", texts.get(field.name, ""))
        else:
            default = f"on; off by --{prefix}no-{name.removeprefix(prefix)}" if value is True else _written(value)
            yield Flag(f"--{name}", _word(hint), _choices(hint), default, texts.get(field.name, ""))


@functools.cache
def groups(kind: Any) -> dict[str, str]:
    """Names of a config's groups of flags, with the first line of each group's docstring."""
    hints = {name: hint for name, hint in typing.get_type_hints(kind).items() if dataclasses.is_dataclass(hint)}
    return {name: docstring_parser.parse_from_object(hint).short_description or "" for name, hint in hints.items()}


@functools.cache
def _texts(kind: Any) -> dict[str, str]:
    """The docstring below each field."""
    return {each.arg_name: " ".join((each.description or "").split()) for each in docstring_parser.parse_from_object(kind).params}


def _bare(hint: Any) -> tuple[Any, tuple[Any, ...]]:
    """A type without Annotated and None, and its annotations."""
    marks = getattr(hint, "__metadata__", ())
    hint = typing.get_args(hint)[0] if marks else hint
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        hint = next(each for each in typing.get_args(hint) if each is not type(None))
    return hint, marks


def _word(hint: Any) -> str:
    """The placeholder of a value in the help: N, X, PATH; empty for a bool, `N N N` or `N ...` for a tuple."""
    parts = [each for each in typing.get_args(hint) if each is not Ellipsis]
    if typing.get_origin(hint) is tuple:
        words = [_word(part) for part in parts]
        return f"{words[0]} ..." if Ellipsis in typing.get_args(hint) else " ".join(words)
    return "" if hint is bool else WORDS.get(hint, "NAME")


def _choices(hint: Any) -> tuple[str, ...]:
    return tuple(map(str, typing.get_args(hint))) if typing.get_origin(hint) is typing.Literal else ()


def _written(value: Any) -> str:
    """A default as one would type it; empty for None, False and a missing one."""
    if any(value is none for none in (None, False, dataclasses.MISSING, tyro.MISSING)):
        return ""
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
