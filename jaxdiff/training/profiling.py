"""Where a run's time goes: until its first step, and, in traces that TensorBoard and XProf open, in its steps."""

from __future__ import annotations

import logging
import pathlib
import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax

from jaxdiff.io.errors import ConfigError

log = logging.getLogger(__name__)


def parse_steps(text: str) -> tuple[int, int] | None:
    """The steps of a trace written as FIRST:LAST; None where nothing is written.

    Raises:
        ConfigError: it is written otherwise.
    """
    if not text:
        return None
    found = re.fullmatch(r"(\d+):(\d+)", text)
    if found is None or not 0 < int(found[1]) <= int(found[2]):
        raise ConfigError(f"--profile {text}: write the first and the last step to trace, such as 10:20")
    return int(found[1]), int(found[2])


def trace_steps(states: Iterator[Any], numbers: range, steps: tuple[int, int] | None, folder: pathlib.Path) -> Iterator[Any]:
    """The states and metrics of the steps that end at `numbers`, with a trace in `folder` of those from steps[0] to steps[1]."""
    tracing = False
    try:
        for number in numbers:
            if steps is not None and not tracing and number - numbers.step < steps[0] <= number:
                jax.profiler.start_trace(str(folder))
                tracing = True
            item = next(states)
            if steps is not None and tracing and number >= steps[1]:
                jax.block_until_ready(item)
                jax.profiler.stop_trace()
                tracing = False
                log.info("trace of steps %d to %d: %s", *steps, folder)
            yield item
    finally:
        if tracing:
            jax.profiler.stop_trace()


def steps_per_second() -> Callable[[int], dict[str, float]]:
    """A function from the number of a step that is done to `steps_per_s` since the step of the call before; of the first, nothing.

    Checkpoints, grids and the log are in it.
    """
    before: list[tuple[int, float]] = []

    def since(number: int) -> dict[str, float]:
        now = time.perf_counter()
        before.append((number, now))
        return {"steps_per_s": (number - before[-2][0]) / (now - before[-2][1])} if len(before) > 1 else {}

    return since


def log_first_step(states: Iterator[Any], began: float) -> Iterator[Any]:
    """The states, saying when the first one is there, in seconds since `began` (`time.perf_counter`)."""
    first = next(states)
    jax.block_until_ready(first)
    log.info("the first step was done after %.1f s, most of it compilation", time.perf_counter() - began)
    yield first
    yield from states
