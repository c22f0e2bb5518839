"""Checks that data fits a log-probability. Only concrete arrays can be checked: inside jit nothing is."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike

from jaxdiff.likelihood.densities import BIN, discretized_gaussian, discretized_logistic, gaussian

ROUNDING = 1e-3  # of a pixel's value, in steps of 8-bit data


def check_data(x0: ArrayLike, log_prob: Callable) -> None:
    """Checks that x0 fits a log-probability of `densities`: 8-bit data in [-1, 1], or continuous data.

    Raises:
        ValueError: it does not; the message says what to do.
    """
    if isinstance(x0, Tracer):
        return
    if log_prob in (discretized_gaussian, discretized_logistic):
        check_range(x0)
        if not _eight_bit(x0):
            raise ValueError("likelihood: x0 is not 8-bit data, k / 127.5 - 1; for continuous data use a density such as gaussian")
    elif log_prob is gaussian:
        check_continuous(x0)


def check_range(x0: ArrayLike) -> None:
    """Checks that x0 is in [-1, 1].

    Raises:
        ValueError: it is not.
    """
    if not isinstance(x0, Tracer) and not np.all(np.abs(x0) <= 1 + 1e-6):
        low, high = float(np.min(x0)), float(np.max(x0))
        raise ValueError(f"likelihood: x0 has values from {low:.3g} to {high:.3g}; scale images to [-1, 1]")


def check_continuous(x0: ArrayLike) -> None:
    """Checks that x0 is continuous: a density at 8-bit values is unbounded and meaningless.

    Raises:
        ValueError: all values of x0 are of 8-bit data.
    """
    if not isinstance(x0, Tracer) and np.size(x0) and _eight_bit(x0):
        raise ValueError(
            "likelihood: x0 is 8-bit data that is not dequantized, so a density is meaningless; "
            "use dequantized_bound, or a discretized reconstruction"
        )


def _eight_bit(x0: ArrayLike) -> bool:
    steps = (np.asarray(x0, np.float64) + 1) / BIN
    return bool(np.all(np.abs(steps - np.round(steps)) < ROUNDING) and np.all(np.abs(x0) <= 1 + ROUNDING))
