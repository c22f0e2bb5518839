"""Images of tensorflow-datasets without TensorFlow (array_record)."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import pathlib
import re
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image, ImageOps

from jaxdiff.data import labels
from jaxdiff.data.decoding import decode_image
from jaxdiff.data.latents import Rows
from jaxdiff.io import copies, count, paths, progress
from jaxdiff.io.errors import DataError, did_you_mean, first_line

log = logging.getLogger(__name__)

Fit = Literal["pad", "resize", "crop"]
IN_MEMORY = 2 * 2**30  # bytes of decoded images up to which a split is decoded once, at the start
Decoded = tuple[np.ndarray, np.ndarray]  # images and labels
DECODED: dict[tuple[Any, ...], Decoded] = {}


class ImageSpec(Protocol):
    """What images are read as: the name of a data set, its splits for training and for measures, and their shape."""

    @property
    def name(self) -> str:
        """Of the data set, as tensorflow-datasets has it."""
        ...

    @property
    def split(self) -> str:
        """For training."""
        ...

    @property
    def held_out(self) -> str:
        """For measures."""
        ...

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width, channels."""
        ...

    @property
    def fit(self) -> Fit:
        """How images are brought to the shape."""
        ...

    @property
    def reduce(self) -> int:
        """Averages over squares of so many pixels."""
        ...


class Images(NamedTuple):
    """A split: `fetch(indices [B])` gives uint8 images `[B, H, W, C]` and int32 labels `[B]`, in arrays of their own."""

    fetch: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
    num_examples: int
    num_classes: int
    native_shape: tuple[int | None, ...] = ()
    """Height, width and channels before they were fitted; None where they differ from image to image."""
    more: Callable[[np.ndarray], Rows] | None = None
    """From indices `[B]` to further rows, where they are asked for: `context` float32 `[B, T, D]`, or tokens int32 `[B, T]`."""
    in_memory: bool = True
    places: int = 1
    """Equal parts of an image, side by side, that have classes of their own, of which the label is all (see `labels`)."""

    def rows(self, indices: np.ndarray) -> Rows:
        """`image` uint8 `[B, H, W, C]`, `label` int32 `[B]`, and more if asked for.

        Indices from `num_examples` on are of mirrored images.
        """
        own, mirrored = indices % self.num_examples, indices >= self.num_examples
        pixels, label = self.fetch(own)
        pixels[mirrored] = pixels[mirrored].take(np.arange(pixels.shape[2])[::-1], axis=2)  # 9 times as fast as np.where
        batch = {"image": pixels, "label": label}
        return batch if self.more is None else {**batch, **self.more(own)}


def load_images(c: ImageSpec, split: str, data_dir: str | None = None) -> Images:
    """The images of a split of a config's data set, as the config wants them.

    Raises:
        DataError: as `images` does.
    """
    height, width, channels = c.image_shape
    whole = load_split(c.name, split, (height * c.reduce, width * c.reduce, channels), c.fit, data_dir)
    if c.reduce == 1:
        return whole

    def fetch(indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        pixels, labels = whole.fetch(indices)
        squares = pixels.reshape(len(pixels), height, c.reduce, width, c.reduce, channels)
        return np.round(squares.mean(axis=(2, 4))).astype(np.uint8), labels

    return whole._replace(fetch=fetch)


def load_split(name: str, split: str, image_shape: tuple[int, int, int], fit: Fit = "pad", data_dir: str | None = None) -> Images:
    """The images of a tfds split, padded, resized or cropped to the shape (see `fit_image`), with their labels (see `labels`).

    Of a data set without labels all are 0, and `num_classes` is 0. `digits` and `digits_text` are prepared on first use.

    Raises:
        DataError: the data set is unknown or not prepared, has no such split, or does not fit the shape.
    """
    source, info = opened(name, split, data_dir, decoders={"image": tfds.decode.SkipDecoding()})
    shape = info.features["image"].shape
    if shape[-1] not in (image_shape[-1], None):
        raise DataError(f"data: {name} has {count(shape[-1], 'channel')}; set data.image_shape to end in {shape[-1]}")

    num_classes, places = labels.class_counts(info.features)
    if image_shape[1] % places:
        raise DataError(f"data: {name} has {places} places side by side; set data.image_shape to a width that {places} divides")
    scaled = None if fit == "pad" else image_shape[:2]

    def decode(examples: list[dict[str, Any]]) -> Decoded:
        images = (decode_image(example["image"], image_shape[-1], scaled) for example in examples)
        pixels = np.stack([fit_image(image, image_shape, fit) for image in images])
        return pixels, labels.labels(examples, info.features)

    described = {"num_classes": num_classes, "native_shape": shape, "places": places}
    if len(source) * np.prod(image_shape) > IN_MEMORY:
        return Images(lambda indices: decode(source.__getitems__(indices.tolist())), len(source), in_memory=False, **described)
    state = [(str(file), file.stat().st_mtime_ns) for file in sorted(pathlib.Path(info.data_dir).iterdir())]
    pixels, label = _decoded_once((split, image_shape, fit, *state), source, decode, f"{name} {split}")
    return Images(lambda indices: (pixels[indices], label[indices]), len(source), **described)


def _decoded_once(key: tuple[Any, ...], source: Any, decode: Callable[[Any], Decoded], what: str) -> Decoded:
    """All images and labels of a split; those of the last two are kept, for what reads the same ones again."""
    if key not in DECODED:
        starts = progress.track(range(0, len(source), 256), f"decoding {what}", "batch")
        try:
            parts = [decode(source.__getitems__(list(range(i, min(i + 256, len(source)))))) for i in starts]
        except (RuntimeError, OSError) as error:  # of array_record, of Pillow
            raise DataError(f"data set {what.split()[0]} is damaged, remove and prepare it again: {first_line(error)}") from error
        while len(DECODED) > 1:
            del DECODED[next(iter(DECODED))]
        pixels, labels = zip(*parts, strict=True)
        DECODED[key] = np.concatenate(pixels), np.concatenate(labels)
    return DECODED[key]


def num_images(name: str, split: str, data_dir: str | None = None) -> int:
    """How many images a split has, without reading them; raises as `load_split` does."""
    return len(opened(name, split, data_dir)[0])


def directory(data_dir: str | None) -> str | None:
    """The directory of data sets, on a disk or in a bucket: the named one, or TFDS_DATA_DIR; None is the default of tfds."""
    return data_dir or os.environ.get("TFDS_DATA_DIR")


def normalize(pixels: np.ndarray) -> np.ndarray:
    """uint8 pixels as float32 in [-1, 1]."""
    return pixels.astype(np.float32) / 127.5 - 1


def fit_image(image: np.ndarray, shape: tuple[int, int, int], fit: Fit) -> np.ndarray:
    """One uint8 image brought to a shape: padded with zeros on all sides, or resized (bicubic, antialiased), or the middle of it.

    Raises:
        DataError: an image larger than the shape with `fit="pad"`.
    """
    if image.shape == shape:
        return image
    if fit in ("resize", "crop"):
        picture = Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image)
        size, how = (shape[1], shape[0]), Image.Resampling.BICUBIC
        fitted = picture.resize(size, how) if fit == "resize" else ImageOps.fit(picture, size, how)
        return np.asarray(fitted).reshape(shape)
    missing = [want - have for want, have in zip(shape, image.shape, strict=True)]
    if min(missing) < 0:
        raise DataError(f"data: an image of {image.shape} is larger than data.image_shape {shape}; set data.fit to resize or crop")
    return np.pad(image, [(gap // 2, gap - gap // 2) for gap in missing])


def opened(name: str, split: str, data_dir: str | None, decoders: Any = None) -> tuple[Any, Any]:
    """The examples of a split by number, as tfds reads them with these decoders, and the description of their data set.

    Raises:
        DataError: the data set is not prepared, has no such split, or none of images.
    """
    builder = _builder(name, data_dir)
    where = directory(data_dir) or pathlib.Path(builder.data_dir).parents[1]
    if not builder.info.splits:
        how = (
            f"jaxdiff data {name} --data-dir"
            if name in ("mnist", "cifar10")
            else f"tfds build {name} --file_format array_record --data_dir"
        )
        raise DataError(f"data set {name} is not prepared in {where}; run: {how} {where}")
    features = builder.info.features
    if "image" not in features or ("label" in features and not isinstance(features["label"], tfds.features.ClassLabel)):
        raise DataError(f"data set {name} must have the feature image, and label a class if any; it has {', '.join(features)}")
    try:
        return builder.as_data_source(split=split, decoders=decoders), builder.info
    except Exception as error:  # tfds raises many kinds: an unknown split, a slice that is none, another file format
        reason = "it has no images" if "0 length" in str(error) else first_line(error)
        raise DataError(f"data set {name}, split {split!r}: {reason}") from error


def _builder(name: str, data_dir: str | None) -> Any:
    from jaxdiff.data import digits, digits_text  # registers our builders with tfds

    data_dir = _on_disk(name, data_dir)
    try:
        builder = tfds.builder(name, data_dir=data_dir, file_format="array_record")
    except (tfds.core.DatasetNotFoundError, ValueError) as error:  # the second where it is no name at all
        if not name:
            how = "write data.name; of published weights: import them again with --data NAME"
            raise DataError(f"no data set is named; {how}") from error
        known = tfds.list_builders(with_community_datasets=False)
        hint = did_you_mean(name, known, "write data.name as tensorflow-datasets has it, such as digits or mnist")
        own = f"; images of your own: jaxdiff data import SOURCE --name {name}" if re.fullmatch(r"\w+", name) else ""
        raise DataError(f"no data set is named {name!r}{hint}{own}") from error
    if name in (digits.Digits.name, digits_text.DigitsText.name) and not builder.info.splits:
        log.info("preparing %s in %s", name, builder.data_dir)
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):  # tfds's bars: it takes seconds
            builder.download_and_prepare()
    return builder


def _on_disk(name: str, data_dir: str | None) -> str | None:
    """The directory; where it is in a bucket, one on the disk with a copy of the data set, if the bucket has it."""
    place = directory(data_dir)
    if place is None or not paths.in_bucket(paths.path(place)):
        return place
    return str(copies.local_copy(paths.path(place) / re.split("[:/]", name)[0], may_be_missing=True).parent)
