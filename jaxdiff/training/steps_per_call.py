"""How many steps the devices do in one call of the host: enough that they never wait for Python."""

from __future__ import annotations

import itertools
import json
import logging
import pathlib
import statistics
import time
from collections.abc import Callable

import jax

from jaxdiff.io import count, files
from jaxdiff.training import distributed

log = logging.getLogger(__name__)

HOSTS = ("cpu",)  # platforms whose device is the host itself, which has nothing to wait for; and loops of XLA are slow there
CALL = 0.1  # seconds that a call lasts at least: a call costs the host about 5 ms for the thousand arrays of a state
MOST = 100  # steps a call
TIMED = 10  # calls of one step, after those that compile
PAYS = 10  # the time left for training in times of compiling, from which a second program is worth it


def fixed(size: int) -> Callable[[int], int]:
    """From the number of steps done to that of the next call: `size`, or single steps to the next multiple of it."""
    return lambda number: 1 if number % size else size


def automatic(divides: int, last: int, kept: pathlib.Path) -> Callable[[int], int]:
    """As `fixed`, of a size chosen from the time of the first steps, or, where a run resumes, the one in the file `kept`.

    All processes call it after the same steps, and take the first one's choice.

    Args:
        divides: what the size must divide: the interval at whose multiples something happens between two steps.
        last: the step at which training ends.
        kept: where the choice is kept, one for each kind and number of devices.
    """
    name = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    held = distributed.broadcast_from_first(files.read_json(kept).get(name))
    sizes, times = [held] if held and divides % held == 0 else [], []

    def of(number: int) -> int:
        if not sizes:
            times.append(time.perf_counter())
        if len(times) == TIMED + 3 and not sizes:
            compiling, *steps = (after - before for before, after in itertools.pairwise(times))
            size = chosen(statistics.median(steps[1:]), divides, last - number, compiling)
            sizes.append(distributed.broadcast_from_first(size))
            if distributed.is_first() and sizes[0] > 1:
                files.write_text(kept, json.dumps(files.read_json(kept) | {name: sizes[0]}))
            log.info("%s a call from now on", count(sizes[0], "step"))
        return fixed(sizes[0] if sizes else 1)(number)

    return of


def chosen(seconds: float, divides: int, left: int, compiling: float) -> int:
    """The least divisor of `divides` with which a call lasts `CALL` seconds, but at most `MOST`.

    One where steps are as long, or where the `left` steps are soon done and compiling another program costs more.

    Args:
        seconds: of a step.
        divides: what the size divides.
        left: steps to the end of training.
        compiling: seconds that compiling takes.
    """
    if left * seconds < PAYS * compiling:
        return 1
    sizes = [size for size in range(1, min(divides, MOST) + 1) if divides % size == 0]
    return next((size for size in sizes if size * seconds >= CALL), sizes[-1])
