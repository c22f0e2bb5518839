"""Discrete chains as the world publishes them: their betas, and the time step at a level."""

from __future__ import annotations

import math
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from jaxdiff.arguments import at_least_float32, check, check_count
from jaxdiff.process.schedules import checked_betas


def linear_betas(first: float = 0.0001, last: float = 0.02, num: int = 1000) -> np.ndarray:
    """Betas that rise linearly (Ho et al. 2020, section 4)."""
    _check("linear_betas", first, last, num)
    return np.linspace(first, last, num)


def scaled_linear_betas(first: float = 0.00085, last: float = 0.012, num: int = 1000) -> np.ndarray:
    """Betas whose square roots rise linearly, of latent diffusion (Rombach et al. 2022, published code)."""
    _check("scaled_linear_betas", first, last, num)
    return np.linspace(math.sqrt(first), math.sqrt(last), num) ** 2


def cosine_betas(num: int = 1000, most: float = 0.999) -> np.ndarray:
    """Betas of `alpha^2 = cos^2((t + 0.008) / 1.008 * pi / 2)`, none above `most` (Nichol & Dhariwal 2021, eq. 17)."""
    check_count("cosine_betas", num=num)
    alpha2 = np.cos((np.arange(num + 1) / num + 0.008) / 1.008 * math.pi / 2) ** 2
    return np.minimum(1 - alpha2[1:] / alpha2[:-1], most)


def timestep_of(betas: ArrayLike) -> Callable[[Array], Array]:
    """The inverse of `from_betas`: from a logsnr of any shape to the published time step i, from 0 to T - 1, at `betas[i]`.

    Networks of discrete chains are told the step. Between two steps it is interpolated in logsnr; beyond the ends it is the end.
    In float32 it is accurate to 1e-4 of a step, but in the last two of a chain that ends at alpha = 0, where `from_betas` is
    clipped.

    Raises:
        ValueError: `betas` is not a vector of values in (0, 1].

    >>> from jaxdiff import from_betas
    >>> betas = linear_betas()
    >>> step = timestep_of(betas)(from_betas(betas)((250 + 1) / 1000).logsnr)
    >>> round(step.item(), 2)
    250.0
    """
    betas = checked_betas(betas, "timestep_of", "values in (0, 1]", lambda b: (b > 0) & (b <= 1))
    with np.errstate(divide="ignore"):
        noise = np.log(np.expm1(-np.cumsum(np.log1p(-betas))))  # -logsnr, which rises
    finite = np.minimum(noise, np.max(noise[np.isfinite(noise)], initial=0) + 1)  # of a chain that ends at alpha = 0

    def step(logsnr: Array) -> Array:
        wide = at_least_float32(logsnr)
        steps = jnp.interp(-wide, jnp.asarray(finite, wide.dtype), jnp.arange(betas.size, dtype=wide.dtype))
        return steps.astype(logsnr.dtype)

    return step


def _check(where: str, first: float, last: float, num: int) -> None:
    check_count(where, num=num)
    check(where, "0 < first <= last < 1", lambda first, last: 0 < first <= last < 1, first=first, last=last)
