"""Chunks of a source of images, as files of examples: the part of an import that takes long, and goes on after an interruption."""

from __future__ import annotations

import collections
import concurrent.futures
import json
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from PIL import UnidentifiedImageError
from tensorflow_datasets.core import example_serializer

from jaxdiff.data import decoding
from jaxdiff.data.decoding import Kept
from jaxdiff.data.sources import Item, Skipped, Source
from jaxdiff.io import files, progress
from jaxdiff.io.errors import DataError, first_line

IMAGES, BYTES = 4096, 2**28  # of the source, in a chunk; a row group of a Parquet file is never divided
AHEAD = 4  # images that are opened at once, for each core
TRAIN, HELD_OUT = "train", "test"
NO_CLASS = "it has no class, and most other images have one"


class Wanted(NamedTuple):
    """How images are imported."""

    size: tuple[int, int] | None = None
    """Height and width: images are cut to these proportions, in the middle, and resized. None: they stay as they are."""
    split: str = ""
    """The split of all images; empty: the source's own splits, or else train and test."""
    held_out: float = 0.1
    """The share of test, by a hash of the pixels: copies of an image fall in the same split."""


def features(source: Source, wanted: Wanted) -> tfds.features.FeaturesDict:
    """Of the data set: image, label where there are classes, caption where an image has one."""
    chosen: dict[str, Any] = {"image": tfds.features.Image(shape=(*(wanted.size or (None, None)), 3), dtype=np.uint8)}
    if source.class_names:
        chosen["label"] = tfds.features.ClassLabel(names=list(source.class_names))
    if any(item.caption for item in source.items):
        chosen["caption"] = tfds.features.Text()
    return tfds.features.FeaturesDict(chosen)


def write(source: Source, wanted: Wanted, folder: pathlib.Path, what: str) -> list[dict[str, Any]]:
    """Writes the chunks that are not in the folder yet; the notes of all, in order.

    A chunk is a file of examples for each split, `shard` gives their names, and a note, which is written last: of each split the
    number of examples and their bytes, and which images were skipped.

    Raises:
        DataError: of array_record, where the disk is full; or an OSError. The chunks before stay.
    """
    folder.mkdir(parents=True, exist_ok=True)
    parts = list(enumerate(divided(source.items)))
    notes = {number: folder / f"{number:05d}.json" for number, _ in parts}
    missing = [(number, items) for number, items in parts if not notes[number].exists()]
    done, wanted_features = len(source.items) - sum(len(items) for _, items in missing), features(source, wanted)
    with (
        concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool,  # Pillow lets other threads work while it does
        progress.bar(len(source.items), what, "image", initial=done) as shown,
    ):
        for number, items in missing:
            results = _results(pool, source.read(items), items, wanted.size, shown.update)
            files.write_text(notes[number], json.dumps(_write_chunk(folder, number, results, wanted, wanted_features)))
    return [files.read_json(note) for note in notes.values()]


def shard(folder: pathlib.Path, number: int, split: str) -> pathlib.Path:
    """The file of a chunk's examples of a split."""
    return folder / f"{number:05d}_{split}.array_record"


def divided(items: Sequence[Item]) -> Iterator[Sequence[Item]]:
    """The items in chunks, always the same."""
    start = size = 0
    for number, item in enumerate(items):
        before = items[number - 1]
        whole = item.group < 0 or (item.file, item.group) != (before.file, before.group)
        if number > start and whole and (number - start >= IMAGES or size >= BYTES):
            yield items[start:number]
            start, size = number, 0
        size += item.size
    yield items[start:]


def _write_chunk(
    folder: pathlib.Path, number: int, results: Iterator[tuple[Item, Kept | str]], wanted: Wanted, kinds: tfds.features.FeaturesDict
) -> dict[str, Any]:
    from array_record.python.array_record_module import ArrayRecordWriter

    specs: Any = kinds.get_serialized_info()
    serializer = example_serializer.ExampleSerializer(specs)
    writers: dict[str, Any] = {}
    note: dict[str, Any] = {"splits": {}, "skipped": []}
    try:
        for item, result in results:
            if isinstance(result, str) or ("label" in kinds and item.label is None):
                note["skipped"].append(Skipped(item.key, result if isinstance(result, str) else NO_CLASS))
                continue
            split = _split(item, result.digest, wanted)
            if split not in writers:
                writers[split] = ArrayRecordWriter(str(shard(folder, number, split)), "group_size:1")
            values = {"image": result.content, "label": item.label, "caption": item.caption or ""}
            record: Any = serializer.get_tf_example(kinds.encode_example({name: values[name] for name in kinds}))
            example = record.SerializeToString(deterministic=True)  # the same bytes again after an interruption
            writers[split].write(example)
            length, size = note["splits"].get(split, (0, 0))
            note["splits"][split] = (length + 1, size + len(example))
        for writer in writers.values():
            writer.close()  # says only here that the disk is full
    except BaseException as error:
        for split in writers:
            shard(folder, number, split).unlink(missing_ok=True)  # it is not whole, and its room may be needed
        if isinstance(error, RuntimeError):
            raise DataError(f"{folder} cannot be written ({first_line(error)}); make room and rerun the command") from error
        raise
    return note


def _split(item: Item, digest: bytes, wanted: Wanted) -> str:
    share = int.from_bytes(digest[:8], "big") / 2**64
    return wanted.split or item.split or (HELD_OUT if share < wanted.held_out else TRAIN)


def _results(
    pool: concurrent.futures.Executor,
    opened: Iterator[Callable[[], BinaryIO]],
    items: Sequence[Item],
    size: tuple[int, int] | None,
    done: Callable[[], Any],
) -> Iterator[tuple[Item, Kept | str]]:
    """The items in order, each with its image, or why there is none."""
    waiting: collections.deque[tuple[Item, concurrent.futures.Future[Kept | str]]] = collections.deque()
    for item, file in zip(items, opened, strict=True):
        waiting.append((item, pool.submit(_result, file, size)))
        while len(waiting) > AHEAD * (os.cpu_count() or 1) or (len(waiting) and item is items[-1]):
            first, future = waiting.popleft()
            yield first, future.result()
            done()


def _result(opened: Callable[[], BinaryIO], size: tuple[int, int] | None) -> Kept | str:
    try:
        with opened() as file:
            return decoding.kept(file, size)
    except UnidentifiedImageError:  # whose message has an address in memory
        return "it is no image that Pillow can read"
    except Exception as error:  # of many kinds
        return first_line(error)
