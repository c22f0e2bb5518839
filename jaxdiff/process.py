"""The forward process `x = alpha * x0 + sigma * noise`: levels, schedules, and moving between levels.

Time exists only inside a schedule, a function from `t` in [0, 1] (0 is clean) to a `Level`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Level:
    """How much of x is data and how much is noise: `x = alpha * x0 + sigma * noise`.

    Shape `[]`, or `[B, 1, ..., 1]` so that it broadcasts against x, or `[N + 1]` for a list of levels. Indexable.
    """

    alpha: Array
    sigma: Array

    @property
    def logsnr(self) -> Array:
        """`log(alpha^2 / sigma^2)`: infinite where sigma = 0."""
        return 2 * (jnp.log(self.alpha) - jnp.log(self.sigma))

    def __getitem__(self, index) -> Level:
        return Level(self.alpha[index], self.sigma[index])

    def expand(self, ndim: int) -> Level:
        """The level `[B]` as `[B, 1, ..., 1]` of `ndim` axes, to broadcast against x of `ndim` axes."""
        axes = tuple(range(1, ndim))
        return Level(jnp.expand_dims(self.alpha, axes), jnp.expand_dims(self.sigma, axes))


Schedule = Callable[[ArrayLike], Level]

CLEAN = (1.0, 0.0)  # alpha, sigma of data without noise: where every list of levels ends


def from_logsnr(logsnr: Array) -> Level:
    """The variance-preserving level of that logsnr: `alpha^2 = sigmoid(logsnr)`, `sigma^2 = sigmoid(-logsnr)`."""
    return Level(jnp.sqrt(jax.nn.sigmoid(logsnr)), jnp.sqrt(jax.nn.sigmoid(-logsnr)))


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

    Song et al. (2021), eq. 33 of appendix C. Clipped at `logsnr_max`, where t = 0 would have no noise at all.
    """

    def level(t):
        t = jnp.asarray(t)
        return _variance_preserving(beta_min * t + (beta_max - beta_min) * t**2 / 2, logsnr_max)

    return level


def karras(sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0) -> Schedule:
    """`alpha = 1`, `sigma^(1 / rho)` linear in t from sigma_min to sigma_max (variance exploding).

    Karras et al. (2022), eq. 5, which counts time from the noisy end.
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


def from_betas(betas: ArrayLike, logsnr_max: float = 15.0) -> Schedule:
    """A published discrete chain in continuous time: `t = (i + 1) / T` is the state after `betas[i]`, `alpha^2 = prod(1 - beta)`.

    Ho et al. (2020), eq. 4. Between two states `log alpha` is linear in t; t = 0 is clipped at `logsnr_max`.

    Raises:
        ValueError: `betas` is no vector with values in [0, 1).
    """
    betas = np.asarray(betas, np.float64)
    if betas.ndim != 1 or not np.all((betas >= 0) & (betas < 1)):
        raise ValueError(f"from_betas: betas must be a vector with values in [0, 1), got shape {betas.shape}")
    exponents = np.append(0.0, -np.cumsum(np.log1p(-betas)))
    times = np.linspace(0, 1, betas.size + 1)

    def level(t):
        t = 1.0 * jnp.asarray(t)
        return _variance_preserving(jnp.interp(t, jnp.asarray(times, t.dtype), jnp.asarray(exponents, t.dtype)), logsnr_max)

    return level


def shifted(schedule: Schedule, factor: float, size: Callable[[Array, Array], Array] = jnp.hypot) -> Schedule:
    """The schedule with `sigma / alpha` multiplied by `factor`: more noise for larger images.

    Hoogeboom et al. (2023), section 3.1 (`factor` = resolution / 64); Esser et al. (2024), eq. 23 (factor = sqrt(m / n)).
    `size(alpha, sigma)` is what stays as it was: `jnp.hypot` for variance-preserving schedules, `jnp.add` for
    rectified flow.
    """

    def level(t):
        plain = schedule(t)
        sigma = factor * plain.sigma
        scale = size(plain.alpha, plain.sigma) / size(plain.alpha, sigma)
        return Level(scale * plain.alpha, scale * sigma)

    return level


def grid(schedule: Schedule, num_steps: int, t_min: float = 0.0) -> Level:
    """The levels `[num_steps + 1]` at uniform times from 1 down to t_min, noisiest first; clean, (1, 0), in place of t_min's.

    `levels[::2]` is the grid of half as many steps.

    Raises:
        ValueError: `num_steps` is below 1 or `t_min` outside [0, 1).
    """
    if num_steps < 1:
        raise ValueError(f"grid: num_steps must be at least 1, got {num_steps}")
    if not 0 <= t_min < 1:
        raise ValueError(f"grid: t_min must lie in [0, 1), got {t_min}")
    noisy = schedule(jnp.linspace(1.0, t_min, num_steps + 1)[:-1])
    clean = (jnp.full_like(noisy.alpha[:1], value) for value in CLEAN)
    return jax.tree.map(lambda *parts: jnp.concatenate(parts), noisy, Level(*clean))


def diffuse(x0: Array, noise: Array, level: Level) -> Array:
    """`alpha * x0 + sigma * noise`: a sample of q(x | x0) where the noise is standard normal (Ho et al. 2020, eq. 4)."""
    return level.alpha * x0 + level.sigma * noise


def transfer(x: Array, x0: Array, t: Level, s: Level) -> Array:
    """`r * x + (alpha_s - r * alpha_t) * x0`, `r = sigma_s / sigma_t`: keeps the implied noise, changes the level.

    DDIM (Song, Meng & Ermon 2021, eq. 12 with eta = 0). Never divides by alpha; returns x0 where sigma_s = 0. Fails where
    sigma_t = 0.
    """
    ratio = s.sigma / t.sigma
    return ratio * x + (s.alpha - ratio * t.alpha) * x0


def implied_x0(x: Array, x_s: Array, t: Level, s: Level) -> Array:
    """`(x_s - r * x) / (alpha_s - r * alpha_t)`, `r = sigma_s / sigma_t`: inverse of `transfer` in x0.

    Salimans & Ho (2022), algorithm 2 and appendix G. Fails where s = t.
    """
    ratio = s.sigma / t.sigma
    return (x_s - ratio * x) / (s.alpha - ratio * t.alpha)


def _variance_preserving(exponent: Array, logsnr_max: float) -> Level:
    """The level with `alpha^2 = exp(-exponent)`, `sigma^2 = 1 - alpha^2`, no cleaner than logsnr_max."""
    exponent = jnp.maximum(exponent, math.log1p(math.exp(-logsnr_max)))
    return Level(jnp.exp(-exponent / 2), jnp.sqrt(-jnp.expm1(-exponent)))
