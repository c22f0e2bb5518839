"""The exponential integrals of steps in `lam = log(alpha / sigma)`, half of logsnr, in which DPM-Solver and UniPC measure a step.

With x0 as a function of lam the probability-flow ODE has the solution
`x_s = (sigma_s / sigma_t) x + sigma_s int exp(lam) x0(lam) d lam`, so a solver takes means of x0 weighted by `exp(lam)`.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array

from jaxdiff.process import Level


def stride(t: Level, s: Level) -> Array:
    """`lam_s - lam_t`; infinite from pure noise (alpha = 0), to clean (sigma = 0), and between equal levels."""
    ratio = s.alpha * t.sigma / jnp.where(t.alpha * s.sigma > 0, t.alpha * s.sigma, jnp.inf)
    finite = (ratio > 0) & (ratio != 1)
    return jnp.where(finite, jnp.log(jnp.where(finite, ratio, 1)), jnp.inf)


def exponential_moments(h: Array) -> tuple[Array, Array]:
    """Means of `u` and `u^2` over u in [0, 1] weighted by `exp(h u)`; by their series where h is small."""
    small = jnp.abs(h) < 0.1
    safe = jnp.where(small, 1, h)
    total = -1 / jnp.expm1(-safe)
    first = total - 1 / safe
    first_series = 1 / 2 + h / 12 - h**3 / 720 + h**5 / 30240
    second_series = 1 / 3 + h / 12 + h**2 / 360 - h**3 / 720 - h**4 / 15120 + h**5 / 30240
    return jnp.where(small, first_series, first), jnp.where(small, second_series, total - 2 * first / safe)
