"""Labels of images: a class, or the classes of several places side by side as one number."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds


def class_counts(features: Any) -> tuple[int, int]:
    """The number of labels of a data set with these features, 0 if it has none, and of places that an image's label tells of.

    The feature `places` is the classes of equal parts of the image from left to right; each combination of them is a label.
    """
    if places := _places(features):
        return places.feature.num_classes ** places.shape[0], places.shape[0]
    return (features["label"].num_classes if "label" in features else 0), 1


def labels(examples: Sequence[dict[str, Any]], features: Any) -> np.ndarray:
    """The labels int32 `[N]` of examples, 0 where there are none; those of places are their classes as the digits of a number."""
    if places := _places(features):
        classes = np.array([example["places"] for example in examples])
        shape = (places.feature.num_classes,) * places.shape[0]
        return np.asarray(np.ravel_multi_index(tuple(classes.T), shape), np.int32)
    return np.array([example.get("label", 0) for example in examples], np.int32)


def classes_of_places(label: np.ndarray, num_classes: int, places: int) -> np.ndarray:
    """The classes int32 `[N, places]` of labels `[N]`, each below `num_classes`: the inverse of `labels`."""
    return np.stack(np.unravel_index(label, (num_classes,) * places), axis=1).astype(np.int32)


def _places(features: Any) -> Any:
    """The feature `places`, or None."""
    has_places = "places" in features and isinstance(getattr(features["places"], "feature", None), tfds.features.ClassLabel)
    return features["places"] if has_places else None
