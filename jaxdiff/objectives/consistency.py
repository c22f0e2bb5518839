"""Consistency: distilled from a teacher, or trained on data alone, at pairs of levels or in continuous time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jaxdiff import losses, targets
from jaxdiff.denoiser import Denoiser
from jaxdiff.losses import Distance, Weight
from jaxdiff.objectives.conditions import Condition
from jaxdiff.objectives.draws import Draws, draw
from jaxdiff.objectives.level_pairs import Pairs
from jaxdiff.objectives.types import Objective, Params, Student, Teacher
from jaxdiff.process import Level, Schedule
from jaxdiff.targets import Solver

PairWeight = Callable[[Level, Level], Array]  # (t, s) -> weight


def inverse_gap(t: Level, s: Level) -> Array:
    """`1 / (sigma_t / alpha_t - sigma_s / alpha_s)` (Song & Dhariwal 2023, section 3.4)."""
    return 1 / (t.sigma / t.alpha - s.sigma / s.alpha)


def of_noisier(weight: Weight) -> PairWeight:
    """The weight of the noisier level."""
    return lambda t, s: weight(t)


def consistency(
    student: Student,
    teacher: Teacher | None,
    pairs: Pairs,
    weight: PairWeight,
    *,
    condition: Condition,
    target_ema: str | None = None,
    solver: Solver = targets.euler,
    distance: Distance = losses.squared_error,
) -> Objective:
    """The loss of a student at t to itself at the less noisy level s, where the teacher's solver step from t ends.

    Consistency distillation (Song et al. 2023, algorithm 2), or without a teacher consistency training (algorithm 3), which
    goes from t to s with the example's own x0 and noise. The student's parameterization must give `x / alpha` at sigma = 0, as v,
    edm and `denoiser.bounded` do.

    Args:
        student: a denoiser of `params`, and of the params that compute targets.
        teacher: a denoiser of `state.frozen`, or None.
        pairs: of levels t and s, see `level_pairs`.
        weight: of t and s, such as `inverse_gap`.
        condition: what student and teacher are given of a batch.
        target_ema: name of the EMA in the state that computes targets; None: the params themselves, without gradient (Song &
            Dhariwal 2023, section 3.2).
        solver: the teacher's, `targets.euler` (DDIM) or one of higher order.
        distance: such as `losses.pseudo_huber()`.
    """

    def objective(params: Params, state: Any, batch: Mapping[str, Array], key: Array) -> Array:
        drawn = draw(batch, key, condition)
        t, s = pairs(state.step, drawn.time_key, drawn.indices, drawn.x0.ndim)
        averaged = params if target_ema is None else state.ema[target_ema]
        network = student(jax.lax.stop_gradient(averaged), drawn.given, drawn.dropout_key)  # with the same dropout mask
        target = targets.ahead(network, _source(teacher, state, drawn), s, solver)
        learner = student(params, drawn.given, drawn.dropout_key)
        return jnp.mean(losses.regression_loss(learner, target, drawn.x0, t, drawn.noise_keys, lambda t: weight(t, s), distance))

    return objective


def continuous_consistency(
    student: Student,
    teacher: Teacher | None,
    schedule: Schedule,
    weight: Weight = losses.v_weight,
    *,
    condition: Condition,
    warmup_steps: int = 0,
    floor: float = 0.1,
    distance: Distance = losses.squared_error,
) -> Objective:
    """The loss of a student to itself along the flow in the limit of infinitesimal steps: sCM.

    Lu & Song (2024), algorithm 1, without the learned weight of levels: at uniform times of a variance-preserving schedule,
    to `targets.tangent` of the teacher, or without a teacher, of the example's own x0 and noise. With the weight of v it is
    their loss for a network that predicts v. The unstable part of the slope is phased in over `warmup_steps`.
    """

    def objective(params: Params, state: Any, batch: Mapping[str, Array], key: Array) -> Array:
        drawn = draw(batch, key, condition)
        share: ArrayLike = jnp.minimum(state.step.astype(drawn.x0.dtype) / warmup_steps, 1) if warmup_steps else 1.0
        network = student(jax.lax.stop_gradient(params), drawn.given, drawn.dropout_key)
        target = targets.tangent(network, _source(teacher, state, drawn), warmup=share, floor=floor)
        learner = student(params, drawn.given, drawn.dropout_key)
        level = drawn.levels(schedule)
        return jnp.mean(losses.regression_loss(learner, target, drawn.x0, level, drawn.noise_keys, weight, distance))

    return objective


def _source(teacher: Teacher | None, state: Any, drawn: Draws) -> Denoiser:
    """The denoiser whose probability flow is followed: the teacher, or the data."""
    return targets.data(drawn.x0) if teacher is None else teacher(state.frozen, drawn.given)
