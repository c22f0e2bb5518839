"""Where a run's time goes: until its first step, and, in traces that TensorBoard and XProf open, in its steps."""

from __future__ import annotations

import contextlib
import logging
import pathlib
import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax

from jaxdiff.io import uploads
from jaxdiff.io.errors import ConfigError

log = logging.getLogger(__name__)


def parse_steps(text: str) -> tuple[int, int] | None:
    """The steps of a trace written as FIRST:LAST; None where nothing is written.

    Raises:
        ConfigError: it is written otherwise.
    """
    if not text:
        return None
    steps = re.fullmatch(r"(\d+):(\d+)", text)
    if steps is None or not 0 < int(steps[1]) <= int(steps[2]):
        raise ConfigError(f"--profile {text}: write the first and the last step to trace, such as 10:20")
    return int(steps[1]), int(steps[2])


@contextlib.contextmanager
def trace_steps(wanted: tuple[int, int] | None, folder: pathlib.Path) -> Iterator[tuple[Callable[..., None], Callable[..., None]]]:
    """Two hooks, `(first, last)` before a call of the step and `(last, result)` after it: they trace the wanted steps in `folder`.

    A call takes the steps from `first` to `last`.
    """
    tracing: list[pathlib.Path] = []
    if wanted is None:
        yield lambda first, last: None, lambda last, result: None
        return
    with uploads.uploaded_folder(folder) as (local, upload):

        def before(first: int, last: int) -> None:
            if not tracing and first <= wanted[0] <= last:
                jax.profiler.start_trace(str(local))
                tracing.append(local)

        def after(last: int, result: Any) -> None:
            if tracing and last >= wanted[1]:
                jax.block_until_ready(result)
                jax.profiler.stop_trace()
                tracing.clear()
                upload()
                log.info("trace of steps %d to %d: %s", *wanted, folder)

        try:
            yield before, after
        finally:
            if tracing:
                jax.profiler.stop_trace()


def steps_per_second() -> Callable[[int], dict[str, float]]:
    """A function that maps the number of a finished step to `steps_per_s` since the call before; nothing at the first call.

    The time for checkpoints, grids and the log counts.
    """
    before: list[tuple[int, float]] = []

    def since(number: int) -> dict[str, float]:
        now = time.perf_counter()
        before.append((number, now))
        return {"steps_per_s": (number - before[-2][0]) / (now - before[-2][1])} if len(before) > 1 else {}

    return since


def log_first_step(result: Any, began: float) -> None:
    """Logs, once the first step's result is there, the seconds since `began` (`time.perf_counter`)."""
    jax.block_until_ready(result)
    log.info("the first step was done after %.1f s, most of it compilation", time.perf_counter() - began)
