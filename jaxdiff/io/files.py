"""Files that appear whole or not at all, on a disk or in a bucket."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import pathlib
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from typing import Any

from jaxdiff.io import gcs, locks, paths
from jaxdiff.io.errors import ConfigError, first_line


@contextlib.contextmanager
def atomic_write(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """A draft on the disk to write to, which replaces `path` at the end of the block and is removed if the block fails.

    Each call has a draft of its own: of several processes that write the same path, the last to finish wins. The draft is
    beside `path` and renamed, or, if that is in a bucket, uploaded in one request.
    """
    path = paths.path(path)
    if paths.in_bucket(path):
        with tempfile.TemporaryDirectory(prefix="jaxdiff_draft_") as name:
            draft = pathlib.Path(name) / path.name
            yield draft
            locks.confirm()
            paths.upload(draft, path)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}.draft")
    try:
        yield draft
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(folder: pathlib.Path, last: str) -> Iterator[pathlib.Path]:
    """A draft on the disk for the files of a folder that is not there yet, and appears at the end of the block, if it succeeds.

    In a bucket the files are uploaded one by one: whoever reads them looks for the one of the name `last`.
    """
    if paths.in_bucket(folder):
        with tempfile.TemporaryDirectory(prefix="jaxdiff_draft_") as name:
            yield (draft := pathlib.Path(name))
            inside = [file.relative_to(draft) for file in draft.rglob("*") if file.is_file()]
            for file in sorted(inside, key=lambda file: (file.name == last, str(file))):
                paths.upload(draft / file, folder / file)
        return
    draft = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}")  # two that write at once have two drafts
    draft.mkdir(parents=True)
    try:
        yield draft
        draft.rename(folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def check_writable(path: pathlib.Path, flag: str) -> None:
    """Checks that a file can be written at `path`, which the user gave by `flag`, before the work that it is for.

    Raises:
        ConfigError: it cannot be written.
    """
    with writing_to(path, flag):
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "it is a directory")
        probe_directory(path.parent)


@contextlib.contextmanager
def writing_to(path: pathlib.Path, flag: str) -> Iterator[None]:
    """Raises a ConfigError where the block cannot write to the path that the user gave by `flag`."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or gcs.refusal(error) or first_line(error)
        raise ConfigError(f"{path} cannot be written ({reason}); choose another {flag}") from error


def probe_directory(directory: pathlib.Path) -> None:
    """Writes and removes a file in a directory, which is made if it is not there; raises an OSError if that is impossible."""
    if paths.in_bucket(directory):
        probe = directory / f".{secrets.token_hex(4)}.probe"
        write_text(probe, "")
        probe.unlink()
        return
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=directory):
        pass


def cache_dir() -> pathlib.Path:
    """The directory of files that can be made again: JAXDIFF_CACHE_DIR, or the user's cache."""
    named = os.environ.get("JAXDIFF_CACHE_DIR")
    if named and paths.in_bucket(paths.path(named)):
        raise ConfigError(f"JAXDIFF_CACHE_DIR {named} must be on a disk; JAX_COMPILATION_CACHE_DIR may be in a bucket")
    return pathlib.Path(named) if named else pathlib.Path.home() / ".cache" / "jaxdiff"


def write_text(path: pathlib.Path, text: str) -> None:
    """Writes a text file, whole or not at all."""
    with atomic_write(path) as draft:
        draft.write_text(text)


def parse_json(text: str) -> dict[str, Any]:
    """The object in a text; empty where it is damaged, or holds another thing."""
    try:
        value = json.loads(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """The object in a JSON file; empty where the file is missing or damaged."""
    return parse_json(path.read_bytes().decode(errors="replace")) if path.is_file() else {}
