"""Collections of images to import: what is in them, in a stable order, and how it is read.

A folder, tar archives (webdataset, img2dataset) or Parquet files (Hugging Face). What cannot be read is listed, with the reason.
"""

from __future__ import annotations

import itertools
import os
import pathlib
import re
from collections.abc import Callable, Iterator, Sequence
from typing import BinaryIO, NamedTuple

from jaxdiff.io.errors import ConfigError

SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("test", "testing"), "test"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "validation"),
}
IN_A_NAME = re.compile(rf"(?<![a-z])({'|'.join(SPLITS)})(?![a-z])")
DATA_SET = ("dataset_info.json", "features.json")  # of tfds, maybe of an earlier import
MOST_CLASSES = 100_000  # greater numbers are names


class Item(NamedTuple):
    """An image: its name, unique within the source; the file that holds it, and where; what is known of it."""

    key: str
    file: str
    offset: int = 0
    """Bytes before it, in an archive; rows before it in a row group, in a Parquet file."""
    size: int = 0
    """Its bytes, at least about."""
    group: int = -1
    """The row group of a Parquet file."""
    split: str = ""
    """Where the source has splits of its own."""
    label: str | int | None = None
    """The name or number of its class; in a `Source`, the number."""
    caption: str | None = None


class Skipped(NamedTuple):
    """What is not imported, and why."""

    key: str
    reason: str


class Source(NamedTuple):
    """All images of a collection."""

    items: list[Item]
    skipped: list[Skipped]
    read: Callable[[Sequence[Item]], Iterator[Callable[[], BinaryIO]]]
    """For items in their order, functions that open each, in any thread."""
    class_names: tuple[str, ...] = ()


def open_source(place: pathlib.Path) -> Source:
    """The images in a folder, in an archive or a Parquet file, or in all of those in a folder.

    Where a folder holds tar archives these are read; else its images, or if it has none its Parquet files.

    Raises:
        ConfigError: the place is not there, or a file of another kind.
    """
    from jaxdiff.data import folders, parquet, tars

    if not place.exists():
        raise ConfigError(f"no folder or file {place}; write where the images are: jaxdiff data import SOURCE --name photos")
    files, skipped = listed(place) if place.is_dir() else ([pathlib.PurePosixPath(place.name)], [])
    root = place if place.is_dir() else place.parent
    if archives := [file for file in files if file.name.endswith(tars.ENDINGS)]:
        return _with_classes(tars.source(root, archives), skipped)
    tables = [file for file in files if file.suffix == ".parquet"]
    if tables and not any(folders.is_image(file) for file in files):
        return _with_classes(parquet.source(root, tables), skipped)
    if place.is_file() and not folders.is_image(files[0]):
        raise ConfigError(f"{place} is no folder, no .tar and no .parquet; unpack it, and give the folder")
    return _with_classes(folders.source(root, files), skipped)


def listed(root: pathlib.Path) -> tuple[list[pathlib.PurePosixPath], list[Skipped]]:
    """The files below a folder, sorted, without hidden ones and data sets of tfds; and folders that cannot be read.

    Links are followed once.
    """
    found: list[pathlib.PurePosixPath] = []
    skipped: list[Skipped] = []
    visited: set[str] = set()

    def refused(error: OSError) -> None:
        skipped.append(Skipped(str(error.filename), error.strerror or str(error)))

    for folder, below, names in os.walk(root, onerror=refused, followlinks=True):
        if os.path.realpath(folder) in visited or {*DATA_SET} <= {*names}:
            below.clear()
            continue
        visited.add(os.path.realpath(folder))
        below[:] = sorted(name for name in below if not name.startswith((".", "__MACOSX")))
        place = pathlib.PurePosixPath(os.path.relpath(folder, root))
        found += [place / name for name in names if not name.startswith(".")]
    return sorted(found), skipped


def splits_and_classes(folders: Sequence[tuple[str, ...]]) -> tuple[list[str], list[str | None]]:
    """From the folders that images lie in: their splits, if there are folders train and test (or validation), and classes.

    The class is the first folder below the one that all images are in; None for an image that is in none.
    """
    below = _without_root(folders)
    named = [SPLITS.get(parts[0].lower(), "") if parts else "" for parts in below]
    if "train" in named and "" not in named and len(set(named)) > 1:
        below = _without_root([parts[1:] for parts in below])
    else:
        named = [""] * len(below)
    return named, [parts[0] if parts else None for parts in below]


def splits_of_names(names: Sequence[str]) -> list[str]:
    """The splits that the names of files say, such as `data/train-00000.parquet`; empty unless all do, and one is of `train`."""
    found = [IN_A_NAME.search(name.lower()) for name in names]
    splits = [SPLITS[match[1]] if match else "" for match in found]
    return splits if "train" in splits and "" not in splits and len(set(splits)) > 1 else [""] * len(names)


def _without_root(folders: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
    alike = itertools.takewhile(lambda names: len({*names}) == 1, zip(*{*folders}, strict=False))
    shared = len(list(alike))
    return [parts[shared:] for parts in folders]


def _with_classes(source: Source, skipped: Sequence[Skipped]) -> Source:
    """The source with numbers for labels: its own where all are numbers, else those of their names, sorted.

    There are classes where at least half of the images have one, and not all the same; those without are skipped later.
    """
    known, skipped = [item for item in source.items if item.label is not None], [*skipped, *source.skipped]
    labels = {item.label for item in known}
    if 2 * len(known) < len(source.items) or len(source.class_names or labels) < 2:
        return source._replace(items=[item._replace(label=None) for item in source.items], skipped=skipped, class_names=())
    numbers = [label for label in labels if isinstance(label, int)]
    if len(numbers) == len(labels) and max(numbers, default=0) < MOST_CLASSES:
        enough = max(numbers, default=0) < len(source.class_names)
        names = source.class_names if enough else tuple(map(str, range(max(numbers) + 1)))
        return source._replace(skipped=skipped, class_names=names)
    names = tuple(map(str, sorted(labels, key=lambda label: (not isinstance(label, int), label))))  # type: ignore[arg-type]
    number = {name: each for each, name in enumerate(names)}
    items = [item._replace(label=number.get(str(item.label))) for item in source.items]
    return source._replace(items=items, skipped=skipped, class_names=names)
