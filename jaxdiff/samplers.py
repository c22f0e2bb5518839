"""Samplers: `(init, step)` pairs, and the one loop over levels that runs them all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax import Array

from jaxdiff.denoiser import Denoiser
from jaxdiff.process import Level, transfer

Memory = Any  # what a multistep sampler remembers between steps: a pytree


class Sampler(NamedTuple):
    """Two pure functions: `init(x) -> memory` and `step(denoise, x, memory, t, s, key) -> (x, memory)` from t to s."""

    init: Callable[[Array], Memory]
    step: Callable[[Denoiser, Array, Memory, Level, Level, Array], tuple[Array, Memory]]


def sample(sampler: Sampler, denoise: Denoiser, x: Array, levels: Level, key: Array) -> Array:
    """The clean image x0 that the sampler reaches from x, a draw at `levels[0]`, along `levels [N + 1]`.

    x is `levels[0].sigma * noise` for levels that begin in pure noise. Pure: compiles under `jax.jit`, and memory does
    not grow with the number of steps.

    >>> import jax
    >>> from jaxdiff import cosine, ddim, grid, oracles, sample
    >>> cloud = oracles.gaussian(mean=[1.0, -1.0], std=0.1)
    >>> x = jax.random.normal(jax.random.key(0), (1000, 2))
    >>> sample(ddim(), oracles.denoiser(cloud), x, grid(cosine(), 50), jax.random.key(1)).mean(0).round(1).tolist()
    [1.0, -1.0]
    """
    (x, _), _ = _run(sampler, denoise, x, levels, key, keep=lambda x: None)
    return x


def trajectory(sampler: Sampler, denoise: Denoiser, x: Array, levels: Level, key: Array) -> Array:
    """Every state `[N + 1, B, ...]` on the way of `sample`, from x itself to x0."""
    _, states = _run(sampler, denoise, x, levels, key, keep=lambda x: x)
    return jnp.concatenate([x[None], states])


def _run(sampler, denoise, x, levels, key, keep):
    chex.assert_rank((levels.alpha, levels.sigma), 1)

    def body(carry, index):
        x, memory = carry
        x, memory = sampler.step(denoise, x, memory, levels[index], levels[index + 1], jax.random.fold_in(key, index))
        return (x, memory), keep(x)

    return jax.lax.scan(body, (x, sampler.init(x)), jnp.arange(levels.sigma.size - 1))


def ddim(eta: float | Array = 0.0) -> Sampler:
    """Aims at D(x, t) with fresh noise of std `eta * posterior_std`: eta = 0 is the probability-flow ODE, eta = 1 DDPM.

    Song, Meng & Ermon (2021), eq. 12 and 16, for eta in [0, 1]. A literal 0 draws no noise at all; a traced eta does not
    recompile.
    """
    if isinstance(eta, int | float) and eta == 0:
        return _stateless(lambda denoise, x, t, s, key: transfer(x, denoise(x, t), t, s))

    def step(denoise, x, t, s, key):
        fresh = eta * _fresh_share(t, s)
        rest = 1 - fresh**2
        kept = Level(s.alpha, s.sigma * jnp.where(rest > 0, jnp.sqrt(jnp.where(rest > 0, rest, 1)), 0))  # grad at 0 is finite
        return transfer(x, denoise(x, t), t, kept) + s.sigma * fresh * jax.random.normal(key, x.shape, x.dtype)

    return _stateless(step)


def posterior_std(t: Level, s: Level) -> Array:
    """Std of q(x_s given x_t, x0): `sigma_s * sqrt(1 - snr_t / snr_s)`, DDPM's small variance (Ho et al. 2020, eq. 7)."""
    return s.sigma * _fresh_share(t, s)


def forward_std(t: Level, s: Level) -> Array:
    """Std of q(x_t given x_s): `sigma_t * sqrt(1 - snr_t / snr_s)`, DDPM's large variance, sqrt(beta)."""
    return t.sigma * _fresh_share(t, s)


def ddpm(std: Callable[[Level, Level], Array] = posterior_std) -> Sampler:
    """Ancestral sampling: the mean of q(x_s given x_t, x0) at x0 = D(x, t), and noise of `std(t, s)`.

    Ho et al. (2020), algorithm 2, which adds no noise in the last step. `ddpm()` is `ddim(eta=1)`;
    `ddpm(forward_std)` is the large-variance form, right for data of unit variance.
    """

    def step(denoise, x, t, s, key):
        kept = Level(s.alpha, s.sigma * s.sigma * t.alpha / (t.sigma * s.alpha))
        noise = jax.random.normal(key, x.shape, x.dtype)
        return transfer(x, denoise(x, t), t, kept) + jnp.where(s.sigma > 0, std(t, s), 0) * noise

    return _stateless(step)


def _fresh_share(t: Level, s: Level) -> Array:
    """`sqrt(1 - snr_t / snr_s)`, between 0 (s = t) and 1 (s is clean)."""
    ratio = t.alpha * s.sigma / (t.sigma * s.alpha)
    return jnp.sqrt((1 - ratio) * (1 + ratio))


def _stateless(step) -> Sampler:
    """A sampler that remembers nothing, from `step(denoise, x, t, s, key) -> x`."""

    def with_memory(denoise, x, memory, t, s, key):
        return step(denoise, x, t, s, key), memory

    return Sampler(init=lambda x: (), step=with_memory)
