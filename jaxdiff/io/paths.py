"""Paths on a disk or in a bucket: `gs://bucket/folder` has the methods of `pathlib.Path`.

What a user names becomes a path by `path` alone. Nothing else knows what a bucket lacks (it cannot append, rename or tell its
free space): others call the functions below.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import functools
import importlib.util
import math
import os
import pathlib
import re
import secrets
import shutil
from typing import Any, NamedTuple

from jaxdiff.io import gcs
from jaxdiff.io.errors import ConfigError, DataError

SCHEME = "gs://"


def path(name: str | os.PathLike[str]) -> pathlib.Path:
    """The path of that name, on a disk or in a bucket; also of `gs:/bucket/x`, as `pathlib.Path` writes it.

    Raises:
        ConfigError: another scheme than gs://, no bucket is named, or what reads buckets is not installed.
    """
    text = os.fspath(name)
    found = re.match(r"(\w\w+):/+(.*)", text, re.DOTALL)
    if found is None:
        return pathlib.Path(text)
    scheme, place = found.groups()
    if scheme != "gs":
        works = "gs://bucket/folder works, and a bucket of any other kind that is mounted as a folder"
        raise ConfigError(f"{scheme}://{place}: jaxdiff cannot reach {scheme}://; {works}")
    if not place:
        raise ConfigError(f"{text} names no bucket; write gs://bucket/folder")
    if importlib.util.find_spec("gcsfs") is None:
        raise ConfigError(f'{SCHEME}{place}: what reads buckets is not installed; run: pip install "jaxdiff[gcs]"')
    gcs.configure()
    from etils import epath

    bucket: Any = epath.Path(SCHEME + place)
    return bucket


def in_bucket(path: os.PathLike[str]) -> bool:
    """Whether a path is in a bucket."""
    return str(path).startswith(SCHEME)


def absolute(path: pathlib.Path) -> pathlib.Path:
    """The path from the root."""
    return path if in_bucket(path) else path.absolute()


def resolved(path: pathlib.Path) -> pathlib.Path:
    """The path from the root, without symbolic links."""
    return path if in_bucket(path) else path.resolve()


def free_bytes(directory: os.PathLike[str]) -> float:
    """The room that is left where a directory is: without end in a bucket."""
    return math.inf if in_bucket(directory) else shutil.disk_usage(directory).free


def total_bytes(place: pathlib.Path) -> int:
    """The bytes of a file, or of all files in a directory and in those below it."""
    if in_bucket(place):
        return sum(each.size for each in objects(place).values())
    return sum(each.stat().st_size for each in (place.rglob("*") if place.is_dir() else [place]) if each.is_file())


def move(source: pathlib.Path, target: pathlib.Path) -> None:
    """Moves a file or a directory to a place that is free; in a bucket one object after another."""
    if in_bucket(source):
        _bucket().mv(str(source), str(target), recursive=True)
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        source.rename(target)


def remove_tree(directory: pathlib.Path) -> None:
    """Removes what is in a directory, and it, as far as that is possible."""
    if in_bucket(directory):
        _bucket().rm(str(directory), recursive=True)
    else:
        shutil.rmtree(directory, ignore_errors=True)


def upload(file: pathlib.Path, target: pathlib.Path) -> None:
    """Puts a file of the disk into a bucket, whole or not at all; its checksum is compared."""
    _bucket().put_file(str(file), str(target), consistency="md5")


class Object(NamedTuple):
    """A file in a bucket."""

    size: int
    updated: float  # seconds of Unix time
    crc32c: str  # base64


def objects(folder: pathlib.Path) -> dict[str, Object]:
    """The files in a folder of a bucket and in those below it, by their names from there; none if it is not there."""
    found = _bucket().find(str(folder), detail=True)
    start = len(str(folder).removeprefix(SCHEME)) + 1
    return {name[start:]: Object(int(each["size"]), each["mtime"].timestamp(), each["crc32c"]) for name, each in found.items()}


def download(source: pathlib.Path, target: pathlib.Path, known: Object) -> None:
    """Copies a file of a bucket to the disk, whole or not at all; its checksum is compared, and its time is kept."""
    import google_crc32c

    draft = target.with_name(f".{target.name}.draft")
    _bucket().get_file(str(source), str(draft))
    checksum = google_crc32c.Checksum()
    with draft.open("rb") as file:
        while part := file.read(2**20):
            checksum.update(part)
    if base64.b64encode(checksum.digest()).decode() != known.crc32c:
        draft.unlink()
        raise DataError(f"{source} changed while it was copied, or was damaged on its way; rerun the command")
    os.utime(draft, (known.updated, known.updated))
    draft.replace(target)


class Version(NamedTuple):
    """A small file in a bucket as it was at some time."""

    text: str
    generation: int  # another one after each write
    updated: float  # seconds of Unix time, by the bucket's clock


def read_version(path: pathlib.Path) -> Version | None:
    """The file as it is now in the bucket; None if it is not there."""
    options = gcs.lease_options()
    while (blob := (asked := _blob(path)).bucket.get_blob(asked.name, **options)) is not None:
        with contextlib.suppress(_answers().NotFound):  # it was written anew in between
            return Version(blob.download_as_text(**options), blob.generation, blob.updated.timestamp())
    return None


def write_if(path: pathlib.Path, text: str, generation: int) -> int | None:
    """Writes a file where it still has that generation, 0 where it is not there; its new generation, or None if it has another.

    Raises:
        FileNotFoundError: there is no such bucket.
    """
    blob = _blob(path)
    try:
        blob.upload_from_string(text, if_generation_match=generation, **gcs.lease_options())
    except _answers().PreconditionFailed:
        return None
    except _answers().NotFound as error:
        if generation:
            return None
        raise FileNotFoundError(errno.ENOENT, "No such bucket", str(path)) from error
    return blob.generation


def remove_if(path: pathlib.Path, generation: int) -> None:
    """Removes a file where it still has that generation."""
    with contextlib.suppress(_answers().NotFound, _answers().PreconditionFailed):
        _blob(path).delete(if_generation_match=generation, **gcs.lease_options())


def bucket_time(folder: pathlib.Path) -> float:
    """The bucket's clock, in seconds of Unix time: that of a file which is written and removed."""
    blob = _blob(folder / f".{secrets.token_hex(4)}.time")
    blob.upload_from_string("", **gcs.lease_options())
    blob.delete(**gcs.lease_options())
    return blob.updated.timestamp()


def _blob(path: pathlib.Path) -> Any:
    """A file of a bucket for Google's own client, which knows preconditions."""
    bucket, _, name = str(path).removeprefix(SCHEME).partition("/")
    return _client(os.environ.get("STORAGE_EMULATOR_HOST")).bucket(bucket).blob(name)


@functools.cache
def _client(emulator: str | None) -> Any:
    from google.cloud import storage

    return storage.Client()


def _answers() -> Any:
    from google.api_core import exceptions

    return exceptions


def _bucket() -> Any:
    import fsspec

    return fsspec.filesystem("gcs")
