"""`digits`: the 1,797 handwritten digits of 8x8 pixels that scikit-learn bundles, as a tensorflow-datasets builder."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

TEST_EVERY = 6  # every sixth image is held out, so that both splits hold all writers and digits


class Digits(tfds.core.GeneratorBasedBuilder):
    """Optical recognition of handwritten digits (Alpaydin & Kaynak 1998, UCI): 1,498 train and 299 test images."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar = {"1.0.0": "First release."}

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "image": tfds.features.Image(shape=(8, 8, 1), dtype=np.uint8),
            "label": tfds.features.ClassLabel(num_classes=10),
        }
        return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(features), homepage="https://archive.ics.uci.edu")

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        return {"train": self._generate_examples(test=False), "test": self._generate_examples(test=True)}

    def _generate_examples(self, test: bool) -> Iterator[tuple[int, dict[str, Any]]]:
        numbers, images, labels = load_digits(test)
        for number, image, label in zip(numbers.tolist(), images, labels.tolist(), strict=True):
            yield number, {"image": png(image), "label": label}


def load_digits(test: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Numbers `[N]`, images uint8 `[N, 8, 8]` and labels `[N]` of the held-out digits, or of the others."""
    from sklearn import datasets  # imported slowly, and needed once

    digits: Any = datasets.load_digits()
    (numbers,) = np.nonzero((np.arange(len(digits.target)) % TEST_EVERY == TEST_EVERY - 1) == test)
    return numbers, np.round(digits.images[numbers] * 255 / 16).astype(np.uint8), digits.target[numbers]


def png(image: np.ndarray) -> bytes:
    """An image `[H, W]` or `[H, W, 3]` of uint8 as the bytes of a PNG file, which tfds stores without TensorFlow."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG")
    return buffer.getvalue()
