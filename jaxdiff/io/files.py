"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import pathlib
import secrets
import tempfile
from collections.abc import Iterator

from jaxdiff.io.errors import ConfigError


@contextlib.contextmanager
def atomic_write(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """A draft beside `path` to write to, which replaces `path` at the end of the block and is removed if the block fails.

    Each call has a draft of its own: of several processes that write the same path, the last to finish wins.
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}.draft")
    try:
        yield draft
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def check_writable(path: pathlib.Path, flag: str) -> None:
    """Checks that a file can be written at `path`, which the user gave by `flag`, before the work that it is for.

    Raises:
        ConfigError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            if path.is_dir():
                raise IsADirectoryError(errno.EISDIR, "it is a directory")
    except OSError as error:
        raise ConfigError(f"{path} cannot be written ({error.strerror}); choose another {flag}") from error


def cache_dir() -> pathlib.Path:
    """The directory of files that can be made again: JAXDIFF_CACHE_DIR, or the user's cache."""
    named = os.environ.get("JAXDIFF_CACHE_DIR")
    return pathlib.Path(named) if named else pathlib.Path.home() / ".cache" / "jaxdiff"


def write_text(path: pathlib.Path, text: str) -> None:
    """Writes a text file, whole or not at all."""
    with atomic_write(path) as draft:
        draft.write_text(text)
