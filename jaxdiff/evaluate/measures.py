"""Measures of a set of images, each with its interval, by name."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from jaxdiff import data
from jaxdiff.data import ImageSpec, normalize
from jaxdiff.evaluate import statistics
from jaxdiff.evaluate.clip_score import caption_features, clip_scores
from jaxdiff.evaluate.features import Features, Network, extract
from jaxdiff.evaluate.intervals import Interval, bootstrap, mean, share
from jaxdiff.evaluate.reference_statistics import DataSet, Reference, measured_rows, reference, spread
from jaxdiff.evaluate.results import Result, Spec
from jaxdiff.io import count, progress
from jaxdiff.io.errors import ConfigError, DataError
from jaxdiff.io.pictures import to_uint8

log = logging.getLogger(__name__)

LEAST = 10  # images of a set, of which intervals can be drawn
ANY_NUMBER = ("label_agreement", "clip_score")  # measures whose intervals take any number of images


class Seen(NamedTuple):
    """A set of images, as a network sees them, and rows `[S, num]` of measured sets.

    Labels `[N]`, and features `[N, F]` of captions, are those that were wanted.
    """

    features: Features
    labels: np.ndarray
    sets: np.ndarray
    captions: np.ndarray | None = None


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


def _clip_score(seen: Seen, real: Reference) -> Interval:
    assert seen.captions is not None, "captions are encoded wherever this is measured"
    return mean(clip_scores(seen.features.features, seen.captions), 0, 100)


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
    "clip_score": _clip_score,
}


class Measure(Protocol):
    """A function of samples `[N, H, W, C]` in [-1, 1], and of the labels `[N]` and captions that they were drawn by."""

    def __call__(self, samples: np.ndarray, labels: np.ndarray, captions: Sequence[str] = ()) -> Result:
        """Their measures; captions are for the CLIP score alone, and there one a sample."""
        ...


class Evaluator(NamedTuple):
    """By what samples are measured: its spec, and the measures."""

    spec: Spec
    measure: Measure


def evaluator(network: Network, source: DataSet, num: int, names: Sequence[str] = (), batch_size: int = 500) -> Evaluator:
    """The judge that measures what is named, or all that the network allows, of sets of up to `num` images.

    Sets are smaller where there are fewer real images, since most measures are biased by the number, and held-out ones are to
    compare: then it measures every full set of the samples, and takes the mean. Measures for which sets are too small are left
    out with a warning, unless they are named.

    Raises:
        ConfigError: a name is unknown or needs other logits.
        DataError: there are too few images for what is named, or for all measures.
    """
    sizes = (num, source.train.num_examples, source.held_out.num_examples)
    known = known_measures(names, network, captioned=source.captions is not None)
    num = min(sizes)
    if missing := _too_small(known, *sizes):
        known = [name for name in known if num >= LEAST or name in ANY_NUMBER]
        if names or not known:
            raise DataError(missing)
        log.warning("%s", missing)
    reads = "clip_score" in known
    spec = Spec(network.name, network.resize, network.dtype, num, source.name)
    real = reference(network, source, batch_size)
    told = caption_features(network, source.captions(measured_rows(source))) if reads and source.captions else None
    held = Seen(real.held_out, real.labels, spread(len(real.labels), num)[None], told)
    held_out = measured(known, held, real, "held-out images")

    def measure(samples: np.ndarray, labels: np.ndarray, captions: Sequence[str] = ()) -> Result:
        if reads and len(captions) != len(samples):
            raise ValueError(f"a caption is wanted for each sample: {len(captions)} for {count(len(samples), 'sample')}")
        images = normalize(to_uint8(samples))  # the real ones have 8 bits too
        features = extract(network, lambda rows: images[rows], len(images), batch_size, "samples")
        sets = np.arange(len(samples) // num * num).reshape(-1, num)
        told = caption_features(network, captions) if reads else None
        found = measured(known, Seen(features, labels, sets, told), real, "samples")
        return Result(spec, found, held_out, len(samples))

    return Evaluator(spec, measure)


def known_measures(names: Sequence[str], network: Network, captioned: bool = False) -> list[str]:
    """The names, or all that the network allows; `captioned` says whether samples are drawn by captions.

    Raises:
        ConfigError: one is unknown, or does not apply.
    """
    kind, why = network.name.split()[0].rstrip(","), {}
    if not network.labels:
        why["label_agreement"] = f"{kind} knows no labels of the data; write --features classifier"
    if not network.classes:
        why["inception_score"] = f"{kind} knows no classes; write --features inception --weights FILE.npz"
    if network.encode_captions is None:
        why["clip_score"] = f"{kind} reads no captions; write --features clip --weights FOLDER"
    elif not captioned:
        why["clip_score"] = "samples of a run without text have no captions; leave it out"
    able = [name for name in MEASURES if name not in why]
    for name in names:
        if name not in MEASURES:
            raise ConfigError(f"--metrics {name}: unknown; write some of {', '.join(able)}")
        if name not in able:
            raise ConfigError(f"--metrics {name}: {why[name]}")
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
