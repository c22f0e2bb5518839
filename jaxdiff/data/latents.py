"""Moments of latents as a tensorflow-datasets data set in array_record, written and read without TensorFlow.

Any program reads it by `tfds.builder_from_directory(directory).as_data_source("train")`: features `mean`, `std`, `label` if
images have labels, and what frozen text encoders made of captions, `context` and `pooled` (float16), if they were asked for.
Latents cannot be mirrored, so mirrored images have a split of their own, `train_mirrored`, in the same order.
"""

from __future__ import annotations

import contextlib
import math
import pathlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from jaxdiff.io import copies, files, paths
from jaxdiff.io.errors import ConfigError, DataError, first_line

MIRRORED = "_mirrored"  # ends the name of a split of mirrored images
SHARD = 2**28  # bytes of moments a file
INFO = "dataset_info.json"  # the file of tfds without which there is no data set

KEPT = {"context": np.float16, "pooled": np.float16}  # states of text, which are as exact as encoders in half precision

Rows = dict[str, np.ndarray]


class Moments(NamedTuple):
    """A split of which `rows(indices [B])` gives `mean` and `std` float32 `[B, h, w, C]` and `label` int32 `[B]`.

    And of captions, where they were encoded, `context` float32 `[B, T, D]` and maybe `pooled` `[B, P]`.

    Indices from `num_examples` on are of the mirrored images, where the split was read with them.
    """

    rows: Callable[[np.ndarray], Rows]
    num_examples: int
    num_classes: int
    in_memory: bool = False


class Origin(NamedTuple):
    """What latents were made of: an autoencoder's fingerprint and run, and the images, in the words of `config.Data`.

    `texts` are the fingerprints of the text encoders.
    """

    fingerprint: str
    run: str
    name: str
    image_shape: tuple[int, int, int]
    fit: str
    reduce: int
    flip: bool
    texts: tuple[str, ...] = ()


def check_free(directory: pathlib.Path) -> None:
    """Checks that latents can be written there.

    Raises:
        ConfigError: something is there already.
    """
    if directory.exists() and (not paths.in_bucket(directory) or (directory / INFO).exists()):
        raise ConfigError(f"{directory} exists already and stays as it is; remove it, or choose another --out")


def write_latents(directory: pathlib.Path, splits: Mapping[str, Iterable[Rows]], num_classes: int, origin: Origin) -> int:
    """Writes the splits, each as batches of rows in order (see `Moments`); the directory appears whole or not at all.

    Returns the bytes of all files.

    tfds's own builders shuffle, which beyond 1000 MB a split needs TensorFlow; its sequential writer does not.

    Raises:
        ConfigError: `directory` exists.
        DataError: a file could not be written, on a full disk for example.
    """
    check_free(directory)
    with files.atomic_folder(directory, last=INFO) as draft:
        writer: Any = None
        for split, batches in splits.items():
            for number, rows in enumerate(batches):
                shapes = {name: values.shape[1:] for name, values in rows.items() if name != "label"}
                writer = writer or _writer(draft, shapes, num_classes, origin)
                if number == 0:
                    writer.initialize_splits([split])
                stored = {name: values.astype(KEPT.get(name, values.dtype)) for name, values in rows.items()}
                stored = {name: values for name, values in stored.items() if name != "label" or num_classes}
                examples = [dict(zip(stored, values, strict=True)) for values in zip(*stored.values(), strict=True)]
                with _told(f"latents could not be written to {directory}"):
                    writer.add_examples({split: examples})
        with _told(f"latents could not be written to {directory}"):  # array_record says only here that the disk is full
            writer.close_all()
        return paths.total_bytes(draft)


def open_latents(directory: pathlib.Path) -> tuple[Any, Origin]:
    """The tfds builder of latents and what they were made of; latents in a bucket are first copied to the disk.

    Raises:
        ConfigError: the directory holds none.
    """
    copy = copies.local_copy(directory)
    try:
        builder = tfds.builder_from_directory(str(copy))
        origin = Origin(**dict(builder.info.metadata or {}))
    except Exception as error:  # tfds raises many kinds: no such directory, no JSON, none of these fields
        raise ConfigError(f"{directory} is no cache of latents; write one: jaxdiff latents RUN --out {directory}") from error
    return builder, origin._replace(image_shape=tuple(origin.image_shape), texts=tuple(origin.texts))


def load_moments(directory: pathlib.Path, split: str, flip: bool = False) -> Moments:
    """The moments of a split, or of a slice such as `train[:90%]`, read from disk; with `flip` those of mirrored images too.

    Raises:
        ConfigError: the directory holds no latents.
        DataError: no such split, no mirrored images, or a damaged file, which a call of `rows` finds.
    """
    builder, _ = open_latents(directory)
    known = [name for name in builder.info.splits if not name.endswith(MIRRORED)]
    asked = re.findall(r"(?:^|\+)\s*([\w-]+)", split)
    if not asked or not set(asked) <= set(known):
        raise DataError(f"latents {directory} have the splits {', '.join(known)}, not {split!r}; write them with --split")
    mirrored = re.sub(r"(^|\+)(\s*[\w-]+)", rf"\1\2{MIRRORED}", split)
    with _told(f"latents {directory}, split {split!r}", Exception):
        source = builder.as_data_source(split=f"{split}+{mirrored}" if flip else split)
    length = len(source) // 2 if flip else len(source)
    stored = [name for name in ("mean", "std", "label", *KEPT) if name in builder.info.features]
    num_classes = builder.info.features["label"].num_classes if "label" in stored else 0

    def rows(indices: np.ndarray) -> Rows:
        with _told(f"latents {directory} are damaged, remove and write them again"):
            examples = source.__getitems__(indices.tolist())
        stacked = {name: np.stack([example[name] for example in examples]) for name in stored}
        stacked |= {name: stacked[name].astype(np.float32) for name in KEPT if name in stored}
        return stacked | {"label": np.asarray(stacked.get("label", np.zeros(len(indices))), np.int32)}

    return Moments(rows, length, num_classes)


def _writer(
    directory: pathlib.Path, shapes: Mapping[str, tuple[int, ...]], num_classes: int, origin: Origin
) -> tfds.core.SequentialWriter:
    tensors = {
        name: tfds.features.Tensor(shape=shape, dtype=KEPT.get(name, np.float32), encoding="bytes")
        for name, shape in shapes.items()
    }
    label = {"label": tfds.features.ClassLabel(num_classes=num_classes)} if num_classes else {}
    info = tfds.core.DatasetInfo(
        builder=tfds.core.DatasetIdentity("latents", tfds.core.Version("1.0.0"), str(directory), module_name=""),
        description=f"Moments of the latents of {origin.name} under the autoencoder {origin.run} ({origin.fingerprint}).",
        features=tfds.features.FeaturesDict({**tensors, **label}),
        metadata=tfds.core.MetadataDict(origin._asdict()),
    )
    size = sum(math.prod(shape) * np.dtype(KEPT.get(name, np.float32)).itemsize for name, shape in shapes.items())
    return tfds.core.SequentialWriter(info, max(1, SHARD // size), file_format="array_record")


@contextlib.contextmanager
def _told(what: str, kind: type[Exception] = RuntimeError) -> Iterator[None]:
    """array_record's errors, or tfds's of that kind, in one line."""
    try:
        yield
    except kind as error:
        raise DataError(f"{what}: {first_line(error)}") from error
