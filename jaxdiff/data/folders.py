"""Folders of images: a class a sub-folder, or none; captions in metadata.jsonl or .csv, or in a .txt beside each image."""

from __future__ import annotations

import csv
import functools
import json
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import BinaryIO

from PIL import Image

from jaxdiff.data.sources import Item, Skipped, Source, splits_and_classes
from jaxdiff.io.errors import first_line

METADATA = ("metadata.jsonl", "metadata.csv")
BESIDE = (".txt", ".json", ".jsonl", ".csv", ".parquet")  # endings of files that are about images
CAPTIONS = ("text", "caption")  # names of the column or key
Captions = dict[pathlib.PurePosixPath, str]


@functools.cache
def image_endings() -> frozenset[str]:
    """Of the formats that Pillow reads."""
    return frozenset(ending for ending, name in Image.registered_extensions().items() if name in Image.OPEN)


def is_image(file: pathlib.PurePosixPath) -> bool:
    """Whether a file is an image by its name."""
    return file.suffix.lower() in image_endings()


def source(root: pathlib.Path, files: Sequence[pathlib.PurePosixPath]) -> Source:
    """The images in a folder: all files but those about images. What is no image in truth is found when it is decoded."""
    captions, skipped = _captions(root, files)
    images = [file for file in files if file.suffix.lower() not in BESIDE]
    folders = sorted({file.parent.parts for file in images if is_image(file) or file.parent.parts})  # without a README
    known = dict(zip(folders, zip(*splits_and_classes(folders), strict=True), strict=True))
    items = []
    for file in images:
        split, label = known.get(file.parent.parts, ("", None))
        items.append(Item(str(file), str(root / file), split=split, label=label, caption=captions.get(file)))
    return Source([item._replace(size=_size(item.file)) for item in items], skipped, read)


def read(items: Sequence[Item]) -> Iterator[Callable[[], BinaryIO]]:
    """See `Source`."""
    for item in items:
        yield functools.partial(open, item.file, "rb")


def caption_in(row: Mapping[str, object]) -> str | None:
    """The caption among the values of an image."""
    return next((str(row[name]) for name in CAPTIONS if row.get(name)), None)


def _size(file: str) -> int:
    try:
        return pathlib.Path(file).stat().st_size
    except OSError:  # a link that leads nowhere; decoding finds that, too
        return 0


def _captions(root: pathlib.Path, files: Sequence[pathlib.PurePosixPath]) -> tuple[Captions, list[Skipped]]:
    found: Captions = {}
    skipped: list[Skipped] = []
    texts = {file.with_suffix("") for file in files if file.suffix == ".txt"}
    beside = [file for file in files if file.suffix not in BESIDE and file.with_suffix("") in texts]
    for file in [*beside, *(file for file in files if file.name in METADATA)]:  # these win, where both have a caption
        try:
            if file.name not in METADATA:
                found[file] = (root / file.with_suffix(".txt")).read_text(errors="replace").strip()
                continue
            for row in _rows(root / file):
                if caption := caption_in(row):
                    found[file.parent / str(row["file_name"])] = caption
        except (OSError, ValueError, TypeError, KeyError, csv.Error) as error:
            reason = "there is no file_name" if isinstance(error, KeyError) else first_line(error)
            skipped.append(Skipped(f"{file} (captions)", reason))
    return found, skipped


def _rows(file: pathlib.Path) -> Iterator[Mapping[str, object]]:
    with file.open(encoding="utf-8-sig", errors="replace", newline="") as lines:
        if file.suffix == ".csv":
            yield from csv.DictReader(lines)
        else:
            yield from (dict(json.loads(line)) for line in lines if line.strip())
