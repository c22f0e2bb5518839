"""The one loop over levels that runs every sampler."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax import Array

from jaxdiff.arguments import at_least_float32
from jaxdiff.compilation import compiled_once
from jaxdiff.denoiser import AverageDenoiser, Denoiser, ReverseKernel
from jaxdiff.process import Level

Memory = Any  # what a multistep sampler carries from step to step: a pytree


Step = Callable[[Any, Array, Memory, Level, Level, Array], tuple[Array, Memory]]


class Sampler(NamedTuple):
    """Two pure functions: `init(x) -> memory` and `step(denoise, x, memory, t, s, key) -> (x, memory)` from t to s.

    A sampler whose step makes calls that the step to clean does not need may give a third, `last`, of `step`'s signature:
    what `step` returns where s is clean, in fewer calls. `sample` and `trajectory` take the last step by it, outside their
    loop, which compiles the denoiser once more. `step` must serve that step as well.
    """

    init: Callable[[Array], Memory]
    step: Step
    last: Step | None = None


@compiled_once
def sample(sampler: Sampler, denoise: Denoiser | AverageDenoiser | ReverseKernel, x: Array, levels: Level, key: Array) -> Array:
    """The x0 that the sampler reaches from x, a sample at `levels[0]`, along `levels [N + 1]`, of which the last is clean.

    To start from pure noise, x is `levels[0].sigma * noise`. Pure; compiles under `jax.jit`, and memory does not grow with the
    number of steps. x and levels in bfloat16 or float16 are computed in float32, which the denoiser sees, and the result is in
    their dtype.

    A sampler may tell the denoiser where its step goes: `denoise(x, t, s)`, as `flow_map` does.

    Raises:
        TypeError: x and levels differ in dtype.

    >>> import jax
    >>> from jaxdiff import cosine, ddim, grid, oracles, sample
    >>> cloud = oracles.gaussian(mean=[1.0, -1.0], std=0.1)
    >>> x = jax.random.normal(jax.random.key(0), (1000, 2))
    >>> sample(ddim(), oracles.denoiser(cloud), x, grid(cosine(), 50), jax.random.key(1)).mean(0).round(1).tolist()
    [1.0, -1.0]
    """
    move, carry, num_steps = _moves(sampler, denoise, x, levels, key)
    looped = num_steps - (sampler.last is not None)
    if looped:
        carry, _ = jax.lax.scan(move, carry, jnp.arange(looped))
    x0 = carry[0] if sampler.last is None else move(carry, looped, sampler.last)[0][0]
    return x0.astype(x.dtype)


@compiled_once
def trajectory(
    sampler: Sampler, denoise: Denoiser | AverageDenoiser | ReverseKernel, x: Array, levels: Level, key: Array, every: int = 1
) -> Array:
    """The states `[N / every + 1, B, ...]` of `sample`, from x to x0: after every step, or after every k-th.

    Raises:
        ValueError: `every` does not divide the number of steps N.
    """
    move, carry, num_steps = _moves(sampler, denoise, x, levels, key)
    if every < 1 or num_steps % every:
        raise ValueError(f"trajectory: every must divide the number of steps, {num_steps}, got {every}")

    def leg(carry, indices):
        carry, _ = jax.lax.scan(move, carry, indices)
        return carry, carry[0].astype(x.dtype)

    x, legs = jnp.asarray(x), jnp.arange(num_steps).reshape(-1, every)
    if sampler.last is None:
        _, states = jax.lax.scan(leg, carry, legs)
        return jnp.concatenate([x[None], states])
    carry, states = jax.lax.scan(leg, carry, legs[:-1])
    if every > 1:
        carry, _ = jax.lax.scan(move, carry, legs[-1, :-1])
    (x0, _), _ = move(carry, num_steps - 1, sampler.last)
    return jnp.concatenate([x[None], states, x0.astype(x.dtype)[None]])


def _moves(sampler, denoise, x, levels, key):
    """`move(carry, index) -> (carry, None)`, one step, the first carry `(x, memory)`, and the number of steps."""
    x, levels = jax.tree.map(jnp.asarray, (x, levels))
    chex.assert_rank((levels.alpha, levels.sigma), 1)
    if not x.dtype == levels.alpha.dtype == levels.sigma.dtype:
        raise TypeError(f"sample: x is {x.dtype}, levels {levels.alpha.dtype}; give both in one dtype (a network may use another)")

    x, levels = at_least_float32((x, levels))

    def of_one_dtype(x, *levels):
        return jax.tree.map(lambda leaf: jnp.asarray(leaf, x.dtype), denoise(x, *levels))

    def move(carry, index, step=sampler.step):
        return step(of_one_dtype, *carry, levels[index], levels[index + 1], jax.random.fold_in(key, index)), None

    return move, (x, sampler.init(x)), levels.sigma.size - 1


def map_step(wrap: Callable[[Step], Step], sampler: Sampler) -> Sampler:
    """The sampler with `wrap` around its step, and around its `last` if it has one."""
    return sampler._replace(step=wrap(sampler.step), last=None if sampler.last is None else wrap(sampler.last))


def stateless(step) -> Sampler:
    """A sampler without memory, from `step(denoise, x, t, s, key) -> x`."""

    def with_memory(denoise, x, memory, t, s, key):
        return step(denoise, x, t, s, key), memory

    return Sampler(init=lambda x: (), step=with_memory)
