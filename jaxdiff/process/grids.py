"""Spacings of a schedule, and lists of levels for samplers."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from jaxdiff.arguments import check, check_count
from jaxdiff.compilation import compiled_once
from jaxdiff.process.levels import CLEAN, Level, Schedule
from jaxdiff.process.schedules import checked_betas, from_betas, unit


def respaced(schedule: Schedule, measure: Callable[[Level], Array]) -> Schedule:
    """The schedule with another spacing: `measure(level)`, which must be monotonic, is linear in t.

    >>> from jaxdiff import karras
    >>> respaced(karras(), lambda level: level.sigma)(0.5).sigma.round(2).item()
    40.0
    """

    def level(t):
        t = 1.0 * unit(t)
        first, last = (measure(schedule(jnp.full_like(t, end))) for end in (0, 1))
        return schedule(time_of(schedule, measure, first + t * (last - first)))

    return level


def time_of(schedule: Schedule, measure: Callable[[Level], Array], wanted: Array) -> Array:
    """The time of the schedule where `measure(level)`, which must be monotonic, is `wanted`: of its shape, with a gradient.

    Where the schedule is constant, the first such time; 0 or 1 where `wanted` is out of range.
    """
    rises = measure(schedule(jnp.ones_like(wanted))) > measure(schedule(jnp.zeros_like(wanted)))

    def halved(_, bounds):
        low, high = bounds
        middle = (low + high) / 2
        value = measure(schedule(middle))
        short = jnp.where(rises, value < wanted, value > wanted)
        return jnp.where(short, middle, low), jnp.where(short, high, middle)

    bounds = (jnp.zeros_like(wanted), jnp.ones_like(wanted))
    t = jax.lax.stop_gradient(compiled_once(jax.lax.fori_loop)(0, 64, halved, bounds)[1])
    value, slope = jax.jvp(lambda t: measure(schedule(t)), (t,), (jnp.ones_like(wanted),))
    slope = jax.lax.stop_gradient(jnp.where(slope == 0, jnp.inf, slope))
    newton = (wanted - value) / slope  # adds 0 to the value, and the gradient that bisection lacks
    return t + newton - jax.lax.stop_gradient(newton)


def level_and_rate(schedule: Schedule, t: Array) -> tuple[Level, Array]:
    """The level at t, and the rate `-d logsnr / dt` there."""
    (level, _), (_, slope) = jax.jvp(lambda t: ((level := schedule(t)), level.logsnr), (t,), (jnp.ones_like(t),))
    return level, -slope


def uniform_logsnr(schedule: Schedule) -> Schedule:
    """The schedule with logsnr linear in t (Lu et al. 2022, section 3.3): the best spacing for solvers of high order."""
    return respaced(schedule, lambda level: level.logsnr)


def karras_spaced(schedule: Schedule, rho: float = 7.0) -> Schedule:
    """The schedule with `(sigma / alpha)^(1 / rho)` linear in t: the spacing of Karras et al. (2022), eq. 5, of any schedule."""
    check("karras_spaced", "rho > 0", lambda rho: rho > 0, rho=rho)
    return respaced(schedule, lambda level: (level.sigma / level.alpha) ** (1 / rho))


def quadratic(schedule: Schedule) -> Schedule:
    """The schedule at `t^2`: short steps near the data (Song, Meng & Ermon 2021, appendix D.3)."""
    return lambda t: schedule(unit(t) ** 2)


def grid(schedule: Schedule, num_steps: int, t_min: float | None = None) -> Level:
    """The levels `[num_steps + 1]` at uniform times from 1 down to t_min, then clean, (1, 0): noisiest first.

    By default t_min is 1 / num_steps: all steps are equally long, and `levels[::2]` is the grid of half as many steps.
    `grid(karras(), num_steps, t_min=0)` is the list of Karras et al. (2022), eq. 5. Other spacings:
    `uniform_logsnr`, `karras_spaced`, `quadratic`.

    Raises:
        ValueError: `num_steps` is not a whole number of at least 1, or `t_min` is outside [0, 1).
    """
    check_count("grid", num_steps=num_steps)
    check("grid", "0 <= t_min < 1", lambda t_min: 0 <= t_min < 1, t_min=t_min)
    return _to_clean(schedule(jnp.linspace(1.0, 1 / num_steps if t_min is None else t_min, num_steps)))


LCM_STEPS = 50  # along which latent consistency models were distilled
TIMESTEPS = {
    "leading": lambda total, steps: np.arange(1, total + 1, total // steps)[:steps][::-1],
    "linspace": lambda total, steps: np.linspace(1, total, steps).round()[::-1],
    "trailing": lambda total, steps: np.arange(total, 0, -total / steps).round()[:steps],
    "lcm": lambda total, steps: total // LCM_STEPS * (LCM_STEPS - np.floor(np.arange(steps) * (LCM_STEPS / steps))),
}


def from_timesteps(betas: ArrayLike, num_steps: int, spacing: str = "trailing", offset: int = 0) -> Level:
    """The levels `[num_steps + 1]` of a published discrete chain at some of its time steps, then clean.

    Lin et al. (2023), table 2: spacing is "leading" (misses the noisiest), "linspace" or "trailing"; or "lcm", some of the 50 steps
    along which latent consistency models were distilled (Luo et al. 2023, published code). `offset` is added to the time steps,
    but not beyond the last: 1 in the published Stable Diffusion, whose spacing is leading. Betas may end in 1
    (`zero_terminal_snr`), where alpha = 0: a network that predicts noise has no x0 there.

    Raises:
        ValueError: `betas` is not a vector of values in (0, 1], or spacing or num_steps is invalid.
    """
    betas = checked_betas(betas, "from_timesteps", "values in (0, 1]", lambda b: (b > 0) & (b <= 1))
    if spacing not in TIMESTEPS:
        raise ValueError(f"from_timesteps: no spacing {spacing!r}; write one of {', '.join(TIMESTEPS)}")
    check_count("from_timesteps", num_steps=num_steps)
    if num_steps > (most := min(betas.size, LCM_STEPS) if spacing == "lcm" else betas.size):
        raise ValueError(f"from_timesteps: num_steps must lie in 1..{most}, got {num_steps}")
    check("from_timesteps", "offset >= 0", lambda offset: offset >= 0, offset=offset)
    steps = np.minimum(TIMESTEPS[spacing](betas.size, num_steps).astype(int) + offset, betas.size)
    alpha2 = np.cumprod(1 - betas)[steps - 1]
    return _to_clean(Level(jnp.asarray(np.sqrt(alpha2)), jnp.asarray(np.sqrt(1 - alpha2))))


def zero_terminal_snr(betas: ArrayLike) -> np.ndarray:
    """The betas of a chain that ends in pure noise, alpha = 0 (Lin et al. 2023, algorithm 1).

    Raises:
        ValueError: `betas` is not a vector of at least two values in (0, 1), of which the last may be 1 already.
    """
    last = np.arange(np.size(betas)) == np.size(betas) - 1
    rule = "at least two values in (0, 1), of which the last may be 1"
    betas = checked_betas(betas, "zero_terminal_snr", rule, lambda b: (b > 0) & (b < 1 + last * (b == 1)) & (b.size > 1))
    alpha = np.sqrt(np.cumprod(1 - betas))
    alpha2 = ((alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1])) ** 2
    return 1 - alpha2 / np.append(1.0, alpha2[:-1])


def linear_zero_snr(beta_min: float = 0.0001, beta_max: float = 0.02, num_steps: int = 1000) -> Schedule:
    """DDPM's linear betas, rescaled to end in pure noise, in continuous time: `from_betas(zero_terminal_snr(betas))`.

    Lin et al. (2023), section 3.1. Its last level says nothing about x0, so its networks predict v or x0, not the noise.
    """
    check("linear_zero_snr", "0 < beta_min <= beta_max < 1", lambda a, b: 0 < a <= b < 1, beta_min=beta_min, beta_max=beta_max)
    return from_betas(zero_terminal_snr(np.linspace(beta_min, beta_max, num_steps)))


def _to_clean(noisy: Level) -> Level:
    """The levels followed by the clean one, (1, 0)."""
    clean = (jnp.full_like(noisy.alpha[:1], value) for value in CLEAN)
    return jax.tree.map(lambda *parts: jnp.concatenate(parts), noisy, Level(*clean))
