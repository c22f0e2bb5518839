"""Errors whose message says all that a user needs (what is wrong, where, what to do instead), and how errors are quoted."""

from __future__ import annotations

import contextlib
import difflib
import errno
import importlib
import os
import pathlib
import runpy
import traceback
from collections.abc import Callable, Iterable, Iterator

OURS = (
    f"{pathlib.Path(__file__).parents[1]}{os.sep}",
    f"{pathlib.Path(str(importlib.__file__)).parent}{os.sep}",
    runpy.__file__,
    "<frozen ",
)


class UserError(Exception):
    """An error that the user can fix; the command line prints its one line and its notes, and no traceback."""


class ConfigError(UserError, ValueError):
    """A config, flag or run directory that cannot be used as it is."""


class UsageError(ConfigError):
    """A command line that cannot be read."""


class DataError(UserError):
    """A data set that cannot be read or prepared."""


class CheckpointError(UserError):
    """A checkpoint that cannot be read or written, or whose values differ from those that were saved."""


class NonFiniteError(UserError):
    """A loss, gradient, parameter or image that is NaN or infinite."""


class LostProcessError(UserError):
    """One of the processes of a run is gone."""


def first_line(error: BaseException, length: int = 200) -> str:
    """The first line of an error's message, cut to `length`; the name of its type if it has no message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:length]


def disk_full(error: BaseException) -> bool:
    """Whether an error says that a disk has no room left, whatever its type and its status code say."""
    return getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left on device" in str(error)


def did_you_mean(name: str, known: Iterable[str], otherwise: str = "", cutoff: float = 0.6) -> str:
    """The end of a sentence that asks for the nearest of the known names, or else says what to write, if anything."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=cutoff)
    hint = f"did you mean {near[0]}?" if near else otherwise
    return hint and f"; {hint}"


@contextlib.contextmanager
def user_code(where: str, path: pathlib.Path | str, explain: Callable[[str], str] = str) -> Iterator[None]:
    """Turns an error or an exit of the user's file `path` into a ConfigError: one line, and the traceback from that file on.

    The line names `where` it was and quotes the error's own message, which `explain` may reword.
    """
    try:
        yield
    except (Exception, SystemExit) as error:
        kind, message = type(error).__name__, explain(first_line(error))
        told = ConfigError(f"{where}: {message}" if message == kind else f"{where}: {kind}: {message}")
        if note := _traceback_from(path, error):
            told.add_note(note)
        raise told from error


def _traceback_from(path: pathlib.Path | str, error: BaseException) -> str:
    """The traceback from the file on, without our frames and those of runpy and importlib; empty if the file is not in it."""
    report = traceback.TracebackException.from_exception(error)
    report.__notes__ = [note for note in report.__notes__ or () if "JAX_TRACEBACK_FILTERING" not in note]
    in_file = [pathlib.Path(frame.filename).resolve() == pathlib.Path(path).resolve() for frame in report.stack]
    last = list(report.format_exception_only())
    if True in in_file:
        frames = [frame for frame in report.stack[in_file.index(True) :] if not frame.filename.startswith(OURS)]
        return "".join(["Traceback (most recent call last):\n", *traceback.format_list(frames), *last]).rstrip()
    return "".join(last).rstrip() if isinstance(error, SyntaxError) and error.lineno else ""
