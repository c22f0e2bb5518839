"""Flow maps: networks that jump from any level to any other, trained on data alone or from a teacher.

Shortcut models, MeanFlow, alpha-Flow and improved MeanFlow differ in their target; consistency models are their case s = 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxdiff import losses, targets
from jaxdiff.denoiser import AverageDenoiser, Denoiser, Parameterization, average_denoiser, instantaneous, towards
from jaxdiff.guidance import guide
from jaxdiff.losses import Distance, Weight
from jaxdiff.objectives.conditions import Condition
from jaxdiff.objectives.draws import draw
from jaxdiff.objectives.intervals import Interval, Intervals
from jaxdiff.objectives.types import ConditionalNetwork, Given, Objective, Params
from jaxdiff.process import Level

FlowStudent = Callable[[Params, Given, Array | None], AverageDenoiser]  # (params, given, dropout key or None)
FlowTeacher = Callable[[Params, Any, Given, Array], Denoiser]  # (params, frozen, given, x0) -> the flow that is learned
FlowMethod = Callable[[AverageDenoiser, Denoiser, Interval], Denoiser]  # (network, teacher, interval) -> target


def shortcut(network: AverageDenoiser, teacher: Denoiser, interval: Interval) -> Denoiser:
    """Two of the network's own jumps of half the length, or of no length where these are `smallest` (Frans et al. 2024)."""

    def jump(x: Array, t: Level, s: Level) -> Array:
        alpha, sigma = (jnp.where(interval.smallest, a, b) for a, b in ((t.alpha, s.alpha), (t.sigma, s.sigma)))
        return network(x, t, Level(alpha, sigma))

    return targets.two_jumps(jump, jump, interval.m, interval.s)


def alpha_flow(network: AverageDenoiser, teacher: Denoiser, interval: Interval) -> Denoiser:
    """A step of the teacher, of data say, and the network's jump from there on (Zhang et al. 2025)."""
    return targets.two_jumps(lambda x, t, s: teacher(x, t), network, interval.m, interval.s)


def mean_flow(size: Callable[[Array, Array], Array] = jnp.hypot) -> FlowMethod:
    """`targets.mean_flow` on levels of this `size`, along the teacher's flow (Geng et al. 2025a)."""
    return lambda network, teacher, interval: targets.mean_flow(network, teacher, interval.s, size=size)


def improved_mean_flow(size: Callable[[Array, Array], Array] = jnp.hypot) -> FlowMethod:
    """The same with the derivative along the network's own flow: the gradient of improved MeanFlow's loss (Geng et al. 2025b)."""

    def method(network: AverageDenoiser, teacher: Denoiser, interval: Interval) -> Denoiser:
        return targets.mean_flow(network, teacher, interval.s, along=instantaneous(network), size=size)

    return method


def of_data(params: Params, frozen: Any, given: Given, x0: Array) -> Denoiser:
    """The flow of the data: each example is its own teacher."""
    return targets.data(x0)


def guided_data(student: FlowStudent, unlabelled: Callable[[Given], tuple[Given, Array]], mix: float = 0.0) -> FlowTeacher:
    """`w x0 + k D(x given label) + (1 - w - k) D(x)`: classifier-free guidance inside training, D the network's own denoiser.

    Geng et al. (2025a), section 4.2, k = `mix`, their kappa. The network learns the guided flow, so a sample needs no second call.

    Args:
        student: of params, without gradient.
        unlabelled: from what is given to what is given without label, and the scale w, `[]` or `[B, 1, ..., 1]`; where an example's
            label was dropped it is 1 - mix.
        mix: k, between 0 and 1.
    """

    def teacher(params: Params, frozen: Any, given: Given, x0: Array) -> Denoiser:
        null, scale = unlabelled(given)
        plain, labelled = (instantaneous(student(params, each, None)) for each in (null, given))
        if not mix:
            return guide(targets.data(x0), plain, scale)
        return lambda x, t: scale * x0 + mix * labelled(x, t) + (1 - scale - mix) * plain(x, t)

    return teacher


def flow_map(
    student: FlowStudent,
    method: FlowMethod,
    intervals: Intervals,
    weight: Weight,
    *,
    condition: Condition,
    teacher: FlowTeacher = of_data,
    target_ema: str | None = None,
    distance: Distance = losses.squared_error,
) -> Objective:
    """The loss of jumps from t to s to the method's target, and where s = t to the teacher's x0, as in diffusion training.

    Args:
        student: an average denoiser of `params`, and of the params that compute targets.
        method: `shortcut`, `alpha_flow`, `mean_flow()` or `improved_mean_flow()`.
        intervals: that are drawn, such as `any_intervals(schedule)`.
        weight: of the level t.
        condition: what the student is given of a batch.
        teacher: whose flow is learned: `of_data`, `guided_data(...)`, or a frozen one.
        target_ema: name of the EMA in the state that computes targets; None: the params themselves, without gradient.
        distance: such as `losses.adaptive_error()`.
    """

    def objective(params: Params, state: Any, batch: Mapping[str, Array], key: Array) -> Array:
        drawn = draw(batch, key, condition)
        interval = intervals(state.step, drawn.time_key, drawn.indices, drawn.x0.ndim)
        fixed = jax.lax.stop_gradient(params if target_ema is None else state.ema[target_ema])
        source = teacher(fixed, state.frozen, drawn.given, drawn.x0)
        jumped = method(student(fixed, drawn.given, drawn.dropout_key), source, interval)

        def target(x: Array, t: Level) -> Array:
            return jnp.where(t.sigma == interval.s.sigma, source(x, t), jumped(x, t))

        learner = towards(student(params, drawn.given, drawn.dropout_key), interval.s)
        loss = losses.regression_loss(learner, target, drawn.x0, interval.t, drawn.noise_keys, weight, distance)
        return jnp.mean(interval.weight * loss)

    return objective


def conditional_average(
    network: ConditionalNetwork, parameterization: Parameterization, params: Params, given: Any, dropout_key: Array | None = None
) -> AverageDenoiser:
    """The average denoiser of a network at these params, which is given logsnr of s by the name `until` beside its condition."""
    named = given if isinstance(given, Mapping) else {"label": given}

    def apply(x: Array, logsnr: Array, until: Array) -> Array:
        return network(params, x, logsnr, {**named, "until": until}, dropout_key)

    return average_denoiser(apply, parameterization)
