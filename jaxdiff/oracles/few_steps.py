"""A solver's error in few steps, relative to DDIM's in as many."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxdiff import process, samplers
from jaxdiff.compilation import traced_once
from jaxdiff.denoiser import Denoiser
from jaxdiff.oracles import mixtures
from jaxdiff.oracles.comparison import Check
from jaxdiff.process import Level

T = TypeVar("T")
ALLOWED = {5: 1.5, 10: 1.0, 20: 1.0}  # number of steps: largest error, in errors of DDIM
STARTS = 400
REFERENCE_STEPS = 3000
SCHEDULES = {
    "cosine": process.cosine(),
    "linear": process.linear(),
    "linear logsnr": process.linear_logsnr(),
    "karras": process.karras(),
    "rectified flow": process.rectified_flow(),
}


def few_steps(function: Callable[[Denoiser, Array, Level, Array], Array]) -> Check:
    """The median error of a deterministic solver over DDIM's, on each schedule's own levels: the worst schedule counts.

    Errors are distances to the end of the probability flow of three clouds in two dimensions. A solver of
    higher order may still be worse in few steps, where the first ones are long in logsnr. Call it where float64 is enabled.
    """
    errors, allowed = _errors(function), ALLOWED.values()
    ratios = {name: np.divide(errors[name], of_ddim) for name, of_ddim in _ddim_errors().items()}
    worst = np.max(list(ratios.values()), axis=0)
    over = [name for name, each in ratios.items() if not np.all(each <= list(allowed))]  # NaN is not
    measured = ", ".join(f"{each:.2f}" for each in worst) + (f" ({', '.join(over)})" if over else "")
    steps = ", ".join(map(str, ALLOWED))
    return Check(f"error over DDIM's, {steps} steps", measured, ", ".join(f"{each:.2f}" for each in allowed), not over)


@functools.cache
def _ddim_errors() -> Mapping[str, list[float]]:
    return _errors(functools.partial(samplers.sample, samplers.ddim()))


def _errors(function: Callable[[Denoiser, Array, Level, Array], Array]) -> Mapping[str, list[float]]:
    """By schedule, the median distance from the reference for each number of steps."""
    sampled = traced_once(functools.partial(function, mixtures.denoiser(_clouds())))
    lists = _lists()

    def error(name, steps):
        x, x0 = _references()[name]
        off = np.asarray(sampled(x, lists[name, steps], jax.random.key(0))) - x0
        return float(np.median(np.linalg.norm(off, axis=-1)))

    return {name: [error(name, steps) for steps in ALLOWED] for name in SCHEDULES}


@functools.cache
def _references() -> Mapping[str, tuple[np.ndarray, np.ndarray]]:
    """By schedule, starts `[STARTS, 2]` and the ends of the flow from there."""
    noise = np.asarray(jax.random.normal(jax.random.key(1), (STARTS, 2), jnp.float64))
    sampler, denoise = samplers.dpmpp_3m(), mixtures.denoiser(_clouds())
    sampled = jax.jit(lambda x, levels: samplers.sample(sampler, denoise, x, levels, jax.random.key(0)))
    paces = {name: process.uniform_logsnr(schedule) for name, schedule in SCHEDULES.items()}
    lists = computed(lambda: {name: process.grid(pace, REFERENCE_STEPS, t_min=0.0) for name, pace in paces.items()})
    starts = {name: np.asarray(levels.sigma[0] * noise) for name, levels in lists.items()}
    return {name: (starts[name], np.asarray(sampled(starts[name], levels))) for name, levels in lists.items()}


@functools.cache
def _lists() -> Mapping[tuple[str, int], Level]:
    return computed(lambda: {(name, n): process.grid(schedule, n) for name, schedule in SCHEDULES.items() for n in ALLOWED})


def computed(function: Callable[[], T]) -> T:
    """The function's arrays, as arrays of numpy, from one compiled program."""
    return jax.tree.map(np.asarray, jax.jit(function)())


def _clouds() -> mixtures.Mixture:
    return mixtures.mixture([0.3, 0.4, 0.3], [[-1.0, 0.5], [0.8, 0.9], [0.3, -1.2]], [0.25, 0.4, 0.6])
