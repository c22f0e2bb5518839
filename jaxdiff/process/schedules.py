"""Schedules: functions from a time in [0, 1], 0 is clean, to a level."""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from jaxdiff.arguments import at_least_float32, check
from jaxdiff.process.levels import Level, Schedule, from_logsnr

LOGSNR_MIN = -15.0  # where a chain ends that goes to pure noise


def cosine(logsnr_min: float = -15.0, logsnr_max: float = 15.0) -> Schedule:
    """`alpha = cos(angle)`, `sigma = sin(angle)`, the angle linear in t between the two logsnr bounds.

    Nichol & Dhariwal (2021), eq. 17, in the clipped form `logsnr = -2 log tan(angle)` of Ho & Salimans (2022), section 2.
    """
    _check_logsnr("cosine", logsnr_min, logsnr_max)
    first, last = (math.atan(math.exp(-logsnr / 2)) for logsnr in (logsnr_max, logsnr_min))

    def level(t):
        angle = first + unit(t) * (last - first)
        return Level(jnp.cos(angle), jnp.sin(angle))

    return level


def linear(beta_min: float = 0.1, beta_max: float = 20.0, logsnr_max: float = 15.0) -> Schedule:
    """DDPM's linear betas in continuous time: `alpha^2 = exp(-(beta_min t + (beta_max - beta_min) t^2 / 2))`.

    Song et al. (2021), eq. 33 of appendix C. Clipped at `logsnr_max`, as t = 0 would have no noise.
    """
    check("linear", "0 <= beta_min <= beta_max, beta_max > 0", lambda a, b: 0 <= a <= b > 0, beta_min=beta_min, beta_max=beta_max)

    def level(t):
        t = unit(t)
        return _variance_preserving(beta_min * t + (beta_max - beta_min) * t**2 / 2, logsnr_max)

    return level


def karras(sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0) -> Schedule:
    """`alpha = 1`, `sigma^(1 / rho)` linear in t from sigma_min to sigma_max (variance exploding).

    Karras et al. (2022), eq. 5, where time runs from the noisy end.
    """
    check("karras", "0 < sigma_min < sigma_max", lambda a, b: 0 < a < b, sigma_min=sigma_min, sigma_max=sigma_max)
    check("karras", "rho > 0", lambda rho: rho > 0, rho=rho)
    first, last = sigma_min ** (1 / rho), sigma_max ** (1 / rho)

    def level(t):
        sigma = (first + unit(t) * (last - first)) ** rho
        return Level(jnp.ones_like(sigma), sigma)

    return level


def lognormal(mean: float = -1.2, std: float = 1.2, tail: float = 1e-5) -> Schedule:
    """`alpha = 1`, `log sigma = mean + std * quantile(t)` with the quantile of a standard normal: a schedule to train on.

    Uniform t gives the lognormal noise levels of Karras et al. (2022), table 1. `tail` is cut from both ends of t.
    """
    check("lognormal", "std > 0 and 0 < tail < 0.5", lambda std, tail: std > 0 and 0 < tail < 0.5, std=std, tail=tail)

    def level(t):
        t = 1.0 * jnp.asarray(t)
        quantile = jax.scipy.special.ndtri(jnp.clip(at_least_float32(t), tail, 1 - tail))
        sigma = jnp.exp(mean + std * quantile).astype(t.dtype)
        return Level(jnp.ones_like(sigma), sigma)

    return level


def rectified_flow(logsnr_min: float = -15.0, logsnr_max: float = 15.0) -> Schedule:
    """`alpha = 1 - t`, `sigma = t`: the straight path (Liu et al. 2022, eq. 1), t clipped at the two logsnr bounds."""
    _check_logsnr("rectified_flow", logsnr_min, logsnr_max)
    first, last = (1 / (1 + math.exp(logsnr / 2)) for logsnr in (logsnr_max, logsnr_min))

    def level(t):
        t = jnp.clip(jnp.asarray(t), first, last)
        return Level(1 - t, t)

    return level


def linear_logsnr(logsnr_min: float = -5.0, logsnr_max: float = 13.3) -> Schedule:
    """Variance-preserving levels with logsnr linear in t: uniform times have the variational bound's own density.

    Kingma et al. (2021): the end points at which their learned schedule starts.
    """
    _check_logsnr("linear_logsnr", logsnr_min, logsnr_max)
    return lambda t: from_logsnr(logsnr_max + unit(t) * (logsnr_min - logsnr_max))


def from_betas(betas: ArrayLike, logsnr_max: float = 15.0) -> Schedule:
    """A published discrete chain in continuous time: `t = (i + 1) / T` is the state after `betas[i]`, `alpha^2 = prod(1 - beta)`.

    Ho et al. (2020), eq. 4. Between two states `log alpha` is linear in t; t = 0 is clipped at `logsnr_max`. The last beta may be 1
    (`zero_terminal_snr`), where logsnr is clipped at -15, as other schedules end: there predicted noise says little about x0.

    Raises:
        ValueError: `betas` is not a vector of values in [0, 1].
    """
    betas = checked_betas(betas, "from_betas", "values in [0, 1]", lambda b: (b >= 0) & (b <= 1))
    with np.errstate(divide="ignore"):
        exponents = np.append(0.0, np.minimum(-np.cumsum(np.log1p(-betas)), math.log1p(math.exp(-LOGSNR_MIN))))
    times = np.linspace(0, 1, betas.size + 1)

    def level(t):
        t = 1.0 * jnp.asarray(t)
        wide = at_least_float32(t)
        exponent = jnp.interp(wide, jnp.asarray(times, wide.dtype), jnp.asarray(exponents, wide.dtype))
        return jax.tree.map(lambda leaf: leaf.astype(t.dtype), _variance_preserving(exponent, logsnr_max))

    return level


def shifted(schedule: Schedule, factor: float, size: Callable[[Array, Array], Array] = jnp.hypot) -> Schedule:
    """The schedule with `sigma / alpha` multiplied by `factor`: more noise for larger images.

    Hoogeboom et al. (2023), section 3.1 (`factor` = resolution / 64); Esser et al. (2024), eq. 23 (factor = sqrt(m / n)).
    `size(alpha, sigma)` is kept as it is: `jnp.hypot` for variance-preserving schedules, `jnp.add` for
    rectified flow.
    """
    check("shifted", "factor > 0", lambda factor: factor > 0, factor=factor)

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


def unit(t: ArrayLike) -> Array:
    """The time clipped to [0, 1]; at 0 and 1 its derivative is 1, so that rates there are those of the schedule."""
    t = jnp.asarray(t)
    return jnp.where(t < 0, jnp.zeros_like(t), jnp.where(t > 1, jnp.ones_like(t), t))


def _check_logsnr(where: str, logsnr_min: float, logsnr_max: float) -> None:
    check(where, "logsnr_min < logsnr_max", lambda low, high: low < high, logsnr_min=logsnr_min, logsnr_max=logsnr_max)


def checked_betas(betas: ArrayLike, where: str, rule: str, good: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """The betas as a float64 vector, checked by the rule.

    Raises:
        ValueError: they are not.
    """
    betas = np.asarray(betas, np.float64)
    if betas.ndim != 1 or not betas.size:
        raise ValueError(f"{where}: betas must be a vector with {rule}, got shape {betas.shape}")
    if bad := np.flatnonzero(~good(betas)).tolist():
        raise ValueError(f"{where}: betas must be a vector with {rule}, got {betas[bad[0]]:g} at index {bad[0]}")
    return betas
