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
    betas = _checked(betas, "from_betas", "values in [0, 1)", lambda b: (b >= 0) & (b < 1))
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


def respaced(schedule: Schedule, measure: Callable[[Level], Array]) -> Schedule:
    """The same levels walked at another pace: `measure(level)`, which must be monotonic, is linear in t.

    >>> respaced(karras(), lambda level: level.sigma)(0.5).sigma.round(2).item()
    40.0
    """

    def level(t):
        t = 1.0 * jnp.asarray(t)
        first, last = (measure(schedule(jnp.full_like(t, end))) for end in (0, 1))
        wanted = first + t * (last - first)

        def halved(_, bounds):
            low, high = bounds
            middle = (low + high) / 2
            short = (measure(schedule(middle)) - wanted) * (last - first) < 0
            return jnp.where(short, middle, low), jnp.where(short, high, middle)

        bounds = (jnp.zeros_like(t), jnp.ones_like(t))
        found = jax.lax.stop_gradient(jax.lax.fori_loop(0, 64, halved, bounds)[1])
        value, slope = jax.jvp(lambda t: measure(schedule(t)), (found,), (jnp.ones_like(t),))
        slope = jax.lax.stop_gradient(jnp.where(slope == 0, jnp.inf, slope))
        newton = (wanted - value) / slope  # 0 as a number, and the gradient that the bisection has not
        return schedule(found + newton - jax.lax.stop_gradient(newton))

    return level


def uniform_logsnr(schedule: Schedule) -> Schedule:
    """The schedule with logsnr linear in t (Lu et al. 2022, section 3.3): the pace that solvers of high order want."""
    return respaced(schedule, lambda level: level.logsnr)


def karras_spaced(schedule: Schedule, rho: float = 7.0) -> Schedule:
    """The schedule with `(sigma / alpha)^(1 / rho)` linear in t: the pace of Karras et al. (2022), eq. 5, on any levels."""
    return respaced(schedule, lambda level: (level.sigma / level.alpha) ** (1 / rho))


def quadratic(schedule: Schedule) -> Schedule:
    """The schedule at `t^2`: short steps near the data (Song, Meng & Ermon 2021, appendix D.3)."""
    return lambda t: schedule(jnp.asarray(t) ** 2)


def grid(schedule: Schedule, num_steps: int, t_min: float | None = None) -> Level:
    """The levels `[num_steps + 1]` at uniform times from 1 down to t_min, then clean, (1, 0): noisiest first.

    t_min is 1 / num_steps unless given: all steps are equally long, and `levels[::2]` is the grid of half as many.
    `grid(karras(), num_steps, t_min=0)` is the list of Karras et al. (2022), eq. 5. Other paces: `uniform_logsnr`,
    `karras_spaced`, `quadratic`.

    Raises:
        ValueError: `num_steps` is below 1 or `t_min` outside [0, 1).
    """
    if num_steps < 1:
        raise ValueError(f"grid: num_steps must be at least 1, got {num_steps}")
    if t_min is not None and not 0 <= t_min < 1:
        raise ValueError(f"grid: t_min must lie in [0, 1), got {t_min}")
    return _to_clean(schedule(jnp.linspace(1.0, 1 / num_steps if t_min is None else t_min, num_steps)))


TIMESTEPS = {
    "leading": lambda total, steps: np.arange(1, total + 1, total // steps)[:steps][::-1],
    "linspace": lambda total, steps: np.linspace(1, total, steps).round()[::-1],
    "trailing": lambda total, steps: np.arange(total, 0, -total / steps).round()[:steps],
}


def from_timesteps(betas: ArrayLike, num_steps: int, spacing: str = "trailing") -> Level:
    """The levels `[num_steps + 1]` of a published discrete chain at some of its time steps, then clean.

    Lin et al. (2023), table 2: spacing is "leading" (misses the noisiest), "linspace" or "trailing". Betas may end in 1
    (`zero_terminal_snr`), where alpha = 0: a network that predicts noise has no x0 there.

    Raises:
        ValueError: `betas` is no vector with values in (0, 1], or there is no such spacing or number of steps.
    """
    betas = _checked(betas, "from_timesteps", "values in (0, 1]", lambda b: (b > 0) & (b <= 1))
    if spacing not in TIMESTEPS:
        raise ValueError(f"from_timesteps: no spacing {spacing!r}; write one of {', '.join(TIMESTEPS)}")
    if not 1 <= num_steps <= betas.size:
        raise ValueError(f"from_timesteps: num_steps must lie in 1..{betas.size}, got {num_steps}")
    alpha2 = np.cumprod(1 - betas)[TIMESTEPS[spacing](betas.size, num_steps).astype(int) - 1]
    return _to_clean(Level(jnp.asarray(np.sqrt(alpha2)), jnp.asarray(np.sqrt(1 - alpha2))))


def zero_terminal_snr(betas: ArrayLike) -> np.ndarray:
    """The betas of a chain that ends in pure noise, alpha = 0 (Lin et al. 2023, algorithm 1).

    Raises:
        ValueError: `betas` is no vector with at least two values in (0, 1).
    """
    betas = _checked(betas, "zero_terminal_snr", "at least two values in (0, 1)", lambda b: (b > 0) & (b < 1) & (b.size > 1))
    alpha = np.sqrt(np.cumprod(1 - betas))
    alpha2 = ((alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1])) ** 2
    return 1 - alpha2 / np.append(1.0, alpha2[:-1])


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


def _checked(betas: ArrayLike, where: str, rule: str, good: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    betas = np.asarray(betas, np.float64)
    if betas.ndim != 1 or not betas.size or not np.all(good(betas)):
        raise ValueError(f"{where}: betas must be a vector with {rule}, got shape {betas.shape}")
    return betas


def _to_clean(noisy: Level) -> Level:
    """The list of levels with clean, (1, 0), after its end."""
    clean = (jnp.full_like(noisy.alpha[:1], value) for value in CLEAN)
    return jax.tree.map(lambda *parts: jnp.concatenate(parts), noisy, Level(*clean))
