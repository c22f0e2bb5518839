"""Targets that students regress onto: denoisers made from data or from other denoisers."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jaxdiff.arguments import at_least_float32
from jaxdiff.denoiser import AverageDenoiser, Denoiser
from jaxdiff.process import Level, transfer

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
    target is the teacher's x0 at m, and if m is clean as well, its x0 at t. Half precision is computed in float32.
    """

    def either(x: Array, t: Level, s: Level) -> Array:
        return teacher(x, t)

    return two_jumps(either, either, m, s)


def two_jumps(first: AverageDenoiser, second: AverageDenoiser, m: Level, s: Level) -> Denoiser:
    """The x0 for which one jump from t to s ends where two do, the first's from t to m and the second's from m to s.

    Flow maps compose, so both have one target: the average of the two x0 by the rise of `alpha / sigma`, as the flow is
    `d(x / sigma) = x0 d(alpha / sigma)`. Two of one network's own jumps are the target of shortcut models (Frans et al. 2024);
    with the first `data`, that of alpha-Flow (Zhang et al. 2025), and of consistency training where s is clean.
    Fails where s = t.
    """
    m, s = at_least_float32((m, s))

    def target(x: Array, t: Level) -> Array:
        dtype = x.dtype
        x, t = at_least_float32((x, t))
        one = first(x, t, m)
        two = _unless_clean(m, one, lambda noisy: second(transfer(x, one, t, noisy), noisy, s))
        rise, whole = (to.alpha * t.sigma - t.alpha * to.sigma for to in (m, s))
        clean = m.sigma == 0
        share = jnp.where(clean, 1, rise * s.sigma / (whole * jnp.where(clean, 1, m.sigma)))
        return (two + share * (one - two)).astype(dtype)

    return target


def mean_flow(
    network: AverageDenoiser,
    teacher: Denoiser,
    s: Level,
    *,
    along: Denoiser | None = None,
    size: Callable[[Array, Array], Array] = jnp.hypot,
) -> Denoiser:
    """`x0 + (1 - r) (f - y) + (alpha_s - r alpha_t) / (alpha' - alpha_t sigma' / sigma_t) df`, `r = sigma_s / sigma_t`: MeanFlow.

    x0 is the teacher's, f the network's jump to s, df the derivative of f along the flow of `along`, whose x0 is y; the teacher by
    default. On straight levels and for velocities it is `v - (t - s) (w du/dx + du/dt)`, with w that of y: v itself in MeanFlow
    (Geng et al. 2025a, section 4.1), and that of the network's own `instantaneous` denoiser in improved MeanFlow (2025b). See
    `direction` for `size`. Half precision is computed in float32.
    """
    s = at_least_float32(s)

    def target(x: Array, t: Level) -> Array:
        dtype = x.dtype
        x, t = at_least_float32((x, t))
        x0, ratio, rate = teacher(x, t), s.sigma / t.sigma, direction(t, size)
        y = x0 if along is None else along(x, t)
        moved = slope(lambda x, t: network(x, t, s), y, x, t, size)
        gap = (s.alpha - ratio * t.alpha) / (rate.alpha - t.alpha * rate.sigma / t.sigma)
        return (x0 + (1 - ratio) * (network(x, t, s) - y) + gap * moved).astype(dtype)

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


def unit_error(sample: Array, x0: Array) -> Array:
    """`1 / mean(|sample - x0|)` over each example's values, `[B, 1, ..., 1]`."""
    gap = jnp.mean(jnp.abs(sample - x0), axis=tuple(range(1, x0.ndim)), keepdims=True)
    return 1 / jnp.maximum(gap, 1e-4)


def matching(sample: Array, real: Denoiser, fake: Denoiser, weight: Callable[[Array, Array], Array] = unit_error) -> Denoiser:
    """`sample - w * (fake(x, t) - real(x, t))`, `w = weight(sample, real(x, t))`: where fake equals real, the sample itself.

    Distribution matching (Yin et al. 2023, eq. 7 and 8): with `fake` the denoiser of the samples' own distribution, the sample's
    mean error to it has the gradient of the KL divergence from the noised samples to noised data: as the score is
    `(alpha D - x) / sigma^2`, their difference of scores is `alpha / sigma^2 * (fake - real)`, and w stands for their weight,
    which makes w about the inverse of the real denoiser's own error. With w = snr it is the plain KL.
    """

    def target(x: Array, t: Level) -> Array:
        x0 = real(x, t)
        return sample - weight(sample, x0) * (fake(x, t) - x0)

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


def slope(network: Denoiser, x0: Array, x: Array, t: Level, size: Callable[[Array, Array], Array] = jnp.hypot) -> Array:
    """The derivative of a denoiser f along the probability flow through x with the given x0: 0 for a consistency function.

    The flow's velocity is `alpha' * x0 + sigma' * noise`; see `direction` for (alpha', sigma'), at `alpha = cos(theta)`, `sigma =
    sin(theta)` the derivative in theta (Lu & Song 2024, section 3.1). Fails where sigma = 0.
    """
    noise, rate = (x - t.alpha * x0) / t.sigma, direction(t, size)
    return jax.jvp(network, (x, t), (rate.alpha * x0 + rate.sigma * noise, rate))[1]


def direction(t: Level, size: Callable[[Array, Array], Array] = jnp.hypot) -> Level:
    """The derivative of levels that keep `size(alpha, sigma)`, towards more noise: (-sigma, alpha) of variance-preserving ones.

    `size` is that of `process.shifted`: hypot, jnp.add on straight levels, `lambda alpha, sigma: alpha` on exploding ones.
    """
    by_alpha, by_sigma = jax.grad(lambda alpha, sigma: jnp.sum(size(alpha, sigma)), argnums=(0, 1))(t.alpha, t.sigma)
    return Level(-by_sigma, by_alpha)


def _unless_clean(level: Level, x: Array, value: Callable[[Level], Array]) -> Array:
    """`value(level)`, or x itself where the level has no noise, so that the network never sees such a level."""
    noisy = level.sigma > 0
    safe = Level(jnp.where(noisy, level.alpha, 0.5**0.5), jnp.where(noisy, level.sigma, 0.5**0.5))
    return jnp.where(noisy, value(safe), x)
