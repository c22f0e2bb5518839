"""Checks of the numbers that factories are given. Arrays are not checked: they may be traced."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np


def check(where: str, rule: str, good: Callable[..., bool], **numbers: Any) -> None:
    """Checks that `good(*numbers)`, where all of them are numbers of Python or numpy.

    Raises:
        ValueError: it is not; the message says the rule and the numbers.
    """
    if all(isinstance(number, int | float | np.number) for number in numbers.values()) and not good(*numbers.values()):
        got = ", ".join(f"{name} = {number:g}" for name, number in numbers.items())
        raise ValueError(f"{where}: must have {rule}, got {got}")


def check_count(where: str, least: int = 1, **counts: Any) -> None:
    """Checks that each is a whole number of at least `least`.

    Raises:
        ValueError: one is not.
    """
    for name, count in counts.items():
        if not isinstance(count, int | np.integer) or count < least:
            raise ValueError(f"{where}: {name} must be a whole number of at least {least}, got {count}")
