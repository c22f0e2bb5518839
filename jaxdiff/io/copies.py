"""Copies on the disk of folders in a bucket, for what reads local files alone."""

from __future__ import annotations

import concurrent.futures
import pathlib

from jaxdiff.io import files, locks, paths, progress
from jaxdiff.io.errors import DataError

THREADS = 16  # files that are copied at once


def local_copy(folder: pathlib.Path, may_be_missing: bool = False) -> pathlib.Path:
    """A copy on the disk of a folder in a bucket, kept in `files.cache_dir()`; a folder of the disk itself.

    Files that are there, of the same size and time, are not copied again: an interrupted copy goes on. Processes of one machine
    share the copy. Of a folder that is not there but `may_be_missing` the copy is empty.

    Raises:
        DataError: the folder is not there, the disk has no room for it, or a checksum differs.
    """
    if not paths.in_bucket(folder):
        return folder
    wanted = paths.objects(folder)
    if not wanted and not may_be_missing:
        raise DataError(f"{folder}: there is no such folder")
    copy = files.cache_dir() / "copies" / str(folder).removeprefix(paths.SCHEME)
    copy.mkdir(parents=True, exist_ok=True)
    with locks.take_turns(copy.with_name(f".{copy.name}.lock"), str(folder)):
        missing = {name: each for name, each in wanted.items() if not _is_copied(copy / name, each)}
        needed, free = sum(each.size for each in missing.values()), paths.free_bytes(copy)
        if needed > free:
            sizes = f"{needed / 1e6:.1f} MB are to be copied, the disk has {free / 1e6:.1f} MB left"
            raise DataError(f"{folder} does not fit in {copy}: {sizes}; make room, or set JAXDIFF_CACHE_DIR")
        _download_all(folder, copy, missing)
    return copy


def _is_copied(file: pathlib.Path, known: paths.Object) -> bool:
    try:
        found = file.stat()
    except FileNotFoundError:
        return False
    return found.st_size == known.size and abs(found.st_mtime - known.updated) < 1e-3


def _download_all(folder: pathlib.Path, copy: pathlib.Path, missing: dict[str, paths.Object]) -> None:
    def download(name: str) -> int:
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        paths.download(folder / name, copy / name, missing[name])
        return missing[name].size

    total = sum(each.size for each in missing.values())
    with (
        concurrent.futures.ThreadPoolExecutor(THREADS) as pool,
        progress.bar(total, f"copying {folder}", "B", unit_scale=True) as shown,
    ):
        for size in pool.map(download, missing):
            shown.update(size)
