"""Lower bounds of log p(x0) by the terms of a diffusion model: in discrete and in continuous time.

Both are bounds of the generative model that starts, as samplers do, from noise of std sigma at the noisiest level. Terms: "prior",
the KL at the noisiest level; "diffusion", that of the steps between; "reconstruction", of x0 from the cleanest level.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

from jaxdiff.compilation import compiled_once
from jaxdiff.denoiser import Denoiser
from jaxdiff.likelihood.checks import check_data
from jaxdiff.likelihood.densities import LogProb, of_example
from jaxdiff.likelihood.estimate import Estimate, standard_error
from jaxdiff.process import Level, Schedule, Std, diffuse, level_and_rate, posterior_std


def discrete_bound(
    denoise: Denoiser,
    x0: Array,
    levels: Level,
    key: Array,
    reconstruction: LogProb,
    *,
    std: Std = posterior_std,
    num_samples: int = 2,
) -> Estimate:
    """The variational bound of the chain over the levels `[N + 1]`, with `num_samples` draws of x at each step, in nats `[B]`.

    Sohl-Dickstein et al. (2015); Ho et al. (2020), eq. 5: minus the KL terms of `step_terms`, and
    `reconstruction(x0, D(x, t), sigma / alpha)` at the last noisy level, where they use sqrt(beta_1). Makes
    `num_samples * N` network calls; the standard error needs two samples.

    Args:
        denoise: the model.
        x0: data `[B, ...]` in [-1, 1].
        levels: noisiest first, the last is clean.
        key: of the noise.
        reconstruction: `discretized_gaussian` for 8-bit data, `gaussian` for continuous data.
        std: of the model's reverse steps: `posterior_std` or `forward_std`.
        num_samples: draws of the noise at each level.

    Raises:
        ValueError: x0 does not fit the reconstruction, or is 8-bit data outside [-1, 1].
    """
    check_data(x0, reconstruction)
    step_key, last_key = jax.random.split(key)
    steps = jnp.sum(step_terms(denoise, x0, levels, step_key, std=std, num_samples=num_samples), axis=0)
    last = reconstructed(denoise, x0, levels[-2], jax.random.split(last_key, num_samples), reconstruction)
    return _bound(x0, levels[0], -steps, last, standard_error(last - steps))


def step_terms(denoise: Denoiser, x0: Array, levels: Level, key: Array, *, std: Std = posterior_std, num_samples: int = 2) -> Array:
    """The N - 1 terms KL(q(x_s | x_t, x0) || p(x_s | x_t)) of the discrete bound, noisiest first, `[N - 1, num_samples, B]`.

    `(snr_s - snr_t) |x0 - D(x, t)|^2 / 2` where std is the posterior's (Kingma et al. 2021, section 4).
    """
    t, s = levels[:-2], levels[1:-1]
    keys = jax.vmap(lambda number: jax.random.split(jax.random.fold_in(key, number), num_samples))(jnp.arange(len(t.alpha)))

    def terms(_, step):
        t, s, keys = step
        ratio = (std(t, s) / posterior_std(t, s)) ** 2
        errors = jax.vmap(lambda key: squared_error(denoise, x0, t, key))(keys)
        wide = (1 / ratio - 1 + jnp.log(ratio)) * x0[0].size
        return None, (wide + (_snr(s) - _snr(t)) * errors / ratio) / 2

    return compiled_once(jax.lax.scan)(terms, None, (t, s, keys))[1]


def continuous_bound(
    denoise: Denoiser, x0: Array, schedule: Schedule, key: Array, reconstruction: LogProb, *, num_times: int = 16
) -> Estimate:
    """The bound of infinitely many steps, `-1/2 E[-(d snr / dt) |x0 - D(x, t)|^2]` plus the two other terms, in nats `[B]`.

    Kingma et al. (2021), section 5, unbiased: two uniform times in each of `num_times` equal intervals of [0, 1], whose
    differences give the standard error. The value depends only on the schedule's ends, the error on its spacing: importance
    sampling of times is another spacing, such as `uniform_logsnr(schedule)`, or a learned one.

    Raises:
        ValueError: x0 does not fit the reconstruction, or is 8-bit data outside [-1, 1].
    """
    check_data(x0, reconstruction)
    step_key, last_key = jax.random.split(key)

    def pair(_, number):
        keys = jax.random.split(jax.random.fold_in(step_key, number), 2)
        return None, jax.vmap(lambda key: term(key, number))(keys)

    def term(key, number):
        time_key, noise_key = jax.random.split(key)
        t = (number.astype(x0.dtype) + jax.random.uniform(time_key, x0.shape[:1], x0.dtype)) / num_times
        level, rate = level_and_rate(schedule, t)
        return rate * _snr(level) * squared_error(denoise, x0, level.expand(x0.ndim), noise_key) / 2

    pairs = compiled_once(jax.lax.scan)(pair, None, jnp.arange(num_times))[1]
    ends = schedule(jnp.array([1.0, 0.0], x0.dtype))
    last = reconstructed(denoise, x0, ends[1], jax.random.split(last_key, 2), reconstruction)
    variance = jnp.sum((pairs[:, 0] - pairs[:, 1]) ** 2, axis=0) / num_times**2 + (last[0] - last[1]) ** 2
    return _bound(x0, ends[0], -jnp.mean(pairs, axis=0), last, jnp.sqrt(variance) / 2)


def squared_error(denoise: Denoiser, x0: Array, level: Level, key: Array) -> Array:
    """`|x0 - D(x, level)|^2` of each example at one draw of x, `[B]`."""
    x = diffuse(x0, jax.random.normal(key, x0.shape, x0.dtype), level)
    return of_example((x0 - denoise(x, level)) ** 2, x0)


def reconstructed(denoise: Denoiser, x0: Array, level: Level, keys: Array, reconstruction: LogProb) -> Array:
    """`reconstruction(x0, D(x, level), sigma / alpha)` at one draw of x for each of K keys, `[K, B]`."""

    def log_prob(key):
        x = diffuse(x0, jax.random.normal(key, x0.shape, x0.dtype), level)
        return reconstruction(x0, denoise(x, level), level.sigma / level.alpha)

    return jax.vmap(log_prob)(keys)


def _bound(x0: Array, noisiest: Level, diffusion: Array, reconstruction: Array, error: Array) -> Estimate:
    prior = -_snr(noisiest) * of_example(x0**2, x0) / 2
    terms = {"prior": prior, "diffusion": jnp.mean(diffusion, axis=0), "reconstruction": jnp.mean(reconstruction, axis=0)}
    return Estimate(terms["prior"] + terms["diffusion"] + terms["reconstruction"], error, terms)


def _snr(level: Level) -> Array:
    return (level.alpha / level.sigma) ** 2
