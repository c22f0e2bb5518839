"""A watchdog: what does not end in time ends the process, with one line."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import pathlib
import sys
import threading
import time
from collections.abc import Callable, Iterator

PATIENCE = 1800.0  # seconds for what takes long: compilation, a checkpoint, a grid of samples
GRACE = 10.0  # seconds later an end without a line, where a thread keeps Python's lock for good


@contextlib.contextmanager
def steps(seconds: float, who: str, stacks: pathlib.Path, linger: float = 0.0) -> Iterator[Callable[[bool], None]]:
    """A function to call at every step; where the next call does not come in time, the process ends.

    The limit is `seconds`, or `PATIENCE` until the first call and after a call that announces something slow; 0 is no limit.
    The stacks of all threads are written to the file `stacks`. The process ends `linger` seconds after its line.
    """
    if not seconds:
        yield lambda slow: None
        return
    with deadline(PATIENCE, f"{who}no step was done in {{:g}} s", stacks, linger) as postpone:
        yield lambda slow: postpone(max(seconds, PATIENCE) if slow else seconds)


@contextlib.contextmanager
def deadline(
    seconds: float, line: str, stacks: pathlib.Path | None = None, linger: float = 0.0
) -> Iterator[Callable[[float], None]]:
    """Ends the process with the line, into which the seconds go, unless the block ends in time; `linger` seconds later.

    Yields a function that restarts the time.
    """
    over = threading.Event()
    due = [0.0, 0.0]

    def postpone(seconds: float) -> None:
        due[:] = time.monotonic() + seconds, seconds
        faulthandler.dump_traceback_later(seconds + GRACE, exit=True)

    def guard() -> None:
        while not over.wait(1.0 if due[0] > time.monotonic() + 2 else 0.1):
            if time.monotonic() >= due[0]:
                print(f"\njaxdiff: {line.format(due[1])}{_written(stacks)}", file=sys.stderr, flush=True)
                time.sleep(linger)
                os._exit(1)

    postpone(seconds)
    threading.Thread(target=guard, daemon=True).start()
    try:
        yield postpone
    finally:
        over.set()
        faulthandler.cancel_dump_traceback_later()


def _written(stacks: pathlib.Path | None) -> str:
    """Writes what every thread is at; what to say of it."""
    if stacks is None:
        return ""
    try:
        with stacks.open("w") as file:
            faulthandler.dump_traceback(file)
    except OSError:
        return ""
    return f" ({stacks} says what it was at); rerunning the same command resumes from the last checkpoint"
