"""Guided distillation: a student that replaces a teacher and its guidance."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jax import Array

from jaxdiff import losses
from jaxdiff.losses import Distance, Weight
from jaxdiff.objectives.conditions import Condition
from jaxdiff.objectives.draws import draw
from jaxdiff.objectives.types import Objective, Params, Student, Teacher
from jaxdiff.process import Schedule


def guided(
    student: Student,
    teacher: Teacher,
    schedule: Schedule,
    weight: Weight,
    *,
    condition: Condition,
    distance: Distance = losses.squared_error,
) -> Objective:
    """The loss of a student to a guided teacher at uniform times of a schedule: one network call instead of two.

    Meng et al. (2023), algorithm 1. `condition` draws what both are given, including the scale (`guidance_scales`), which is an
    input of the student's network; the teacher is `guide(with label, without, given scale)`.
    """

    def objective(params: Params, state: Any, batch: Mapping[str, Array], key: Array) -> Array:
        drawn = draw(batch, key, condition)
        learner = student(params, drawn.given, drawn.dropout_key)
        target, level = teacher(state.frozen, drawn.given), drawn.levels(schedule)
        return jnp.mean(losses.regression_loss(learner, target, drawn.x0, level, drawn.noise_keys, weight, distance))

    return objective
