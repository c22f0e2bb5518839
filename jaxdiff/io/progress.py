"""Progress bars with the time left, for all that may take longer than two seconds.

There are none where the logger `jaxdiff` is set above INFO, as by `--quiet` and in all processes but the first.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from tqdm import tqdm

T = TypeVar("T")

PATIENCE = 2.0  # seconds until a bar is shown
TICK = 1.0  # seconds between two looks at the clock where nothing else moves: a program compiles, a batch takes minutes


@contextlib.contextmanager
def bar(total: int | None, desc: str, unit: str, patience: float = PATIENCE, **how: Any) -> Iterator[tqdm]:
    """A tqdm bar on which the clock runs also between two updates; shown after `patience` seconds, and gone at the end."""
    quiet = logging.getLogger("jaxdiff").level > logging.INFO
    settled = {"leave": False, "dynamic_ncols": True, "delay": patience, **how}
    done = threading.Event()
    with tqdm(total=total, desc=desc, unit=unit, disable=quiet, **settled) as shown:
        ticking = threading.Thread(target=_tick, args=(shown, done, patience), daemon=True)
        if not quiet:
            ticking.start()
        try:
            yield shown
        finally:
            done.set()
            if not quiet:
                ticking.join()
                if shown.format_dict["elapsed"] >= patience:
                    shown.last_print_t += shown.delay  # tqdm clears no line of which it thinks that it never was shown


def track(items: Iterable[T], desc: str, unit: str, total: int | None = None) -> Iterator[T]:
    """The items, with a bar."""
    total = len(items) if total is None and hasattr(items, "__len__") else total  # type: ignore[arg-type]
    with bar(total, desc, unit) as shown:
        for item in items:
            yield item
            shown.update()


@contextlib.contextmanager
def waiting(desc: str) -> Iterator[None]:
    """The seconds elapsed, for one task of unknown length."""
    with bar(None, desc, "", bar_format="{desc}: {elapsed}"):
        yield


def print_above(line: str) -> None:
    """Prints a line on stdout, above the bars."""
    tqdm.write(line, file=sys.stdout)
    sys.stdout.flush()


def _tick(shown: tqdm, done: threading.Event, patience: float) -> None:
    wait = patience or TICK
    while not done.wait(wait):
        shown.refresh()
        wait = TICK
