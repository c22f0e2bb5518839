"""Parquet files of images, as Hugging Face exports them: a column of image bytes, maybe one of labels and one of texts."""

from __future__ import annotations

import functools
import io
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, BinaryIO, NamedTuple

from jaxdiff.data.folders import CAPTIONS
from jaxdiff.data.sources import Item, Skipped, Source, splits_of_names
from jaxdiff.io import files, progress
from jaxdiff.io.errors import first_line

AT_ONCE = 16  # rows that are read ahead
LABELS = ("label", "labels", "fine_label")


class Columns(NamedTuple):
    """Which columns of a file hold what; empty where none does."""

    image: str
    label: str
    caption: str
    class_names: tuple[str, ...]


def source(root: pathlib.Path, tables: Sequence[pathlib.PurePosixPath]) -> Source:
    """The images in Parquet files, without those that cannot be read."""
    items: list[Item] = []
    skipped: list[Skipped] = []
    names: tuple[str, ...] = ()
    splits = splits_of_names([str(table) for table in tables])
    for table, split in zip(progress.track(tables, "listing tables", "file"), splits, strict=True):
        try:
            found, names_here = _rows(root, table, split)
        except Exception as error:  # of Arrow, of many kinds
            skipped.append(Skipped(str(table), first_line(error)))
            continue
        items += found
        names = names if len(names) > len(names_here) else names_here
    return Source(items, skipped, read, names)


def read(items: Sequence[Item]) -> Iterator[Callable[[], BinaryIO]]:
    """See `sources.Source`; whole row groups are read, a few rows at once."""
    start = 0
    while start < len(items):
        file, group = items[start].file, items[start].group
        stop = next((i for i in range(start, len(items)) if (items[i].file, items[i].group) != (file, group)), len(items))
        wanted = {item.offset for item in items[start:stop]}
        try:
            for row, image in enumerate(_images(file, group)):
                if row in wanted:
                    yield functools.partial(_opened, image)
                    start += 1
        except Exception as error:  # of Arrow, of many kinds: what comes after the damage cannot be read
            yield from (functools.partial(_refused, first_line(error)) for _ in range(start, stop))
        start = stop


def columns(schema: Any) -> Columns:
    """Which columns hold what: as Hugging Face's metadata says, else by their names and types.

    Raises:
        ValueError: none holds images.
    """
    from pyarrow import types

    told = files.parse_json((schema.metadata or {}).get(b"huggingface", b"").decode()).get("info", {}).get("features", {})
    kinds = {name: feature.get("_type", "") for name, feature in told.items() if isinstance(feature, dict)}
    binary = (types.is_binary, types.is_large_binary)

    def holds_bytes(kind: Any) -> bool:
        if types.is_struct(kind):
            return any(field.name == "bytes" and holds_bytes(field.type) for field in kind)
        return any(check(kind) for check in binary)

    images = [name for name in schema.names if kinds.get(name) == "Image" or holds_bytes(schema.field(name).type)]
    if not images:
        raise ValueError(f"none of its columns holds images; they are {', '.join(schema.names)}")
    image = min(images, key=lambda name: (kinds.get(name) != "Image", name not in ("image", "img")))
    classes = [name for name in schema.names if kinds.get(name) == "ClassLabel"]
    known = {name for name in schema.names if types.is_integer(schema.field(name).type) or types.is_string(schema.field(name).type)}
    label = next((name for name in (*LABELS, *classes) if name in known), "")
    caption = next((name for name in CAPTIONS if name in schema.names and types.is_string(schema.field(name).type)), "")
    return Columns(image, label, caption, tuple(told.get(label, {}).get("names") or ()))


def _rows(root: pathlib.Path, table: pathlib.PurePosixPath, split: str) -> tuple[list[Item], tuple[str, ...]]:
    from pyarrow import parquet

    items = []
    with parquet.ParquetFile(root / table) as file:
        c = columns(file.schema_arrow)
        for group in range(file.num_row_groups):
            about, asked = file.metadata.row_group(group), [name for name in (c.label, c.caption) if name]
            rows = file.read_row_group(group, columns=asked).to_pylist() if asked else [{}] * about.num_rows
            size = about.total_byte_size // max(1, about.num_rows)
            for number, row in enumerate(rows):
                label, caption = row.get(c.label), row.get(c.caption)
                label = None if isinstance(label, int) and label < 0 else label  # Hugging Face's sign for none
                place = Item(f"{table}/{len(items)}", str(root / table), number, size, group)
                items.append(place._replace(split=split, label=label, caption=caption))
    return items, c.class_names


def _images(file: str, group: int) -> Iterator[Any]:
    from pyarrow import parquet

    with parquet.ParquetFile(file) as table:
        column = columns(table.schema_arrow).image
        for batch in table.iter_batches(AT_ONCE, row_groups=[group], columns=[column]):
            yield from batch.column(0).to_pylist()


def _refused(reason: str) -> BinaryIO:
    raise ValueError(reason)


def _opened(image: Any) -> BinaryIO:
    content = image.get("bytes") if isinstance(image, dict) else image
    if not content:
        raise ValueError("the row holds no bytes of an image")
    return io.BytesIO(content)
