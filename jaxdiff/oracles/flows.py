"""The probability flow of any exact denoiser, by integration, and its average denoiser."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from jaxdiff.denoiser import AverageDenoiser, Denoiser
from jaxdiff.process import Level, implied_x0

STEPS = 200


def integrated(denoise: Denoiser, score: Denoiser, num_steps: int = STEPS) -> Callable[..., Array]:
    """The flow `(x, t, s) -> x_s` by the fourth-order rule of Runge and Kutta in `theta = atan(sigma / alpha)`, on unit levels.

    There `u = x / hypot(alpha, sigma)` moves by `cos(theta) noise - sin(theta) x0`, written so that neither end of theta divides by
    zero. In float64 the error is about 1e-8 for standard deviations of 0.1.
    """

    def velocity(u: Array, theta: Array) -> Array:
        cos, sin = jnp.cos(theta), jnp.sin(theta)
        level, noisy = Level(cos, sin), sin > cos
        by_x0 = (cos * u - denoise(u, level)) / jnp.where(noisy, sin, 1)
        return jnp.where(noisy, by_x0, -sin / jnp.where(noisy, 1, cos) * (u + score(u, level)))

    def flow(x: Array, t: Level, s: Level | None = None) -> Array:
        s = Level(jnp.ones_like(t.alpha), jnp.zeros_like(t.sigma)) if s is None else s
        start, end = (jnp.arctan2(level.sigma, level.alpha) for level in (t, s))
        h = (end - start) / num_steps

        def step(u: Array, number: Array) -> tuple[Array, None]:
            theta = start + number * h
            one = velocity(u, theta)
            two = velocity(u + h / 2 * one, theta + h / 2)
            three = velocity(u + h / 2 * two, theta + h / 2)
            four = velocity(u + h * three, theta + h)
            return u + h / 6 * (one + 2 * two + 2 * three + four), None

        u, _ = jax.lax.scan(step, x / jnp.hypot(t.alpha, t.sigma), jnp.arange(num_steps).astype(x.dtype))
        return jnp.hypot(s.alpha, s.sigma) * u

    return flow


def average_denoiser(flow: Callable[..., Array], denoise: Denoiser) -> AverageDenoiser:
    """The x0 with which one step from t to s goes along the flow; the denoiser itself where s = t."""

    def average(x: Array, t: Level, s: Level) -> Array:
        still = (s.sigma == t.sigma) & (s.alpha == t.alpha)
        apart = Level(jnp.where(still, 1, s.alpha), jnp.where(still, 0, s.sigma))
        return jnp.where(still, denoise(x, t), implied_x0(x, flow(x, t, apart), t, apart))

    return average
