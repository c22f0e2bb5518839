"""Targets that students regress onto: denoisers made from data or from other denoisers."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jaxdiff.arguments import at_least_float32
from jaxdiff.denoiser import Denoiser
from jaxdiff.process import Level, implied_x0, transfer

Solver = Callable[[Denoiser, Array, Level, Level], Array]  # (teacher, x, t, s) -> x at s on the teacher's probability flow


def data(x0: Array) -> Denoiser:
    """The clean data at every level: the target of diffusion training."""
    return lambda x, level: x0


def euler(denoise: Denoiser, x: Array, t: Level, s: Level) -> Array:
    """One step of DDIM from t to s: Euler's rule on the probability flow; exact for the denoiser `data(x0)`."""
    return transfer(x, denoise(x, t), t, s)


def two_steps(teacher: Denoiser, m: Level, s: Level) -> Denoiser:
    """The x0 for which one DDIM step from t to s ends where the teacher's two steps end, t to m to s.

    Progressive distillation (Salimans & Ho 2022, algorithm 2). Noise falls from t to m to s. If s is clean the
    target is the teacher's x0 at m, and if m is clean as well, its x0 at t. In float32 the error is about 1e-7 divided by
    `alpha_s - alpha_t sigma_s / sigma_t`; half precision is computed in float32.
    """
    m, s = at_least_float32((m, s))

    def target(x: Array, t: Level) -> Array:
        dtype = x.dtype
        x, t = at_least_float32((x, t))
        x_m = euler(teacher, x, t, m)
        x_s = _unless_clean(m, x_m, lambda noisy: euler(teacher, x_m, noisy, s))
        return implied_x0(x, x_s, t, s).astype(dtype)

    return target


def ahead(network: Denoiser, teacher: Denoiser, s: Level, solver: Solver = euler) -> Denoiser:
    """The network's x0 at the end of the teacher's solver step from t to s; that end itself where s is clean.

    Consistency distillation (Song et al. 2023, eq. 7); with the teacher `data(x0)`, consistency training (eq. 10); with a
    guided teacher and s several levels on, latent consistency (Luo et al. 2023, eq. 16). Half precision is computed in float32.
    """
    s = at_least_float32(s)

    def target(x: Array, t: Level) -> Array:
        x_s = solver(teacher, *at_least_float32((x, t)), s)
        return _unless_clean(s, x_s, lambda noisy: network(x_s, noisy)).astype(x.dtype)

    return target


def tangent(network: Denoiser, teacher: Denoiser, *, warmup: ArrayLike = 1.0, floor: float = 0.1) -> Denoiser:
    """`f - sigma * g / (rms(g) + floor)`, `g = alpha * df / dtheta`: a step of the network f against its derivative along the flow.

    Continuous-time consistency, sCM (Lu & Song 2024, eq. 6 and section 4.1), on variance-preserving levels
    `alpha = cos(theta)`, `sigma = sin(theta)`. For a network that predicts v, with the weight of v, it is their
    loss in the network's own output. `warmup`, their r from 0 to 1, scales the unstable part of the slope; at 0 the target points
    towards the teacher's x0. `floor` is their c, added to the root of the mean square over an example's values where they add it to
    that of the sum.

    The slope is `jax.jvp` of the network in (x, level); see `slope`.
    """

    def target(x: Array, t: Level) -> Array:
        x0, teacher_x0 = network(x, t), teacher(x, t)
        full = slope(network, teacher_x0, x, t)
        stable = t.alpha / t.sigma * (x0 - teacher_x0)
        g = t.alpha * (stable + warmup * (full - stable))
        rms = jnp.sqrt(jnp.mean(g**2, axis=tuple(range(1, g.ndim)), keepdims=True))
        return x0 - t.sigma * g / (rms + floor)

    return target


def slope(network: Denoiser, x0: Array, x: Array, t: Level) -> Array:
    """`df / dtheta` of a denoiser f along the probability flow through x with the given x0: 0 for a consistency function.

    At `alpha = cos(theta)`, `sigma = sin(theta)`: `dx = alpha * noise - sigma * x0`, the flow's velocity (Lu & Song 2024,
    section 3.1). Fails where sigma = 0.
    """
    noise = (x - t.alpha * x0) / t.sigma
    velocity = t.alpha * noise - t.sigma * x0
    return jax.jvp(network, (x, t), (velocity, Level(-t.sigma, t.alpha)))[1]


def _unless_clean(level: Level, x: Array, value: Callable[[Level], Array]) -> Array:
    """`value(level)`, or x itself where the level has no noise, so that the network never sees such a level."""
    noisy = level.sigma > 0
    safe = Level(jnp.where(noisy, level.alpha, 0.5**0.5), jnp.where(noisy, level.sigma, 0.5**0.5))
    return jnp.where(noisy, value(safe), x)
