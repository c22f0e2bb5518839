"""Samplers that a command line names: `heun`, or `path/to/file.py:my_sampler`."""

from __future__ import annotations

import difflib
import inspect
import pathlib
import runpy
import sys
from collections.abc import Callable, Mapping
from typing import Any

from jaxdiff import samplers
from jaxdiff.io.errors import ConfigError, user_code_error
from jaxdiff.samplers import Sampler

# Those of the library that a name alone can make.
BUILT_IN = ("ddim", "ddpm", "heun", "dpmpp_2m", "dpmpp_2m_sde", "dpmpp_3m", "unipc", "euler_maruyama", "consistency")


def load_sampler(text: str) -> Sampler | Callable[..., Any]:
    """The sampler of that name: a `Sampler`, a function `(denoise, x, levels, key) -> x0`, or what a call without arguments
    gives of the two.

    Raises:
        ConfigError: no such file or name, the file cannot be run, or what it names is no sampler.
    """
    path, _, name = text.rpartition(":")
    if not path:
        found = _named({name: getattr(samplers, name) for name in BUILT_IN}, name, "path/to/file.py:my_sampler, or one of")
    else:
        found = _named(_contents(path), name, f"a name in {path}, such as")
    if not inspect.isfunction(found) or _takes(found, 4) or not _takes(found, 0):
        return _checked(found, text)
    try:
        return _checked(found(), text)
    except ConfigError:
        raise
    except Exception as error:  # the user's own code
        raise user_code_error(text, path, error) from error


def _contents(path: str) -> Mapping[str, Any]:
    if not pathlib.Path(path).is_file():
        raise ConfigError(f"no file {path}; write path/to/file.py:my_sampler")
    sys.path.insert(0, str(pathlib.Path(path).parent))  # where its own imports are
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


def _checked(found: Any, text: str) -> Sampler | Callable[..., Any]:
    if isinstance(found, Sampler) or (callable(found) and not inspect.isclass(found) and _takes(found, 4)):
        return found
    raise ConfigError(f"{text} must be a jaxdiff.Sampler or a function (denoise, x, levels, key) -> x0, got {found!r}")


def _takes(function: Callable[..., Any], number: int) -> bool:
    """Whether it can be called with so many arguments."""
    try:
        inspect.signature(function).bind(*range(number))
    except TypeError:
        return False
    return True
