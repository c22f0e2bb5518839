"""Data: tensorflow-datasets without TensorFlow (array_record), and grain, to batches."""

from jaxdiff.data.batches import batches
from jaxdiff.data.latents import Moments, Rows
from jaxdiff.data.read import IN_MEMORY, Images, ImageSpec, fitted, images, normalized, of, with_context

__all__ = ["IN_MEMORY", "ImageSpec", "Images", "Moments", "Rows", "batches", "fitted", "images", "normalized", "of", "with_context"]
