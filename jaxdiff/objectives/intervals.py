"""Intervals of levels t > m > s for flow maps: what one jump spans, and where between its two halves meet."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jaxdiff import losses
from jaxdiff.arguments import check, check_count
from jaxdiff.objectives.rng import keys_of
from jaxdiff.process import Level, Schedule


class Interval(NamedTuple):
    """Levels `[B, 1, ..., 1]`, s not noisier than m and m not noisier than t; for examples that learn the denoiser, s = t.

    Attributes:
        smallest: whether the halves are jumps that nothing teaches, `[B, 1, ..., 1]`.
        weight: of the loss, `[B]`.
    """

    t: Level
    m: Level
    s: Level
    smallest: Array
    weight: Array


Intervals = Callable[[Array, Array, Array, int], Interval]  # (step, key, index [B], ndim)
Share = Callable[[Array], ArrayLike]  # step -> which share of an interval the first half is


def whole(step: Array) -> ArrayLike:
    """1 at every step: m = s."""
    return 1.0


def annealed(total: int, sharpness: float = 25.0, least: float = 0.005) -> Share:
    """From 1, where all examples learn the denoiser, to `least`, near MeanFlow: `sigmoid(-sharpness (k / total - 1/2))` at step k.

    Zhang et al. (2025); where they change to the derivative of MeanFlow below `least`, this stays there.
    """
    check("annealed", "0 < least <= 1", lambda least: 0 < least <= 1, least=least)
    check_count("annealed", total=total)
    return lambda step: jnp.maximum(jax.nn.sigmoid(-sharpness * (step / total - 0.5)), least)


def logit_normal(mean: float = -0.4, std: float = 1.0) -> Callable[[Array], Array]:
    """From uniform numbers to times `sigmoid(mean + std z)`, z standard normal (Esser et al. 2024, section 3.1)."""
    check("logit_normal", "std > 0", lambda std: std > 0, std=std)
    return lambda u: jax.nn.sigmoid(mean + std * jax.scipy.special.ndtri(jnp.clip(u, 1e-6, 1 - 1e-6)))


def any_intervals(
    schedule: Schedule,
    *,
    equal: float = 0.75,
    share: Share = whole,
    times: Callable[[Array], Array] = lambda u: u,
) -> Intervals:
    """Intervals between two times that are drawn independently; with probability `equal` s = t.

    Geng et al. (2025), section 4.3. m lies at `share` of the way from t to s, in time, and the loss of jumps is divided by the
    share, with which its gradient would vanish (Zhang et al. 2025).
    """
    check("any_intervals", "0 <= equal <= 1", lambda equal: 0 <= equal <= 1, equal=equal)

    def intervals(step: Array, key: Array, index: Array, ndim: int) -> Interval:
        one, other = times(losses.spread_times(key, index)), times(_uniform(key, index, 1))
        t, still = jnp.maximum(one, other), _uniform(key, index, 2) < equal
        s = jnp.where(still, t, jnp.minimum(one, other))
        part = jnp.asarray(share(step), t.dtype)
        t, m, s = (schedule(time).expand(ndim) for time in (t, t - part * (t - s), s))
        return Interval(t, m, s, jnp.zeros((), bool), jnp.where(still, 1, 1 / part))

    return intervals


def dyadic_intervals(schedule: Schedule, *, finest: int = 128, equal: float = 0.75) -> Intervals:
    """Intervals of length `1 / n` in time, n = 1, 2, 4, ..., `finest`, that begin at multiples of it, for shortcut models.

    With probability `equal` s = t (Frans et al. 2024). The halves of the shortest are `smallest`.

    Raises:
        ValueError: `finest` is not a power of two.
    """
    check("dyadic_intervals", "0 <= equal <= 1", lambda equal: 0 <= equal <= 1, equal=equal)
    if finest < 1 or finest & (finest - 1):
        raise ValueError(f"dyadic_intervals: finest must be a power of two, got {finest}")
    kinds = finest.bit_length()

    def intervals(step: Array, key: Array, index: Array, ndim: int) -> Interval:
        u, still = losses.spread_times(key, index), _uniform(key, index, 2) < equal
        number = 2.0 ** jnp.minimum(jnp.floor(_uniform(key, index, 1) * kinds), kinds - 1)
        place = jnp.minimum(jnp.floor(u * number), number - 1)
        t, m, s = (jnp.where(still, u, (place + end) / number) for end in (1, 0.5, 0))
        smallest = jnp.expand_dims(number == finest, tuple(range(1, ndim)))
        t, m, s = (schedule(time).expand(ndim) for time in (t, m, s))
        return Interval(t, m, s, smallest, jnp.ones_like(u))

    return intervals


def _uniform(key: Array, index: Array, number: int) -> Array:
    """Independent uniform numbers `[B]` in float32, one an example."""
    draw = jax.vmap(lambda key: jax.random.uniform(key, dtype=jnp.float32))
    return draw(keys_of(jax.random.fold_in(key, number), index))
