"""Statistics of real images, training and held-out, in a network's features; cached."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from jaxdiff import data
from jaxdiff.data import Images, ImageSpec, normalize
from jaxdiff.evaluate import feature_cache
from jaxdiff.evaluate.features import Features, Network, extract
from jaxdiff.evaluate.statistics import Gaussian, gaussian, mean_kernel
from jaxdiff.io import count, files

KEPT = 10_000  # images of each split whose features are kept, spread over it; mean and covariance are of all
PROBED = 64  # images of each split that tell data sets of one name apart


class DataSet(NamedTuple):
    """The images of a config: a description with split and sizes, the stem of its files in the cache, and both splits.

    `captions` are those of held-out images of given numbers, where samples are drawn by them.
    """

    name: str
    file: str
    train: Images
    held_out: Images
    captions: Callable[[np.ndarray], list[str]] | None = None


class Reference(NamedTuple):
    """Of the training images the Gaussian of all features, the mean kernel of KID, and features `[M, F]` of some; held-out images.

    The labels `[N]` are of the held-out ones.
    """

    gaussian: Gaussian
    mean_kernel: float
    train: np.ndarray
    held_out: Features
    labels: np.ndarray


def data_set(c: ImageSpec, data_dir: str | None = None) -> DataSet:
    """The data set of a config.

    Raises:
        DataError: it cannot be read.
    """
    train, held_out = (data.load_images(c, split, data_dir) for split in (c.split, c.held_out))
    size, shaped = "x".join(map(str, c.image_shape)), train.native_shape != c.image_shape
    how = (f" ({c.fit})" if shaped else "") + (f", averaged over {c.reduce}x{c.reduce}" if c.reduce > 1 else "")
    images = f"{count(train.num_examples, 'image')} of {size}{how}"
    name = f"{c.name} {c.split}, {images}, held-out ones of {c.held_out}, {held_out.num_examples}"
    probes = [part for each in (train, held_out) for part in each.fetch(spread(each.num_examples, PROBED))]
    return DataSet(name, f"{c.name}_{feature_cache.digest(name, *probes)}", train, held_out)


def reference(network: Network, source: DataSet, batch_size: int = 500) -> Reference:
    """The reference of a data set as a network sees it; read from the cache where it was computed before."""
    path = (
        files.cache_dir() / "references" / f"{source.file}_{feature_cache.digest(network.name, network.resize, network.dtype)}.npz"
    )
    held = measured_rows(source)

    def seen(images: Images, rows: np.ndarray, what: str) -> Features:
        return extract(network, lambda indices: normalize(images.fetch(rows[indices])[0]), len(rows), batch_size, what)

    def make() -> dict[str, np.ndarray]:
        features = seen(source.train, np.arange(source.train.num_examples), "the training images").features
        some, (mean, covariance) = features[spread(len(features), KEPT)], gaussian(features)
        held_out = seen(source.held_out, held, "held-out images")
        return {
            "mean": mean,
            "covariance": covariance,
            "mean_kernel": np.asarray(mean_kernel(some)),
            "train": some,
            "held_out": held_out.features,
            "probabilities": held_out.probabilities,
        }

    found = feature_cache.cached_arrays(path, make)
    law = Gaussian(found["mean"], found["covariance"])
    held_out = Features(found["held_out"], found["probabilities"])
    return Reference(law, float(found["mean_kernel"]), found["train"], held_out, source.held_out.fetch(held)[1])


def measured_rows(source: DataSet) -> np.ndarray:
    """The numbers of the held-out images that are measured."""
    return spread(source.held_out.num_examples, KEPT)


def spread(total: int, num: int) -> np.ndarray:
    """Up to `num` of the rows 0 to total - 1, evenly."""
    return np.arange(min(num, total)) * total // min(num, total)
