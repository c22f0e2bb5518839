"""Distillation of a teacher: guided, and progressive."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxdiff import losses, targets
from jaxdiff.denoiser import Denoiser
from jaxdiff.losses import Distance, Weight
from jaxdiff.objectives.conditions import Condition
from jaxdiff.objectives.rng import batch_key, keys_of, spread_levels
from jaxdiff.objectives.types import Objective, Params
from jaxdiff.process import Level, Schedule

Student = Callable[[Params, Any, Array | None], Denoiser]  # (params, given, dropout key or None) -> denoiser
Teacher = Callable[[Any, Any], Denoiser]  # (frozen, given) -> denoiser, guided by what is given or by a scale of its own


def guided(
    student: Student,
    teacher: Teacher,
    schedule: Schedule,
    weight: Weight,
    *,
    condition: Condition,
    distance: Distance = losses.squared_error,
) -> Objective:
    """The loss of a student to a guided teacher, at uniform times of a schedule: one call in the place of two.

    Meng et al. (2023), algorithm 1. `condition` draws what both are given, among it the scale (`guidance_scales`), which is an
    input of the student's network; the teacher is `guide(with label, without, given scale)`.
    """

    def objective(params: Params, state: Any, batch: Mapping[str, Array], key: Array) -> Array:
        x0, index = batch["image"], batch["index"]
        time_key, noise_key, condition_key, dropout_key = jax.random.split(key, 4)
        given = condition(batch, condition_key)
        level = spread_levels(schedule, time_key, index, x0.ndim)
        learner = student(params, given, batch_key(dropout_key, index))
        noise_keys = keys_of(noise_key, index)
        return jnp.mean(losses.regression_loss(learner, teacher(state.frozen, given), x0, level, noise_keys, weight, distance))

    return objective


def progressive(
    student: Student,
    teacher: Teacher,
    levels: Level,
    weight: Weight,
    *,
    condition: Condition,
    halvings: Callable[[Array], Array] = jnp.zeros_like,
    every_level: bool = False,
    distance: Distance = losses.squared_error,
) -> Objective:
    """The loss of a student of n steps to two DDIM steps of its teacher, of 2 n steps on `levels[::2^halvings]`.

    Salimans & Ho (2022), algorithm 2. With `every_level` the student learns its long step from each of the teacher's levels
    and not from every second alone, as `samplers.overshoot` wants (Meng et al. 2023, section 3.2: their stochastic sampler).

    Args:
        student: of `params`.
        teacher: of `state.frozen`: the student of the round before.
        levels: `[N + 1]` of the first teacher, N a power of two, noisiest first, the last is clean.
        weight: such as `losses.truncated_snr`.
        condition: what both are given of a batch.
        halvings: step -> how many rounds are over.
        every_level: see above.
        distance: between the two x0.

    Raises:
        ValueError: N is no power of two above 1.
    """
    size = levels.sigma.size - 1
    if size < 2 or size & (size - 1):
        raise ValueError(f"progressive: the number of levels must be one more than a power of two above 1, got {size} steps")

    def objective(params: Params, state: Any, batch: Mapping[str, Array], key: Array) -> Array:
        x0, index = batch["image"], batch["index"]
        time_key, noise_key, condition_key, dropout_key = jax.random.split(key, 4)
        given = condition(batch, condition_key)
        stride = 2 ** jnp.asarray(halvings(state.step), jnp.int32)
        number = size // stride if every_level else size // (2 * stride)
        chosen = jnp.minimum((losses.spread_times(time_key, index) * number.astype(jnp.float32)).astype(jnp.int32), number - 1)
        first = chosen * stride if every_level else 2 * chosen * stride
        t, m, s = (levels[jnp.minimum(first + steps * stride, size)].expand(x0.ndim) for steps in range(3))
        target = targets.two_steps(teacher(state.frozen, given), m, s)
        learner = student(params, given, batch_key(dropout_key, index))
        return jnp.mean(losses.regression_loss(learner, target, x0, t, keys_of(noise_key, index), weight, distance))

    return objective
