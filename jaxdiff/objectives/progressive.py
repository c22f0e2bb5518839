"""Progressive distillation: in each round, a student of half as many steps as its teacher."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
from jax import Array

from jaxdiff import losses, targets
from jaxdiff.losses import Distance, Weight
from jaxdiff.objectives.conditions import Condition
from jaxdiff.objectives.draws import draw
from jaxdiff.objectives.types import Objective, Params, Student, Teacher
from jaxdiff.process import Level


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

    Salimans & Ho (2022), algorithm 2. With `every_level` the student learns its long step from each of the teacher's levels,
    not only from every second one, as `samplers.overshoot` needs (Meng et al. 2023, section 3.2: their stochastic sampler).

    Args:
        student: a denoiser of `params`.
        teacher: a denoiser of `state.frozen`, the student of the round before.
        levels: `[N + 1]` of the first teacher, N a power of two, noisiest first, the last is clean.
        weight: such as `losses.truncated_snr`.
        condition: what student and teacher are given of a batch.
        halvings: step -> the number of completed rounds.
        every_level: see above.
        distance: between student and target.

    Raises:
        ValueError: N is not a power of two above 1.
    """
    size = levels.sigma.size - 1
    if size < 2 or size & (size - 1):
        raise ValueError(f"progressive: the number of steps must be a power of two above 1, got {size}")

    def objective(params: Params, state: Any, batch: Mapping[str, Array], key: Array) -> Array:
        drawn = draw(batch, key, condition)
        stride = 2 ** jnp.asarray(halvings(state.step), jnp.int32)
        number = size // stride if every_level else size // (2 * stride)
        number_of_step = jnp.minimum((drawn.times() * number.astype(jnp.float32)).astype(jnp.int32), number - 1)
        first = number_of_step * stride if every_level else 2 * number_of_step * stride
        t, m, s = (levels[jnp.minimum(first + steps * stride, size)].expand(drawn.x0.ndim) for steps in range(3))
        target = targets.two_steps(teacher(state.frozen, drawn.given), m, s)
        learner = student(params, drawn.given, drawn.dropout_key)
        return jnp.mean(losses.regression_loss(learner, target, drawn.x0, t, drawn.noise_keys, weight, distance))

    return objective
