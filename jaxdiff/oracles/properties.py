"""The properties that `verify` checks: each is a function from a sampler to a line of the table, or to several."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxdiff import process
from jaxdiff.compilation import traced_once
from jaxdiff.denoiser import Denoiser
from jaxdiff.oracles import mixtures
from jaxdiff.oracles.comparison import Check, draw, moments
from jaxdiff.oracles.few_steps import SCHEDULES, computed, few_steps
from jaxdiff.oracles.mixtures import Mixture
from jaxdiff.process import Level

Function = Callable[[Denoiser, Array, Level, Array], Array]  # (denoise, x, levels [N + 1], key) -> x0
Sampled = Callable[..., Array]  # (x, levels [N + 1], key) -> x0: compiled, with its denoiser

STEPS = (32, 64, 128, 256)
ORDER_SLACK = 0.25  # below the claimed order, and no more than a fifth of it
SECOND_ORDER = 1.5  # a measured order above it is held to an error no larger than DDIM's
ORDER_IN_LAW = 0.6  # least order of a stochastic sampler's error, whose slope the Monte Carlo error reduces
FAMILIES = {"karras": process.karras(), "rectified flow": process.rectified_flow()}  # in addition to the variance-preserving one
LISTS = {**SCHEDULES, "uniform logsnr": process.uniform_logsnr(process.cosine())}


def clouds() -> Mixture:
    """A mixture of three Gaussians in the current default dtype."""
    return mixtures.mixture([0.2, 0.5, 0.3], [[-1.0, 0.5], [0.8, 0.9], [0.3, -1.2]], [0.2, 0.1, 0.35])


def gaussian() -> Mixture:
    """One Gaussian in the current default dtype."""
    return mixtures.gaussian([0.5, -0.3], [0.4, 0.8])


def key_and_compilations(function: Function, denoise: Denoiser, sampled: Sampled, x: Array) -> tuple[bool, Check, Check]:
    """Whether the key is used; whether one key gives one x0, traced anew too; how often three lists of levels compile.

    `sampled` is the function with the denoiser, compiled.

    Raises:
        ValueError: the function does not return an array of x's shape.
    """
    traces, lists = [], _lists(_dtype())

    @jax.jit
    def counted(x, levels, key):
        traces.append(None)
        return function(denoise, x, levels, key)

    x0 = jax.eval_shape(counted, x, lists["cosine", 10], jax.random.key(0))
    if getattr(x0, "shape", None) != x.shape:
        raise ValueError(f"a sampler must return x0, an array of x's shape {x.shape}, got {x0}")
    for number, name in enumerate(("cosine", "linear", "karras")):
        counted.trace(x + number, lists[name, 10], jax.random.key(number))
    anew = traced_once(functools.partial(function, denoise))
    each = (sampled, 0), (sampled, 1), (anew, 0)
    one, other, again = (np.asarray(program(x, lists["cosine", 10], jax.random.key(n))) for program, n in each)
    uses_key = bool(np.any(one != other))
    return (
        uses_key,
        Check("key", "used" if uses_key else "not used", "the same key, the same x0", bool(np.all(one == again))),
        Check("compilations", f"{len(traces)} for three lists of levels", "1", len(traces) == 1),
    )


def orders(function: Function, order: float | None = None) -> Iterator[Check]:
    """The order of convergence of a solver without randomness, and its error in few steps if the order is above 1.

    The claimed order is by default the number of its calls of the denoiser in a step.
    """
    claimed = float(_calls_per_step(function)) if order is None else order
    with jax.enable_x64(True):
        slope = _order(function)
        least = claimed - min(ORDER_SLACK, 0.2 * claimed)
        yield Check("order of convergence", f"{slope:.2f}", f"at least {least:.2f}", bool(slope >= least))
        if slope > SECOND_ORDER:
            yield few_steps(function)


def _order(function: Function) -> float:
    """The slope of the median error to the exact flow, over random starts."""
    data = gaussian()
    sampled = traced_once(functools.partial(function, mixtures.denoiser(data)))
    flow = traced_once(mixtures.flow_map(data))
    x = np.asarray(jax.random.normal(jax.random.key(2), (64, 2), jnp.float64))
    errors = []
    for num_steps in STEPS:
        levels = _uneven(easy_levels(2 * num_steps, logsnr_max=24.0))
        off = np.asarray(sampled(x, levels, jax.random.key(0))) - np.asarray(flow(x, levels[0]))
        errors.append(np.median(np.linalg.norm(off, axis=-1)))
    return _slope(errors)


def _uneven(levels: Level) -> Level:
    """Half of the steps of a list, alternately 1 and 3 of them long, which reveals formulas for equal steps."""
    last = levels.sigma.size - 1
    return levels[np.unique([n for n in range(last) if n % 4 in (0, 1)] + [last])]


def convergence_in_law(function: Function, denoiser: Callable[[Mixture], Denoiser], num: int, key: Array) -> Check:
    """The slope of the error of mean and covariance, where it exceeds its Monte Carlo error."""
    data = gaussian()
    sampled = traced_once(functools.partial(function, denoiser(data)))
    exact = [_law_error(draw(data, jax.random.fold_in(key, n), num), data) for n in range(4)]
    noise = float(np.mean(exact) + 3 * np.std(exact))
    errors = np.array([_law_error(ends(sampled, data, easy_levels(n), num, key), data) for n in STEPS])
    slope, least = _slope(np.sqrt(np.maximum(errors**2 - np.mean(exact) ** 2, 0) + 1e-12)), ORDER_IN_LAW
    measured = f"error {errors[0]:.4f} to {errors[-1]:.4f}, order {slope:.2f}" if errors[0] > noise else f"error {errors[-1]:.4f}"
    allowed = f"order {least:.2f}, or an error of {noise:.4f}"
    return Check("convergence in law", measured, allowed, bool((slope >= least and errors[0] > noise) or errors[-1] <= noise))


def _law_error(x0: Array, data: Mixture) -> float:
    """Distance of mean and covariance from the exact ones, in units of the standard deviations."""
    mean, covariance = (np.asarray(moment) for moment in moments(data))
    std, samples = np.sqrt(np.diag(covariance)), np.asarray(x0)
    off = (np.cov(samples.T) - covariance) / np.outer(std, std)
    return float(np.sqrt(np.sum(((samples.mean(0) - mean) / std) ** 2) + np.sum(off**2)))


def ends(sampled: Sampled, data: Mixture, levels: Level, num: int, key: Array) -> Array:
    """Samples `[num, 2]` from starts drawn from the data noised to the first level."""
    data_key, noise_key, sampler_key = jax.random.split(key, 3)
    return sampled(_noised(draw(data, data_key, num), levels[0], noise_key), levels, sampler_key)


@jax.jit
def _noised(x0: Array, level: Level, key: Array) -> Array:
    return process.diffuse(x0, jax.random.normal(key, x0.shape, x0.dtype), level)


def not_finite(sampled: Sampled, x: Array) -> Check:
    """On which lists of levels the samples are not all finite."""

    def finite(levels):
        return np.all(np.isfinite(sampled(levels.sigma[0] * np.asarray(x), levels, jax.random.key(0))))

    lists = _lists(_dtype())
    bad = [f"{name}, {n} step{'s' * (n > 1)}" for name in LISTS for n in (1, 10) if not finite(lists[name, n])]
    return Check("not finite", "; ".join(bad) or "nowhere", "nowhere", not bad)


def last_step(function: Function, x: Array) -> Check:
    """Whether a constant denoiser's x0 comes back: no noise added at the end, and none left."""
    constant = np.array([0.7, -0.4], x.dtype)
    sampled = traced_once(functools.partial(function, lambda x, level: jnp.broadcast_to(constant, x.shape)))
    off = float(np.max(np.abs(sampled(x, _lists(_dtype())["cosine", 10], jax.random.key(0)) - constant)))
    return Check("last step", f"{off:.1e} from the denoiser's x0", "1.0e-04", off <= 1e-4)


def dtypes(function: Function, denoiser: Callable) -> Check:
    """Whether x and levels in float32 give x0 in float32 where float64 is enabled."""
    x, levels = np.ones((8, 2), np.float32), jax.tree.map(np.float32, _lists(_dtype())["cosine", 10])
    with jax.enable_x64(True):
        data = mixtures.gaussian(jnp.asarray([0.5, -0.3], jnp.float32), jnp.asarray(0.5, jnp.float32))
        dtype = jax.eval_shape(functools.partial(function, denoiser(data)), x, levels, jax.random.key(0)).dtype
    return Check("dtype of float32", str(dtype), "float32", dtype == jnp.float32)


def _calls_per_step(function: Function) -> int:
    """How often the denoiser is called in a step, on average over a list of ten."""
    calls = []

    def denoise(x, level):
        calls.append(None)
        return 0.5 * x

    with jax.disable_jit():
        function(denoise, jnp.ones((1, 2)), _lists(_dtype())["cosine", 10], jax.random.key(0))
    return max(1, round(len(calls) / 10))


def families() -> Mapping[str, Level]:
    """Lists for the families of schedules other than the variance-preserving one."""
    return _families(_dtype())


def easy_levels(num_steps: int = STEPS[-1], logsnr_max: float = 12.0) -> Level:
    """An easy list for any solver: short steps, and hardly any noise before the last."""
    return _easy_levels(num_steps, logsnr_max, _dtype())


def _dtype() -> np.dtype:
    """The current default dtype: each list of levels is computed once in each."""
    return jax.dtypes.canonicalize_dtype(float)


@functools.cache
def _lists(dtype: np.dtype) -> Mapping[tuple[str, int], Level]:
    return computed(lambda: {(name, n): process.grid(schedule, n) for name, schedule in LISTS.items() for n in (1, 10)})


@functools.cache
def _families(dtype: np.dtype) -> Mapping[str, Level]:
    paces = {name: process.uniform_logsnr(schedule) for name, schedule in FAMILIES.items()}
    return computed(lambda: {name: process.grid(pace, STEPS[-1], t_min=0.0) for name, pace in paces.items()})


@functools.cache
def _easy_levels(num_steps: int, logsnr_max: float, dtype: np.dtype) -> Level:
    return computed(lambda: process.grid(process.uniform_logsnr(process.cosine(-10.0, logsnr_max)), num_steps, t_min=0.0))


def _slope(errors) -> float:
    return float(-np.polyfit(np.log(STEPS), np.log(np.maximum(errors, 1e-300)), 1)[0])
