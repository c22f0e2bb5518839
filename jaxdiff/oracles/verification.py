"""`verify`: tests of any sampler on distributions with exact denoisers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxdiff import process, samplers
from jaxdiff.denoiser import Denoiser
from jaxdiff.oracles import mixtures
from jaxdiff.oracles.comparison import Check, compare
from jaxdiff.oracles.few_steps import SCHEDULES, few_steps
from jaxdiff.oracles.mixtures import Mixture
from jaxdiff.process import Level
from jaxdiff.samplers import Sampler

Function = Callable[[Denoiser, Array, Level, Array], Array]  # (denoise, x, levels [N + 1], key) -> x0

STEPS = (32, 64, 128, 256)
ORDER_SLACK = 0.25  # below the claimed order, and no more than a fifth of it
SECOND_ORDER = 1.5  # a measured order above it is held to an error no larger than DDIM's
ORDER_IN_LAW = 0.6  # least order of a stochastic sampler's error, whose slope the Monte Carlo error reduces
FAMILIES = {"karras": process.karras(), "rectified flow": process.rectified_flow()}  # in addition to the variance-preserving one
LISTS = {**SCHEDULES, "uniform logsnr": process.uniform_logsnr(process.cosine())}


@dataclass(frozen=True)
class Report:
    """The table that `verify` prints."""

    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """Whether every line passed."""
        return all(check.passed for check in self.checks)

    def __str__(self) -> str:
        rows = [("", "measured", "allowed", ""), *((*check[:3], "" if check.passed else "FAILS") for check in self.checks)]
        widths = [max(len(row[column]) for row in rows) for column in range(3)]
        return "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(row, [*widths, 0], strict=True)).rstrip() for row in rows
        )


def verify(
    sampler: Sampler | Function,
    order: float | None = None,
    *,
    denoiser: Callable[[Mixture], Denoiser] = mixtures.denoiser,
    num: int = 20_000,
    seed: int = 0,
) -> Report:
    """The table of a sampler's errors on data in two dimensions whose denoiser, distribution and flow are known exactly.

    The sampler is a `Sampler`, or a function `(denoise, x, levels [N + 1], key) -> x0`. `order` is the claimed order
    of convergence; by default the number of its calls of the denoiser in a step. Samplers for consistency functions are tested
    with `denoiser=oracles.flow_map`. `num` samples determine the Monte Carlo errors. Loop over the levels with `jax.lax.scan`:
    a loop in Python takes minutes to compile.

    - Order: slope of the error in the number of steps. Without randomness, the error to the exact flow of one Gaussian,
      in float64, over alternating long and short steps; with it, the error of mean and covariance.
    - Few steps, of a solver without randomness whose order is above 1: its median error to the exact flow of a mixture on the
      schedules' own levels is at most 1.5 times DDIM's at 5 steps, and no more than DDIM's at 10 and 20.
    - Mean, covariance and sliced Wasserstein distance (64 directions) to a mixture, at 256 steps, on variance-preserving,
      variance-exploding and straight levels. Allowed are four Monte Carlo standard errors plus 2% of the data's standard
      deviation.
    - The rest: the last step returns the denoiser's x0; results are finite on common lists of levels, of x's dtype, and the same
      for the same key; one compilation.

    Raises:
        ValueError: x0 is not an array of x's shape, or an order is claimed for a sampler that uses its key.

    >>> import jaxdiff as jd
    >>> jd.oracles.verify(jd.heun(), num=2000).passed
    True
    """
    function = _function(sampler)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        checks = tuple(_checks(function, order, denoiser, num, jax.random.key(seed)))
    return Report(checks)


def _checks(function: Function, order: float | None, denoiser: Callable, num: int, key: Array) -> Iterator[Check]:
    flowing = denoiser is not mixtures.denoiser
    data = _one() if flowing else mixtures.mixture([0.2, 0.5, 0.3], [[-1.0, 0.5], [0.8, 0.9], [0.3, -1.2]], [0.2, 0.1, 0.35])
    x = jax.random.normal(key, (8, 2))
    levels = process.grid(process.cosine(), 10)
    x0 = jax.eval_shape(lambda x: function(denoiser(data), x, levels, key), x)
    if getattr(x0, "shape", None) != x.shape:
        raise ValueError(f"a sampler must return x0, an array of x's shape {x.shape}, got {x0}")
    again = [_sampled(function, denoiser(data), x, levels, jax.random.key(n)) for n in (0, 0, 1)]
    deterministic = bool(jnp.all(again[0] == again[2]))
    yield Check("key", "not used" if deterministic else "used", "the same key, the same x0", bool(jnp.all(again[0] == again[1])))
    if order is not None and not deterministic:
        raise ValueError("an order can be claimed only for a sampler that does not use its key")
    yield _compilations(function, denoiser(data), x)
    yield _last_step(function, x)
    yield _non_finite(function, denoiser(data), x)
    with jax.enable_x64(True):
        yield _dtypes(function, denoiser)
        if deterministic and not flowing:
            slope = _order(function, denoiser(_one()), _one())
            yield _order_check(slope, float(_calls_per_step(function)) if order is None else order)
            if slope > SECOND_ORDER:
                yield few_steps(function)
    if not deterministic or flowing:
        yield _order_in_law(function, denoiser(_one()), _one(), 4 * num, key)
    yield from compare(_ends(function, denoiser(data), data, _levels(STEPS[-1]), num, key), data, jax.random.fold_in(key, 1))
    for name, schedule in FAMILIES.items():
        levels = process.grid(process.uniform_logsnr(schedule), STEPS[-1], t_min=0.0)
        mean, covariance, _ = compare(_ends(function, denoiser(data), data, levels, num, key), data, jax.random.fold_in(key, 1))
        yield mean._replace(name=f"{mean.name}, {name}")
        yield covariance._replace(name=f"{covariance.name}, {name}")


def _one() -> Mixture:
    """A Gaussian in the current default dtype."""
    return mixtures.gaussian([0.5, -0.3], [0.4, 0.8])


def _order(function: Function, denoise: Denoiser, data: Mixture) -> float:
    """The slope of the median error to the exact flow, over random starts."""
    x = jax.random.normal(jax.random.key(2), (64, 2), jnp.float64)
    errors = []
    for num_steps in STEPS:
        levels = _uneven(_levels(2 * num_steps, logsnr_max=24.0))
        exact = mixtures.flow_map(data)(x, levels[0])
        errors.append(np.median(np.linalg.norm(_sampled(function, denoise, x, levels, jax.random.key(0)) - exact, axis=-1)))
    return _slope(errors)


def _order_check(slope: float, claimed: float) -> Check:
    least = claimed - min(ORDER_SLACK, 0.2 * claimed)
    return Check("order of convergence", f"{slope:.2f}", f"at least {least:.2f}", bool(slope >= least))


def _uneven(levels: Level) -> Level:
    """Half of the steps of a list, alternately 1 and 3 of them long, which reveals formulas for equal steps."""
    last = levels.sigma.size - 1
    return levels[np.unique([n for n in range(last) if n % 4 in (0, 1)] + [last])]


def _order_in_law(function: Function, denoise: Denoiser, data: Mixture, num: int, key: Array) -> Check:
    """The slope of the error of mean and covariance, where it exceeds its Monte Carlo error."""
    exact = [_law_error(mixtures.draw(data, jax.random.fold_in(key, n), num), data) for n in range(4)]
    noise = float(np.mean(exact) + 3 * np.std(exact))
    errors = np.array([_law_error(_ends(function, denoise, data, _levels(n), num, key), data) for n in STEPS])
    slope, least = _slope(np.sqrt(np.maximum(errors**2 - np.mean(exact) ** 2, 0) + 1e-12)), ORDER_IN_LAW
    measured = f"error {errors[0]:.4f} to {errors[-1]:.4f}, order {slope:.2f}" if errors[0] > noise else f"error {errors[-1]:.4f}"
    allowed = f"order {least:.2f}, or an error of {noise:.4f}"
    return Check("convergence in law", measured, allowed, bool((slope >= least and errors[0] > noise) or errors[-1] <= noise))


def _law_error(x0: Array, data: Mixture) -> float:
    """Distance of mean and covariance from the exact ones, in units of the standard deviations."""
    mean, covariance = (np.asarray(moment) for moment in mixtures.moments(data))
    std, samples = np.sqrt(np.diag(covariance)), np.asarray(x0)
    off = (np.cov(samples.T) - covariance) / np.outer(std, std)
    return float(np.sqrt(np.sum(((samples.mean(0) - mean) / std) ** 2) + np.sum(off**2)))


def _ends(function: Function, denoise: Denoiser, data: Mixture, levels: Level, num: int, key: Array) -> Array:
    """Samples `[num, 2]` from starts drawn from the data noised to the first level."""
    data_key, noise_key, sampler_key = jax.random.split(key, 3)
    x0 = mixtures.draw(data, data_key, num)
    x = process.diffuse(x0, jax.random.normal(noise_key, x0.shape, x0.dtype), levels[0])
    return _sampled(function, denoise, x, levels, sampler_key)


def _compilations(function: Function, denoise: Denoiser, x: Array) -> Check:
    traces = []

    @jax.jit
    def compiled(x, levels, key):
        traces.append(None)
        return function(denoise, x, levels, key)

    for number, schedule in enumerate((process.cosine(), process.linear(), process.karras())):
        compiled(x + number, process.grid(schedule, 10), jax.random.key(number))
    return Check("compilations", f"{len(traces)} for three lists of levels", "1", len(traces) == 1)


def _non_finite(function: Function, denoise: Denoiser, x: Array) -> Check:
    def finite(levels):
        return bool(jnp.all(jnp.isfinite(_sampled(function, denoise, levels.sigma[0] * x, levels, jax.random.key(0)))))

    bad = [f"{name}, {n} steps" for name, schedule in LISTS.items() for n in (1, 10) if not finite(process.grid(schedule, n))]
    return Check("not finite", "; ".join(bad) or "nowhere", "nowhere", not bad)


def _last_step(function: Function, x: Array) -> Check:
    """Whether a constant denoiser's x0 comes back: no noise added at the end, and none left."""
    constant = jnp.array([0.7, -0.4])
    x0 = _sampled(
        function, lambda x, level: jnp.broadcast_to(constant, x.shape), x, process.grid(process.cosine(), 10), jax.random.key(0)
    )
    off = float(jnp.max(jnp.abs(x0 - constant)))
    return Check("last step", f"{off:.1e} from the denoiser's x0", "1.0e-04", off <= 1e-4)


def _dtypes(function: Function, denoiser: Callable) -> Check:
    """Whether x and levels in float32 give x0 in float32 where float64 is enabled."""
    data = mixtures.gaussian(jnp.asarray([0.5, -0.3], jnp.float32), jnp.asarray(0.5, jnp.float32))
    levels = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), _levels(10))
    x = jax.ShapeDtypeStruct((8, 2), jnp.float32)
    dtype = jax.eval_shape(lambda x: function(denoiser(data), x, levels, jax.random.key(0)), x).dtype
    return Check("dtype of float32", str(dtype), "float32", dtype == jnp.float32)


def _calls_per_step(function: Function) -> int:
    """How often the denoiser is called in a step, on average over a list of twenty."""
    calls = []

    def denoise(x, level):
        jax.debug.callback(lambda: calls.append(None))
        return 0.5 * x

    _sampled(function, denoise, jnp.ones((1, 2)), _levels(20), jax.random.key(0)).block_until_ready()
    jax.effects_barrier()
    return max(1, round(len(calls) / 20))


def _levels(num_steps: int, logsnr_max: float = 12.0) -> Level:
    """An easy list for any solver: short steps, and hardly any noise before the last."""
    return process.grid(process.uniform_logsnr(process.cosine(-10.0, logsnr_max)), num_steps, t_min=0.0)


def _sampled(function: Function, denoise: Denoiser, x: Array, levels: Level, key: Array) -> Array:
    return jax.jit(lambda x, levels, key: function(denoise, x, levels, key))(x, levels, key)


def _function(sampler: Sampler | Function) -> Function:
    if not isinstance(sampler, Sampler):
        return sampler
    return lambda denoise, x, levels, key: samplers.sample(sampler, denoise, x, levels, key)


def _slope(errors) -> float:
    return float(-np.polyfit(np.log(STEPS), np.log(np.maximum(errors, 1e-300)), 1)[0])
