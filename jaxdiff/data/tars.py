"""Tar archives of images, as webdataset and img2dataset write them: beside `key.jpg` maybe `key.cls`, `key.txt` and `key.json`."""

from __future__ import annotations

import functools
import io
import pathlib
import tarfile
from collections.abc import Callable, Iterator, Sequence
from typing import BinaryIO

from jaxdiff.data.folders import caption_in, is_image
from jaxdiff.data.sources import Item, Skipped, Source, splits_and_classes, splits_of_names
from jaxdiff.io import count, files, progress
from jaxdiff.io.errors import first_line

ENDINGS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
BESIDE = (".cls", ".txt", ".json")
LONGEST = 2**20  # bytes of a file beside an image

Texts = dict[str, str]


def source(root: pathlib.Path, archives: Sequence[pathlib.PurePosixPath]) -> Source:
    """The images in archives. Of one that is damaged, those before the damage."""
    items: list[Item] = []
    skipped: list[Skipped] = []
    folders: list[tuple[str, ...]] = []
    splits = splits_of_names([str(archive) for archive in archives])
    for archive, split in zip(progress.track(archives, "listing archives", "archive"), splits, strict=True):
        found, texts, damage = _listed(root / archive)
        skipped += [Skipped(str(archive), damage)] if damage else []
        for member in found:
            label, caption = _label(member.name, texts), _caption(member.name, texts)
            place = Item(f"{archive}/{member.name}", str(root / archive), member.offset_data, member.size)
            items.append(place._replace(split=split, label=label, caption=caption))
            folders.append(pathlib.PurePosixPath(member.name).parent.parts)
    if all(item.label is None for item in items):
        own, classes = splits_and_classes(folders)
        both = zip(items, own, classes, strict=True)
        items = [item._replace(split=item.split or split, label=label) for item, split, label in both]
    return Source(items, skipped, read)


def read(items: Sequence[Item]) -> Iterator[Callable[[], BinaryIO]]:
    """See `sources.Source`."""
    for item in items:
        yield functools.partial(_part, item)


def _part(item: Item) -> BinaryIO:
    with open(item.file, "rb") as file:
        file.seek(item.offset)
        return io.BytesIO(file.read(item.size))


def _listed(archive: pathlib.Path) -> tuple[list[tarfile.TarInfo], Texts, str]:
    """The images of an archive, the texts beside them by their names, and what is wrong with it."""
    images: list[tarfile.TarInfo] = []
    texts: Texts = {}
    if not archive.name.endswith(ENDINGS[0]):
        return images, texts, "it is compressed: images are found in it only after it is unpacked to .tar"
    try:
        with tarfile.open(archive, "r:", errorlevel=1) as tar:
            for member in tar:
                name = pathlib.PurePosixPath(member.name)
                if not member.isreg() or name.name.startswith("."):
                    continue
                if is_image(name):
                    images.append(member)
                elif name.suffix in BESIDE and member.size <= LONGEST and (file := tar.extractfile(member)):
                    texts[member.name] = file.read().decode(errors="replace").strip()
                tar.members = []  # type: ignore[attr-defined]  # which would keep all
    except (tarfile.TarError, OSError, EOFError) as error:
        return images, texts, f"it is damaged after {count(len(images), 'image')}: {first_line(error)}"
    return images, texts, ""


def _beside(name: str, ending: str, texts: Texts) -> str:
    """The text beside an image: of the same name, or of what webdataset takes for its key, up to the first dot."""
    path = pathlib.PurePosixPath(name)
    key = path.with_name(path.name.split(".")[0] or path.name)
    return texts.get(f"{path.with_suffix('')}{ending}") or texts.get(f"{key}{ending}") or ""


def _label(name: str, texts: Texts) -> str | int | None:
    text = _beside(name, ".cls", texts)
    return int(text) if text.isdecimal() else None if text.startswith("-") else text or None


def _caption(name: str, texts: Texts) -> str | None:
    return _beside(name, ".txt", texts) or caption_in(files.parse_json(_beside(name, ".json", texts)))
