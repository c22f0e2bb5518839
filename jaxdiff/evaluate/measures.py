"""Measures of a set of images, each with its interval, by name."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np

from jaxdiff import data
from jaxdiff.data import ImageSpec, normalize
from jaxdiff.evaluate import statistics
from jaxdiff.evaluate.features import Features, Network, extract
from jaxdiff.evaluate.intervals import Interval, bootstrap, share
from jaxdiff.evaluate.reference_statistics import DataSet, Reference, reference, spread
from jaxdiff.evaluate.results import Result, Spec
from jaxdiff.io import count, progress
from jaxdiff.io.errors import ConfigError, DataError
from jaxdiff.io.pictures import to_uint8

log = logging.getLogger(__name__)

LEAST = 10  # images of a set, of which intervals can be drawn
ANY_NUMBER = ("label_agreement",)  # measures whose intervals take any number of images


class Seen(NamedTuple):
    """A set of images, as a network sees them, the labels `[N]` that were wanted, and rows `[S, num]` of measured sets."""

    features: Features
    labels: np.ndarray
    sets: np.ndarray


def _fid(seen: Seen, real: Reference) -> Interval:
    return bootstrap(statistics.frechet(seen.features.features, real.gaussian), seen.sets, least=0)


def _kid(seen: Seen, real: Reference) -> Interval:
    return bootstrap(statistics.kernel(seen.features.features, real.train, real.mean_kernel), seen.sets)


def _precision(seen: Seen, real: Reference) -> Interval:
    return share(statistics.covered(seen.features.features, _as_many(seen, real)))  # however many: each has its own answer


def _recall(seen: Seen, real: Reference) -> Interval:
    found = bootstrap(statistics.coverage(seen.features.features, _as_many(seen, real)), seen.sets, least=0)
    return found._replace(high=min(found.high, 1.0))


def _inception_score(seen: Seen, real: Reference) -> Interval:
    return bootstrap(statistics.inception(seen.features.probabilities), seen.sets, least=1)


def _label_agreement(seen: Seen, real: Reference) -> Interval:
    return share(seen.features.probabilities.argmax(-1) == seen.labels)


def _as_many(seen: Seen, real: Reference) -> np.ndarray:
    """As many training images as there are in a set."""
    return real.train[spread(len(real.train), seen.sets.shape[1])]


MEASURES: dict[str, Callable[[Seen, Reference], Interval]] = {
    "fid": _fid,
    "kid": _kid,
    "precision": _precision,
    "recall": _recall,
    "inception_score": _inception_score,
    "label_agreement": _label_agreement,
}


class Evaluator(NamedTuple):
    """By what samples are measured: its spec, and `measure(samples [N, H, W, C] in [-1, 1], labels [N]) -> Result`."""

    spec: Spec
    measure: Callable[[np.ndarray, np.ndarray], Result]


def evaluator(network: Network, source: DataSet, num: int, names: Sequence[str] = (), batch_size: int = 500) -> Evaluator:
    """The judge that measures what is named, or all that the network allows, of sets of up to `num` images.

    Sets are smaller where there are fewer real images, since most measures are biased by the number, and held-out ones are to
    compare: then it measures every full set of the samples, and takes the mean. Measures for which sets are too small are left
    out with a warning, unless they are named.

    Raises:
        ConfigError: a name is unknown or needs other logits.
        DataError: there are too few images for what is named, or for all measures.
    """
    sizes, known = (num, source.train.num_examples, source.held_out.num_examples), known_measures(names, network)
    num = min(sizes)
    if missing := _too_small(known, *sizes):
        known = [name for name in known if num >= LEAST or name in ANY_NUMBER]
        if names or not known:
            raise DataError(missing)
        log.warning("%s", missing)
    spec = Spec(network.name, network.resize, network.dtype, num, source.name)
    real = reference(network, source, batch_size)
    held = Seen(real.held_out, real.labels, spread(len(real.labels), num)[None])
    held_out = measured(known, held, real, "held-out images")

    def measure(samples: np.ndarray, labels: np.ndarray) -> Result:
        images = normalize(to_uint8(samples))  # the real ones have 8 bits too
        features = extract(network, lambda rows: images[rows], len(images), batch_size, "samples")
        sets = np.arange(len(samples) // num * num).reshape(-1, num)
        found = measured(known, Seen(features, labels, sets), real, "samples")
        return Result(spec, found, held_out, len(samples))

    return Evaluator(spec, measure)


def known_measures(names: Sequence[str], network: Network) -> list[str]:
    """The names, or all that the network allows.

    Raises:
        ConfigError: one is unknown, or does not apply.
    """
    able = [name for name in MEASURES if network.labels or name != "label_agreement"]
    for name in names:
        if name not in MEASURES:
            raise ConfigError(f"--metrics {name}: unknown; write some of {', '.join(able)}")
        if name not in able:
            raise ConfigError(
                f"--metrics {name}: {network.name.split()[0]} knows no labels of the data; write --features classifier"
            )
    return list(names) or able


def check_measures(c: ImageSpec, num: int, names: Iterable[str], data_dir: str | None = None) -> None:
    """Checks, without reading an image, that the measures of `num` samples can be taken.

    Raises:
        DataError: the data set has no such splits, or too few images for one of the measures.
    """
    if missing := _too_small(names, num, *(data.num_images(c.name, split, data_dir) for split in (c.split, c.held_out))):
        raise DataError(missing)


def _too_small(names: Iterable[str], num: int, train: int, held_out: int) -> str:
    size, missing = min(num, train, held_out), [name for name in names if name not in ANY_NUMBER]
    if size >= LEAST or not missing:
        return ""
    sizes = ", ".join([count(num, "sample"), count(train, "training image"), count(held_out, "held-out image")])
    return f"not measured: {', '.join(missing)}, whose intervals need sets of at least {LEAST} images, got {size} ({sizes})"


def measured(names: Sequence[str], seen: Seen, real: Reference, what: str) -> dict[str, Interval]:
    """The measures by name."""
    return {name: MEASURES[name](seen, real) for name in progress.track(names, f"measuring {what}", "measure")}
