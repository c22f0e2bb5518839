"""Batches: an order of examples that is computed for a whole batch at once, and grain, which reads ahead.

A batch's place in the stream is the step number alone: the stream is infinite, reshuffled each epoch, and random
access, so a run resumes from any step, on any number of processes.
"""

from __future__ import annotations

import functools
import itertools
import sys
from collections.abc import Callable, Iterator

import grain
import numpy as np

from jaxdiff.data.latents import Moments
from jaxdiff.data.read import Images


def batches(
    source: Images | Moments,
    batch_size: int,
    *,
    seed: int = 0,
    flip: bool = False,
    start: int = 0,
    rows: np.ndarray | None = None,
) -> Iterator[dict[str, np.ndarray]]:
    """Some rows of the batches number start, start + 1, ... without end: all, or those that one process of several reads.

    Yields the source's rows, such as `image` uint8 `[b, H, W, C]`, which `training.train_step` maps to [-1, 1], and `label` int32
    `[b]`; and `index` int32 `[b]`, the row's position in the whole batch. A position has the same example whatever the other rows.

    Args:
        source: the split; one that is smaller than a batch repeats its examples in it.
        batch_size: rows of a batch over all processes.
        seed: of the order and the flips.
        flip: mirror half of the images.
        start: the first batch's number: the step of the state that resumes.
        rows: positions `[b]` in the whole batch of the rows wanted; all if not given.
    """
    position = np.arange(batch_size, dtype=np.int32) if rows is None else rows.astype(np.int32)
    indices = shuffled(source.num_examples, seed, flip)

    def fetch(number: int) -> dict[str, np.ndarray]:
        return {**source.rows(indices(number * batch_size + position.astype(np.int64))), "index": position}

    whole = grain.MapDataset.range(sys.maxsize // batch_size).map(fetch)
    return iter(whole[start:].to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=8)))


def shuffled(num_examples: int, seed: int, flip: bool = False) -> Callable[[np.ndarray], np.ndarray]:
    """From places `[b]` in an infinite stream to indices `[b]` of examples, each of which every epoch has once, in a new order.

    With `flip`, `num_examples` is added to half of the indices at random. The random bits are Philox's (Salmon et al. 2011) of
    `seed` and the epoch, the same on every machine and with every release of NumPy.
    """

    @functools.lru_cache(maxsize=2)
    def epoch(number: int) -> np.ndarray:
        bits = np.random.Philox(key=np.array([seed, number], np.uint64)).random_raw(num_examples)
        order = np.argsort(bits, kind="stable")
        return order + num_examples * (bits[order] & 1).astype(np.int64) if flip else order

    def indices(places: np.ndarray) -> np.ndarray:
        epochs, place = np.divmod(places, num_examples)
        found = np.empty_like(places)
        for number in np.unique(epochs):
            found[epochs == number] = epoch(int(number))[place[epochs == number]]
        return found

    return indices


def stacked(batches: Iterator[dict[str, np.ndarray]], size: int) -> dict[str, np.ndarray]:
    """The next `size` batches stacked, `[size, b, ...]`."""
    parts = list(itertools.islice(batches, size))
    return {name: np.stack([part[name] for part in parts]) for name in parts[0]}
