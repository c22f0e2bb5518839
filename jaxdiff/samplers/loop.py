"""The one loop over levels that runs every sampler."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax import Array

from jaxdiff.denoiser import Denoiser
from jaxdiff.process import Level

Memory = Any  # what a multistep sampler remembers between steps: a pytree


class Sampler(NamedTuple):
    """Two pure functions: `init(x) -> memory` and `step(denoise, x, memory, t, s, key) -> (x, memory)` from t to s."""

    init: Callable[[Array], Memory]
    step: Callable[[Denoiser, Array, Memory, Level, Level, Array], tuple[Array, Memory]]


def sample(sampler: Sampler, denoise: Denoiser, x: Array, levels: Level, key: Array) -> Array:
    """The clean image x0 that the sampler reaches from x, a draw at `levels[0]`, along `levels [N + 1]`.

    x is `levels[0].sigma * noise` for levels that begin in pure noise. Pure: compiles under `jax.jit`, and memory does
    not grow with the number of steps.

    Raises:
        TypeError: x and levels differ in dtype.

    >>> import jax
    >>> from jaxdiff import cosine, ddim, grid, oracles, sample
    >>> cloud = oracles.gaussian(mean=[1.0, -1.0], std=0.1)
    >>> x = jax.random.normal(jax.random.key(0), (1000, 2))
    >>> sample(ddim(), oracles.denoiser(cloud), x, grid(cosine(), 50), jax.random.key(1)).mean(0).round(1).tolist()
    [1.0, -1.0]
    """
    (x, _), _ = _run(sampler, denoise, (x, sampler.init(x)), levels, key, jnp.arange(levels.sigma.size - 1))
    return x


def trajectory(sampler: Sampler, denoise: Denoiser, x: Array, levels: Level, key: Array, every: int = 1) -> Array:
    """The states `[N / every + 1, B, ...]` on the way of `sample`, from x itself to x0: all, or every k-th.

    Raises:
        ValueError: `every` does not divide the number of steps N.
    """
    num_steps = levels.sigma.size - 1
    if every < 1 or num_steps % every:
        raise ValueError(f"trajectory: every must divide the number of steps, {num_steps}, got {every}")

    def leg(carry, indices):
        carry, _ = _run(sampler, denoise, carry, levels, key, indices)
        return carry, carry[0]

    _, states = jax.lax.scan(leg, (x, sampler.init(x)), jnp.arange(num_steps).reshape(-1, every))
    return jnp.concatenate([x[None], states])


def _run(sampler, denoise, carry, levels, key, indices):
    levels = jax.tree.map(jnp.asarray, levels)
    chex.assert_rank((levels.alpha, levels.sigma), 1)
    x = carry[0]
    if not x.dtype == levels.alpha.dtype == levels.sigma.dtype:
        raise TypeError(f"sample: x is {x.dtype}, levels {levels.alpha.dtype}; give both in one dtype (a network may use another)")

    def body(carry, index):
        x, memory = carry
        return sampler.step(denoise, x, memory, levels[index], levels[index + 1], jax.random.fold_in(key, index)), None

    return jax.lax.scan(body, carry, indices)


def stateless(step) -> Sampler:
    """A sampler that remembers nothing, from `step(denoise, x, t, s, key) -> x`."""

    def with_memory(denoise, x, memory, t, s, key):
        return step(denoise, x, t, s, key), memory

    return Sampler(init=lambda x: (), step=with_memory)
