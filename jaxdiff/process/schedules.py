"""Schedules: functions from a time in [0, 1], 0 is clean, to a level."""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from jaxdiff.process.levels import Level, Schedule, from_logsnr


def cosine(logsnr_min: float = -15.0, logsnr_max: float = 15.0) -> Schedule:
    """`alpha = cos(angle)`, `sigma = sin(angle)`, the angle linear in t between the two logsnr bounds.

    Nichol & Dhariwal (2021), eq. 17, in the clipped form `logsnr = -2 log tan(angle)` of Ho & Salimans (2022), section 2.
    """
    first, last = (math.atan(math.exp(-logsnr / 2)) for logsnr in (logsnr_max, logsnr_min))

    def level(t):
        angle = first + jnp.asarray(t) * (last - first)
        return Level(jnp.cos(angle), jnp.sin(angle))

    return level


def linear(beta_min: float = 0.1, beta_max: float = 20.0, logsnr_max: float = 15.0) -> Schedule:
    """DDPM's linear betas in continuous time: `alpha^2 = exp(-(beta_min t + (beta_max - beta_min) t^2 / 2))`.

    Song et al. (2021), eq. 33 of appendix C. Clipped at `logsnr_max`, as t = 0 would have no noise.
    """

    def level(t):
        t = jnp.asarray(t)
        return _variance_preserving(beta_min * t + (beta_max - beta_min) * t**2 / 2, logsnr_max)

    return level


def karras(sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0) -> Schedule:
    """`alpha = 1`, `sigma^(1 / rho)` linear in t from sigma_min to sigma_max (variance exploding).

    Karras et al. (2022), eq. 5, where time runs from the noisy end.
    """
    first, last = sigma_min ** (1 / rho), sigma_max ** (1 / rho)

    def level(t):
        sigma = (first + jnp.asarray(t) * (last - first)) ** rho
        return Level(jnp.ones_like(sigma), sigma)

    return level


def lognormal(mean: float = -1.2, std: float = 1.2, tail: float = 1e-5) -> Schedule:
    """`alpha = 1`, `log sigma = mean + std * quantile(t)` with the quantile of a standard normal: a schedule to train on.

    Uniform t gives the lognormal noise levels of Karras et al. (2022), table 1. `tail` is cut from both ends of t.
    """

    def level(t):
        sigma = jnp.exp(mean + std * jax.scipy.special.ndtri(jnp.clip(jnp.asarray(t), tail, 1 - tail)))
        return Level(jnp.ones_like(sigma), sigma)

    return level


def rectified_flow(logsnr_min: float = -15.0, logsnr_max: float = 15.0) -> Schedule:
    """`alpha = 1 - t`, `sigma = t`: the straight path (Liu et al. 2022, eq. 1), t clipped at the two logsnr bounds."""
    first, last = (1 / (1 + math.exp(logsnr / 2)) for logsnr in (logsnr_max, logsnr_min))

    def level(t):
        t = jnp.clip(jnp.asarray(t), first, last)
        return Level(1 - t, t)

    return level


def linear_logsnr(logsnr_min: float = -5.0, logsnr_max: float = 13.3) -> Schedule:
    """Variance-preserving levels with logsnr linear in t: uniform times have the variational bound's own density.

    Kingma et al. (2021): the end points at which their learned schedule starts.
    """
    return lambda t: from_logsnr(logsnr_max + jnp.asarray(t) * (logsnr_min - logsnr_max))


def from_betas(betas: ArrayLike, logsnr_max: float = 15.0) -> Schedule:
    """A published discrete chain in continuous time: `t = (i + 1) / T` is the state after `betas[i]`, `alpha^2 = prod(1 - beta)`.

    Ho et al. (2020), eq. 4. Between two states `log alpha` is linear in t; t = 0 is clipped at `logsnr_max`.

    Raises:
        ValueError: `betas` is not a vector of values in [0, 1).
    """
    betas = checked_betas(betas, "from_betas", "values in [0, 1)", lambda b: (b >= 0) & (b < 1))
    exponents = np.append(0.0, -np.cumsum(np.log1p(-betas)))
    times = np.linspace(0, 1, betas.size + 1)

    def level(t):
        t = 1.0 * jnp.asarray(t)
        return _variance_preserving(jnp.interp(t, jnp.asarray(times, t.dtype), jnp.asarray(exponents, t.dtype)), logsnr_max)

    return level


def shifted(schedule: Schedule, factor: float, size: Callable[[Array, Array], Array] = jnp.hypot) -> Schedule:
    """The schedule with `sigma / alpha` multiplied by `factor`: more noise for larger images.

    Hoogeboom et al. (2023), section 3.1 (`factor` = resolution / 64); Esser et al. (2024), eq. 23 (factor = sqrt(m / n)).
    `size(alpha, sigma)` is kept as it is: `jnp.hypot` for variance-preserving schedules, `jnp.add` for
    rectified flow.
    """

    def level(t):
        plain = schedule(t)
        sigma = factor * plain.sigma
        scale = size(plain.alpha, plain.sigma) / size(plain.alpha, sigma)
        return Level(scale * plain.alpha, scale * sigma)

    return level


def _variance_preserving(exponent: Array, logsnr_max: float) -> Level:
    """The level with `alpha^2 = exp(-exponent)`, `sigma^2 = 1 - alpha^2`, no cleaner than logsnr_max."""
    exponent = jnp.maximum(exponent, math.log1p(math.exp(-logsnr_max)))
    return Level(jnp.exp(-exponent / 2), jnp.sqrt(-jnp.expm1(-exponent)))


def checked_betas(betas: ArrayLike, where: str, rule: str, good: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """The betas as a float64 vector, checked by the rule.

    Raises:
        ValueError: they are not.
    """
    betas = np.asarray(betas, np.float64)
    if betas.ndim != 1 or not betas.size or not np.all(good(betas)):
        raise ValueError(f"{where}: betas must be a vector with {rule}, got shape {betas.shape}")
    return betas
