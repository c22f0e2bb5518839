"""Data: tensorflow-datasets without TensorFlow (array_record), and grain, to batches; `importing` makes data sets of images."""

from jaxdiff.data.batches import batches, stacked
from jaxdiff.data.captions import captions, with_captions, with_context
from jaxdiff.data.latents import Moments, Rows
from jaxdiff.data.read import (
    IN_MEMORY,
    Images,
    ImageSpec,
    fit_image,
    load_images,
    load_split,
    normalize,
    num_images,
)

__all__ = [
    "IN_MEMORY",
    "ImageSpec",
    "Images",
    "Moments",
    "Rows",
    "batches",
    "captions",
    "fit_image",
    "load_split",
    "normalize",
    "stacked",
    "num_images",
    "load_images",
    "with_captions",
    "with_context",
]
