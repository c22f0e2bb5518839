"""Log-probabilities of images given the mean and width of each pixel, in nats, `[B]`.

`mean` and `std` broadcast against x0 `[B, ...]`. Discretised ones are for 8-bit images: x0 is one of 256 values from -1 to 1,
2 / 255 apart, with the probability of the interval around it; the first and the last interval include the tails.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

LogProb = Callable[[Array, Array, Array], Array]  # (x0, mean, std) -> [B]

LEVELS = 256  # of 8-bit images
BIN = 2 / (LEVELS - 1)  # width of an interval, for data in [-1, 1]


def gaussian(x0: Array, mean: Array, std: Array) -> Array:
    """Log-density of continuous data, a Gaussian per pixel."""
    return of_example(-(((x0 - mean) / std) ** 2) / 2 - jnp.log(std) - math.log(2 * math.pi) / 2, x0)


def discretized_gaussian(x0: Array, mean: Array, std: Array) -> Array:
    """Log-probability of 8-bit data: the Gaussian's mass in each pixel's interval (Ho et al. 2020, eq. 13)."""
    return of_example(_of_interval(jax.scipy.stats.norm.logcdf, x0, mean, std), x0)


def discretized_logistic(x0: Array, mean: Array, std: Array) -> Array:
    """Log-probability of 8-bit data: the logistic's mass in each interval; `std` is the logistic's scale.

    Kingma et al. (2016), appendix C; Salimans et al. (2017), eq. 2 with one component.
    """
    return of_example(_of_interval(jax.nn.log_sigmoid, x0, mean, std), x0)


def bernoulli(x0: Array, logits: Array) -> Array:
    """Log-probability of binary data, -1 or 1, each pixel 1 with probability sigmoid(logits) (Kingma & Welling 2014, C.1)."""
    return of_example(jax.nn.log_sigmoid(x0 * logits), x0)


def of_example(values: Array, x0: Array) -> Array:
    """The sum of each example's values, `[B]`, from values that broadcast to x0's shape."""
    return jnp.sum(jnp.broadcast_to(values, x0.shape), axis=tuple(range(1, x0.ndim)))


def _of_interval(log_cdf: Callable[[Array], Array], x0: Array, mean: Array, std: Array) -> Array:
    """`log(cdf(upper) - cdf(lower))` of symmetric distributions, from the tail that is not near 1: exact far from the mean.

    In float32 at least: half precision cannot tell the ends of an interval apart.
    """
    if jnp.finfo(x0.dtype).bits < 32:
        x0, mean, std = (jnp.asarray(value, jnp.float32) for value in (x0, mean, std))
    far = jnp.sign(mean - x0)  # mirrored so that the interval lies in the lower tail
    far = jnp.where(far == 0, 1, far)
    offset = far * (x0 - mean)
    upper, lower = (offset + BIN / 2) / std, (offset - BIN / 2) / std
    open_below = far * x0 <= -1 + BIN / 2  # after mirroring, the lowest interval
    open_above = far * x0 >= 1 - BIN / 2
    log_upper = jnp.where(open_above, 0, log_cdf(jnp.where(open_above, 0, upper)))
    inner = jnp.where(open_below, 0, lower)
    share = jnp.exp(jnp.where(open_below, -jnp.inf, log_cdf(inner)) - log_upper)
    return log_upper + jnp.log1p(-share)
