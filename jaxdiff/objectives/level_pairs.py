"""Pairs of levels t > s of consistency training: from which list of levels, how fine at which step, and how often each.

A `Pairs` is `(step, key, index) -> (t, s)`, for each example of the batch a level and the less noisy level of its target.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jaxdiff import losses
from jaxdiff.arguments import check, check_count
from jaxdiff.process import Level, Schedule

CLOSEST = 12  # halvings of the distance between two levels, beyond which float32 does not resolve it

Pairs = Callable[[Array, Array, Array, int], tuple[Level, Level]]  # (step, key, index [B], ndim) -> t, s of [B, 1, ..., 1]
Curriculum = Callable[[Array], ArrayLike]  # step -> number of steps of the list of levels
Measure = Callable[[Level], Array]  # a cumulative distribution function over levels, which falls from noisy to clean


def constant(num: int) -> Curriculum:
    """The same number of steps always."""
    check_count("constant", num=num)
    return lambda step: num


def square_root(first: int, last: int, total: int) -> Curriculum:
    """`ceil(sqrt(k / total ((last + 1)^2 - first^2) + first^2) - 1)` steps at step k: from about first to last.

    Song et al. (2023), appendix C: their schedule N minus 1, as they count levels; without their growing EMA for the target.
    """
    check_count("square_root", first=first, last=last, total=total)

    def num(step: Array) -> Array:
        share = jnp.minimum(step / total, 1.0)
        return jnp.clip(jnp.ceil(jnp.sqrt(share * ((last + 1) ** 2 - first**2) + first**2) - 1), 1, last)

    return num


def doubling(first: int, last: int, total: int) -> Curriculum:
    """`min(first 2^floor(k / total'), last)` steps at step k, doubled in equal intervals until `last` is reached at the end.

    Song & Dhariwal (2023), eq. 9. `last` is `first` times a power of two, so that every list is a subset of the finest.

    Raises:
        ValueError: it is not.
    """
    times = (last // max(first, 1)).bit_length() - 1
    if not 1 <= first <= last or first * 2**times != last:
        raise ValueError(f"doubling: last must be first ({first}) times a power of two, got {last}")
    length = max(total // (times + 1), 1)
    return lambda step: first * 2 ** jnp.minimum(step // length, times)


def lognormal_measure(mean: float = -1.1, std: float = 2.0) -> Measure:
    """The normal distribution function of `log(sigma / alpha)`: a pair is drawn with the probability between its levels.

    Song & Dhariwal (2023), eq. 10 and table 1.
    """
    check("lognormal_measure", "std > 0", lambda std: std > 0, std=std)
    return lambda level: jax.scipy.stats.norm.cdf((-level.logsnr / 2 - mean) / std)


def steps_of(levels: Level, curriculum: Curriculum | None = None, *, skip: int = 1, measure: Measure | None = None) -> Pairs:
    """Pairs from a list of levels `[N + 1]`, coarsened to the curriculum's number of steps, with s `skip` steps after t.

    The list is the finest one; a coarser one takes the levels nearest to equal index spacing, exactly `levels[::k]` where its
    number of steps divides N. t is any level but the last, uniformly or by a measure; s is clean where fewer than `skip` steps
    are left.

    Args:
        levels: noisiest first, the last is clean.
        curriculum: step -> number of steps, at most N; N by default.
        skip: number of steps from t to s (Luo et al. 2023, section 4.3).
        measure: see `lognormal_measure`; uniform by default.

    Raises:
        ValueError: skip is below 1.
    """
    if skip < 1:
        raise ValueError(f"steps_of: skip must be at least 1, got {skip}")
    size = levels.sigma.size - 1
    number = curriculum or constant(size)

    def pairs(step: Array, key: Array, index: Array, ndim: int) -> tuple[Level, Level]:
        num = jnp.asarray(number(step), jnp.int32)

        def place(steps: Array) -> Array:
            steps = jnp.minimum(steps, num).astype(jnp.float32)  # exact up to 2^24
            return jnp.floor(steps * size / num.astype(jnp.float32) + 0.5).astype(jnp.int32)

        u = losses.spread_times(key, index)
        if measure is None:
            chosen = jnp.minimum((u * num.astype(u.dtype)).astype(jnp.int32), num - 1)
        else:
            ends = measure(_noisy(levels[place(jnp.arange(size + 1))]))  # equal after the last, which has no weight
            total = ends[0] - ends[-1]
            chosen = jnp.minimum(jnp.searchsorted((ends[0] - ends[1:]) / total, u, side="right"), num - 1)
        return levels[place(chosen)].expand(ndim), levels[place(chosen + skip)].expand(ndim)

    return pairs


def shrinking(
    schedule: Schedule,
    every: int,
    *,
    factor: float = 2.0,
    k: float = 8.0,
    b: float = 1.0,
    size: Callable[[Array, Array], Array] = jnp.hypot,
) -> Pairs:
    """Pairs of any level t of a schedule and s with `sigma_s = sigma_t (1 - n(sigma_t) / factor^a)`, a = 1 + floor(step / every).

    Here a is at most 12, sigma stands for `sigma / alpha`, `n(sigma) = 1 + k sigmoid(-b sigma)`; s is clean where that is not
    above 0, so that training begins nearly as diffusion training. Easy consistency tuning, in continuous time (Geng et al. 2024,
    section 3.2). `size(alpha, sigma)` is kept from t to s, as in `process.shifted`.
    """

    def pairs(step: Array, key: Array, index: Array, ndim: int) -> tuple[Level, Level]:
        t = schedule(losses.spread_times(key, index))
        ratio = t.sigma / t.alpha
        a = jnp.minimum(1 + jnp.asarray(step // every), CLOSEST).astype(ratio.dtype)
        closer = ratio * jnp.maximum(1 - (1 + k * jax.nn.sigmoid(-b * ratio)) / factor**a, 0)
        scale = size(t.alpha, t.sigma) / size(jnp.ones_like(closer), closer)
        return t.expand(ndim), Level(scale, scale * closer).expand(ndim)

    return pairs


def _noisy(levels: Level) -> Level:
    """The levels with `sigma / alpha` at least 1e-6, so that logsnr is finite."""
    return Level(levels.alpha, jnp.maximum(levels.sigma, 1e-6 * levels.alpha))
