"""Batches by grain.

A batch's place in the stream is the step number alone: the stream is infinite, reshuffled each epoch, and random
access, so a run resumes from any step, on any number of processes.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator

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

    Yields the source's rows, such as `image` float32 `[b, H, W, C]` in [-1, 1] and `label` int32 `[b]`, and `index` int32
    `[b]`, the row's position in the whole batch. A position has the same example whatever the other rows.

    Args:
        source: the split.
        batch_size: rows of a batch over all processes.
        seed: of the order and the flips.
        flip: mirror half of the images.
        start: the first batch's number: the step of the state that resumes.
        rows: positions `[b]` in the whole batch of the rows wanted; all if not given.
    """
    position = np.arange(batch_size, dtype=np.int32) if rows is None else rows.astype(np.int32)

    def mirror(index: int, rng: np.random.Generator) -> int:
        return index + source.num_examples * int(rng.integers(2))

    def fetch(number: int) -> dict[str, np.ndarray]:
        return {**source.rows(np.array([stream[number * batch_size + row] for row in position.tolist()])), "index": position}

    stream = grain.MapDataset.range(source.num_examples).seed(seed).shuffle().repeat()
    stream = stream.random_map(mirror) if flip else stream
    whole = grain.MapDataset.range(sys.maxsize // batch_size).map(fetch)
    return iter(whole[start:].to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=8)))


def stacked(rows: Iterator[dict[str, np.ndarray]], size: int) -> Iterator[dict[str, np.ndarray]]:
    """The batches, or the arrays of `size` batches stacked, `[size, b, ...]`."""
    while size > 1:
        parts = list(itertools.islice(rows, size))
        yield {name: np.stack([part[name] for part in parts]) for name in parts[0]}
    yield from rows
