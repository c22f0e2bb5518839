"""Samplers named on a command line: `heun`, or `path/to/file.py:my_sampler`."""

from __future__ import annotations

import difflib
import inspect
import pathlib
import runpy
import sys
from collections.abc import Callable, Mapping
from typing import Any, get_args

from jaxdiff import samplers
from jaxdiff.app.config import SamplerName
from jaxdiff.io.errors import ConfigError, user_code_error
from jaxdiff.samplers import Sampler


def load_sampler(text: str) -> Sampler | Callable[..., Any]:
    """The sampler of that name: a `Sampler` or a function `(denoise, x, levels, key) -> x0`, or a factory of one.

    Raises:
        ConfigError: no such file or name, the file raises an error, or the name is not a sampler's.
    """
    path, _, name = text.rpartition(":")
    if path:
        sampler = _named(_contents(path), name, f"a name in {path}, such as")
    else:
        sampler = _named(built_in(), name, "path/to/file.py:my_sampler, or one of")
    if inspect.isfunction(sampler) and _takes(sampler, 0) and not _takes(sampler, 4):
        try:
            sampler = sampler()
        except Exception as error:  # the user's own code
            raise user_code_error(text, path, error) from error
    if isinstance(sampler, Sampler) or (callable(sampler) and not inspect.isclass(sampler) and _takes(sampler, 4)):
        return sampler
    raise ConfigError(f"{text} must be a jaxdiff.Sampler or a function (denoise, x, levels, key) -> x0, got {sampler!r}")


def built_in() -> dict[str, Callable[..., Any]]:
    """The samplers of configs that the library has by the same name and that need no arguments."""
    named = {name: getattr(samplers, name, None) for name in get_args(SamplerName)}
    return {name: factory for name, factory in named.items() if inspect.isfunction(factory) and _takes(factory, 0)}


def _contents(path: str) -> Mapping[str, Any]:
    if not pathlib.Path(path).is_file():
        raise ConfigError(f"no file {path}; write path/to/file.py:my_sampler")
    sys.path.insert(0, str(pathlib.Path(path).parent))  # for imports of its neighbours
    try:
        return runpy.run_path(path)
    except Exception as error:  # the user's own code
        raise user_code_error(path, path, error) from error


def _named(choices: Mapping[str, Any], name: str, where: str) -> Any:
    if name in choices:
        return choices[name]
    public = [n for n, value in choices.items() if isinstance(value, Sampler) or (inspect.isfunction(value) and n[0] != "_")]
    near = difflib.get_close_matches(name, public, n=1)
    raise ConfigError(f"no sampler {name!r}" + (f"; did you mean {near[0]}?" if near else f"; write {where} {', '.join(public)}"))


def _takes(function: Callable[..., Any], number: int) -> bool:
    """Whether the function can be called with so many arguments."""
    try:
        inspect.signature(function).bind(*range(number))
    except TypeError:
        return False
    return True
