"""Log-density by the probability-flow ODE: x is integrated to noise, with the change of volume along the way.

With `r = sigma / alpha` the ODE is `d(x / alpha) / dr = (x - alpha D) / (alpha r)` (Karras et al. 2022, eq. 4), and the change of
variables (Song et al. 2021, eq. 39) becomes an integral of a bounded quantity, between 0 and the dimension for an exact D:

`log p(x0) = log prior(x_T) + dim (log sigma_T - log r_0) - 1/2 int tr(alpha dD/dx) d logsnr`
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from jaxdiff.arguments import at_least_float32, check_count
from jaxdiff.compilation import compiled_once
from jaxdiff.denoiser import Denoiser
from jaxdiff.likelihood.checks import check_continuous
from jaxdiff.likelihood.densities import gaussian
from jaxdiff.likelihood.estimate import Estimate, standard_error
from jaxdiff.process import Level, Schedule, time_of
from jaxdiff.samplers import Sampler

Divergence = Callable[[Callable[[Array], Array], Array, Array], tuple[Array, Array]]
# (function, x [B, ...], key) -> the function's value, and estimates of the trace of its Jacobian [K, B]

LogDensity = Callable[[Array, Level], Array]  # of x at a level, [B]


def exact(chunk: int = 64) -> Divergence:
    """The exact trace, by one derivative for each dimension of x, `chunk` at a time; returned twice, as its error is 0."""
    check_count("exact", chunk=chunk)

    def divergence(function, x, key):
        value, derivative = jax.linearize(function, x)
        dimensions = jnp.arange(x[0].size)

        def element(number):
            basis = jnp.zeros((x[0].size,), x.dtype).at[number].set(1).reshape(1, *x.shape[1:])
            return derivative(jnp.broadcast_to(basis, x.shape)).reshape(x.shape[0], -1)[:, number]

        elements = compiled_once(jax.lax.map)(element, dimensions, batch_size=min(chunk, x[0].size))
        return value, jnp.broadcast_to(jnp.sum(elements, axis=0), (2, x.shape[0]))

    return divergence


def hutchinson(num_probes: int = 2) -> Divergence:
    """Unbiased estimates of the trace, `probe . J probe` with random sign vectors (Hutchinson 1989; Grathwohl et al. 2019)."""
    check_count("hutchinson", num_probes=num_probes)

    def divergence(function, x, key):
        value, derivative = jax.linearize(function, x)

        def estimate(key):
            probe = jax.random.rademacher(key, x.shape, x.dtype)
            return jnp.sum((probe * derivative(probe)).reshape(x.shape[0], -1), axis=-1)

        return value, jax.vmap(estimate)(jax.random.split(key, num_probes))

    return divergence


def noise_prior(x: Array, level: Level) -> Array:
    """Log-density of pure noise of std sigma, where samplers start."""
    return gaussian(x, jnp.zeros_like(x), level.sigma)


def flow_log_density(
    denoise: Denoiser,
    x0: Array,
    levels: Level,
    key: Array,
    sampler: Sampler,
    divergence: Divergence,
    *,
    prior: LogDensity = noise_prior,
) -> Estimate:
    """Log-density of continuous data at x0, integrated by a sampler from the last noisy level of `levels [N + 1]` to the first.

    Song et al. (2021), section 4.3; in nats, `[B]`. It is the density of `x0 + (sigma / alpha) noise` at that last noisy level.
    Any deterministic sampler will do; those of higher order have less error. Use steps that are short in logsnr, as
    of `grid(uniform_logsnr(schedule), N, t_min=0)`. The divergence takes one more network call per step. The standard error is
    that of the divergence over its probes, which are new at each step: 0 if exact, NaN for one probe. It does not include the
    discretization error; estimate that by halving N. Fails where alpha = 0 at the first level.

    Args:
        denoise: the model.
        x0: data `[B, ...]`.
        levels: noisiest first, the last is clean.
        key: of the probes.
        sampler: `dpmpp_3m()` (the least error), `heun()` or another without noise.
        divergence: `exact()` or `hutchinson(num_probes)`.
        prior: log-density of x at the noisiest level.

    Raises:
        ValueError: x0 is 8-bit data that is not dequantized.
    """
    check_continuous(x0)
    x0, levels = at_least_float32((x0, levels))
    path = jax.tree.map(lambda leaf: leaf[:-1][::-1], levels)

    def measured(x, level, number):
        return level.alpha * divergence(lambda x: denoise(x, level), x, jax.random.fold_in(key, number))[1]

    def step(state, levels_and_number):
        (t, s), number = levels_and_number
        x, memory, trace, total = state
        x, memory = sampler.step(denoise, x, memory, t, s, key)
        next_trace = measured(x, s, number)
        return (x, memory, next_trace, total + (t.logsnr - s.logsnr) * (trace + next_trace) / 2), None

    x = path.alpha[0] * x0
    trace = measured(x, path[0], 0)
    numbers = jnp.arange(1, len(path.alpha))
    start = (x, sampler.init(x), trace, jnp.zeros_like(trace))
    (x, *_, total), _ = compiled_once(jax.lax.scan)(step, start, ((path[:-1], path[1:]), numbers))
    return _density(x, path[0], path[-1], total, prior)


def adaptive_flow_log_density(
    denoise: Denoiser,
    x0: Array,
    schedule: Schedule,
    key: Array,
    divergence: Divergence,
    *,
    prior: LogDensity = noise_prior,
    tolerance: float = 1e-5,
) -> Estimate:
    """The same by an adaptive solver (diffrax's Tsit5) in logsnr, with common steps for all examples, in nats `[B]`.

    `tolerance` is relative and absolute, of `x / alpha` and of the log-density. The probes are the same along the whole path. Of
    the schedule only the ends matter, and the relation of alpha and sigma.

    Raises:
        ValueError: x0 is 8-bit data that is not dequantized.
    """
    import diffrax

    check_continuous(x0)
    first, last = (schedule(jnp.asarray(end, x0.dtype)) for end in (0, 1))

    def field(logsnr, state, _):
        level = schedule(time_of(schedule, lambda level: level.logsnr, logsnr))
        x = level.alpha * state[0]
        aim, trace = divergence(lambda x: denoise(x, level), x, key)
        return (aim - state[0]) / 2, -level.alpha * trace

    num_estimates = jax.eval_shape(lambda x: divergence(lambda x: denoise(x, first), x, key)[1], x0).shape[0]

    @compiled_once
    def solution(start):
        return diffrax.diffeqsolve(
            diffrax.ODETerm(field),
            diffrax.Tsit5(),
            t0=first.logsnr,
            t1=last.logsnr,
            dt0=None,
            y0=start,
            stepsize_controller=diffrax.PIDController(rtol=tolerance, atol=tolerance),
            max_steps=100_000,
        ).ys

    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        ends = solution((x0, jnp.zeros((num_estimates, x0.shape[0]), x0.dtype)))
    scaled, total = jax.tree.map(lambda leaf: leaf[-1], ends)
    return _density(last.alpha * scaled, first, last, total, prior)


def _density(x: Array, first: Level, last: Level, total: Array, prior: LogDensity) -> Estimate:
    """The estimate from x at the noisiest level and the integrals of the trace, `[K, B]`."""
    scale = math.prod(x.shape[1:]) * (jnp.log(last.sigma) - jnp.log(first.sigma / first.alpha))
    end = prior(x, last)
    terms = {"prior": end, "volume": jnp.broadcast_to(scale, end.shape) - jnp.mean(total, axis=0) / 2}
    return Estimate(terms["prior"] + terms["volume"], standard_error(total / 2), terms)
