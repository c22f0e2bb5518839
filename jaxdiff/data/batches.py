"""Batches: an order of examples that is computed for a whole batch at once, and grain, which reads ahead.

A batch's place in the stream is the step number alone: the stream is infinite, reshuffled each epoch, and random
access, so a run resumes from any step, on any number of processes.
"""

from __future__ import annotations

import functools
import itertools
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from typing import NamedTuple

import grain
import numpy as np
from absl import flags

from jaxdiff.data.latents import Moments
from jaxdiff.data.read import Images

CORES = os.cpu_count() or 1
SHARED = 8  # cores that one process keeps busy: decoders leave Python's lock, what is around them does not


def batches(
    source: Images | Moments,
    batch_size: int,
    *,
    seed: int = 0,
    flip: bool = False,
    start: int = 0,
    rows: np.ndarray | None = None,
    workers: int = 0,
) -> grain.DatasetIterator[dict[str, np.ndarray]]:
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
        workers: processes that read and decode; -1 is one for eight cores. None where the source is in memory. They end with this
            process, however it ends; `close` of the iterator ends them before.
    """
    position = np.arange(batch_size, dtype=np.int32) if rows is None else rows.astype(np.int32)
    fetch = functools.partial(_fetch, source, Order(source.num_examples, seed, flip), batch_size, position)
    threads = 2 if source.in_memory else min(max(CORES, 2), SHARED)
    whole = grain.MapDataset.range(sys.maxsize // batch_size).map(fetch)[start:]
    stream = whole.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=4 * threads))
    workers = CORES // SHARED if workers < 0 else workers
    if workers and not source.in_memory:
        flags.FLAGS.mark_as_parsed()  # grain reads its own
        options = grain.MultiprocessingOptions(workers, per_worker_buffer_size=2)
        stream = stream.mp_prefetch(options, functools.partial(_follow, os.getpid()))
    return iter(stream)


class Order(NamedTuple):
    """The order of an infinite stream in which every epoch has each example once, in a new order.

    The random bits are Philox's (Salmon et al. 2011) of `seed` and the epoch, the same on every machine and with every release
    of NumPy.
    """

    num_examples: int
    seed: int = 0
    flip: bool = False

    def __call__(self, places: np.ndarray) -> np.ndarray:
        """From places `[b]` to indices `[b]` of examples; with `flip`, `num_examples` is added to half of them at random."""
        epochs, place = np.divmod(places, self.num_examples)
        indices = np.empty_like(places)
        for number in np.unique(epochs):
            indices[epochs == number] = _epoch(self, int(number))[place[epochs == number]]
        return indices


@functools.lru_cache(maxsize=4)
def _epoch(order: Order, number: int) -> np.ndarray:
    bits = np.random.Philox(key=np.array([order.seed, number], np.uint64)).random_raw(order.num_examples)
    indices = np.argsort(bits, kind="stable")
    return indices + order.num_examples * (bits[indices] & 1).astype(np.int64) if order.flip else indices


def _fetch(source: Images | Moments, order: Order, batch_size: int, position: np.ndarray, number: int) -> dict[str, np.ndarray]:
    return {**source.rows(order(number * batch_size + position.astype(np.int64))), "index": position}


def _follow(parent: int, index: int, num: int) -> None:
    """In a worker: it ends with its parent, even one that was killed, and leaves Ctrl-C to it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def stacked(batches: Iterator[dict[str, np.ndarray]], size: int) -> dict[str, np.ndarray]:
    """The next `size` batches stacked, `[size, b, ...]`."""
    parts = list(itertools.islice(batches, size))
    return {name: np.stack([part[name] for part in parts]) for name in parts[0]}
