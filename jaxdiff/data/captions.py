"""What a data set says of its images: captions, or context vectors."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import tensorflow_datasets as tfds

from jaxdiff.data.latents import Rows
from jaxdiff.data.read import Images, ImageSpec, opened
from jaxdiff.io.errors import DataError

CAPTIONS = 4096  # encoded at once


def with_context(source: Images, c: ImageSpec, split: str, channels: int, data_dir: str | None = None) -> Images:
    """The images with the feature `context` of their data set, vectors of so many channels.

    Raises:
        DataError: the data set has no such feature, or vectors of another width.
    """
    kept, info = opened(c.name, split, data_dir, decoders={"image": tfds.decode.SkipDecoding()})
    shape = info.features["context"].shape if "context" in info.features else None
    if shape is None or len(shape) != 2 or shape[1] != channels or shape[0] is None:
        raise DataError(f"data set {c.name} must have the feature context [T, {channels}] (model.context_channels); it has {shape}")

    def context(indices: np.ndarray) -> Rows:
        examples = kept.__getitems__(indices.tolist())
        return {"context": np.stack([example["context"] for example in examples]).astype(np.float32)}

    return source._replace(more=context)


def with_captions(
    source: Images, c: ImageSpec, split: str, encode: Callable[[Sequence[str]], Rows], data_dir: str | None = None
) -> Images:
    """The images with what `encode` makes of their captions: tokens `[B, T]` by name. In memory all are encoded at once.

    Raises:
        DataError: the data set has no captions.
    """
    read = captions(c.name, split, data_dir)
    if not source.in_memory:
        return source._replace(more=lambda indices: encode(read(indices)))
    starts = range(0, source.num_examples, CAPTIONS)
    parts = [encode(read(np.arange(start, min(start + CAPTIONS, source.num_examples)))) for start in starts]
    whole = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return source._replace(more=lambda indices: {name: values[indices] for name, values in whole.items()})


def captions(name: str, split: str, data_dir: str | None = None) -> Callable[[np.ndarray], list[str]]:
    """The function from indices `[B]` to the captions of a split.

    Raises:
        DataError: the data set has no captions.
    """
    kept, info = opened(name, split, data_dir, decoders={"image": tfds.decode.SkipDecoding()})
    if "caption" not in info.features or not isinstance(info.features["caption"], tfds.features.Text):
        how = "import images with captions (jaxdiff data import), or set text.layers 0 and no sources.text"
        raise DataError(f"data set {name} must have the feature caption, a text; it has {', '.join(info.features)}; {how}")
    return lambda indices: [example["caption"].decode() for example in kept.__getitems__(indices.tolist())]
