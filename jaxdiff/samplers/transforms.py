"""Functions from samplers to samplers."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from jaxdiff.arguments import check
from jaxdiff.process import Level
from jaxdiff.process.levels import safe_sqrt
from jaxdiff.samplers.loop import Sampler, map_step


def churn(
    sampler: Sampler,
    gamma: float | Array = 2**0.5 - 1,
    *,
    sigma_min: float = 0.0,
    sigma_max: float = jnp.inf,
    noise: float = 1.0,
    size: Callable[[Array, Array], Array] = jnp.hypot,
) -> Sampler:
    """The sampler with each step started from a noisier level: fresh noise raises `sigma / alpha` by the factor `1 + gamma`.

    Karras et al. (2022), algorithm 2: gamma = min(S_churn / N, sqrt(2) - 1), sigma_min and sigma_max (of sigma / alpha)
    S_tmin and S_tmax, noise S_noise. `size(alpha, sigma)` is kept, as in `process.shifted`: hypot on
    variance-preserving levels, `lambda alpha, sigma: alpha` on EDM's own, `jnp.add` on straight ones.

    Raises:
        ValueError: gamma or noise is below 0, sigma_min not below sigma_max, or the sampler has memory of earlier steps,
            which fresh noise would invalidate.
    """
    check("churn", "gamma >= 0", lambda gamma: gamma >= 0, gamma=gamma)
    check("churn", "noise >= 0", lambda noise: noise >= 0, noise=noise)
    check("churn", "0 <= sigma_min < sigma_max", lambda low, high: 0 <= low < high, sigma_min=sigma_min, sigma_max=sigma_max)

    def raised(step):
        def from_raised(denoise, x, memory, t, s, key):
            noise_key, step_key = jax.random.split(key)
            ratio = t.sigma / t.alpha
            sigma = t.sigma * (1 + jnp.where((sigma_min <= ratio) & (ratio <= sigma_max), gamma, 0))
            std = safe_sqrt(sigma**2 - t.sigma**2)
            fresh = noise * std * jax.random.normal(noise_key, x.shape, x.dtype)
            scale = size(t.alpha, t.sigma) / size(t.alpha, sigma)
            return step(denoise, scale * (x + fresh), memory, Level(scale * t.alpha, scale * sigma), s, step_key)

        return from_raised

    def init(x):
        if jax.tree.leaves(sampler.init(x)):
            raise ValueError("churn: only samplers without memory, such as heun, can start from a raised level")
        return sampler.init(x)

    return map_step(raised, sampler._replace(init=init))


def with_callback(sampler: Sampler, callback: Callable[[Array, Array], None]) -> Sampler:
    """The sampler with `callback(number, x)` called on the host after each step, number from 1: for progress and previews.

    Calls may arrive late, and under `jax.vmap` once for each element.
    """

    def reporting(step):
        def step_and_call(denoise, x, memory, t, s, key):
            number, memory = memory
            x, memory = step(denoise, x, memory, t, s, key)
            jax.debug.callback(callback, number + 1, x)
            return x, (number + 1, memory)

        return step_and_call

    return map_step(reporting, sampler._replace(init=lambda x: (jnp.zeros((), jnp.int32), sampler.init(x))))
