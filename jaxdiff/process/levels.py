"""Levels of noise, `x = alpha * x0 + sigma * noise`, and moving between them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Level:
    """The amounts of data and noise in x: `x = alpha * x0 + sigma * noise`.

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
Std = Callable[[Level, Level], Array]  # of the fresh noise in a step from t to s

CLEAN = (1.0, 0.0)  # alpha, sigma of data without noise, the end of every list of levels


def from_logsnr(logsnr: Array) -> Level:
    """The variance-preserving level with that logsnr: `alpha^2 = sigmoid(logsnr)`, `sigma^2 = sigmoid(-logsnr)`."""
    return Level(jnp.sqrt(jax.nn.sigmoid(logsnr)), jnp.sqrt(jax.nn.sigmoid(-logsnr)))


def diffuse(x0: Array, noise: Array, level: Level) -> Array:
    """`alpha * x0 + sigma * noise`: a sample of q(x | x0) where the noise is standard normal (Ho et al. 2020, eq. 4)."""
    return level.alpha * x0 + level.sigma * noise


def transfer(x: Array, x0: Array, t: Level, s: Level) -> Array:
    """`r * x + (alpha_s - r * alpha_t) * x0`, `r = sigma_s / sigma_t`: keeps the implied noise and changes the level.

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


def posterior_std(t: Level, s: Level) -> Array:
    """Std of q(x_s given x_t, x0): `sigma_s * sqrt(1 - snr_t / snr_s)`, DDPM's small variance (Ho et al. 2020, eq. 7)."""
    return s.sigma * fresh_share(t, s)


def forward_std(t: Level, s: Level) -> Array:
    """Std of q(x_t given x_s): `sigma_t * sqrt(1 - snr_t / snr_s)`, DDPM's large variance, sqrt(beta)."""
    return t.sigma * fresh_share(t, s)


def fresh_share(t: Level, s: Level) -> Array:
    """`sqrt(1 - snr_t / snr_s)`, between 0 (s = t) and 1 (s is clean)."""
    ratio = t.alpha * s.sigma / (t.sigma * s.alpha)
    share2 = (1 - ratio) * (1 + ratio)
    return safe_sqrt(share2)


def safe_sqrt(square: Array) -> Array:
    """The square root, 0 where `square <= 0`, with a gradient that is finite there too."""
    positive = square > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, square, 1)), 0)
