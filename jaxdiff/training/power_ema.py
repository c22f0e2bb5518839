"""Power-function averages of the params, and any other one reconstructed afterwards from snapshots of two of them.

Karras et al. (2023), "Analyzing and Improving the Training Dynamics of Diffusion Models", section 3 and appendix C. The length of
an average is the standard deviation of its weights over steps, as a share of the steps so far.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

LONGEST = 1 / math.sqrt(12)  # of an average whose weights do not fall towards the newest params: gamma = 0, all alike


class Profile(NamedTuple):
    """The weights `(gamma + 1) t^gamma / step^(gamma + 1)` of an average after so many steps, over `0 < t <= step`."""

    step: float
    gamma: float


def gamma_of(length: float) -> float:
    """The exponent whose profile has that length: the root of `(g + 2)^2 (g + 3) length^2 = g + 1` that is positive.

    Raises:
        ValueError: length is not between 0 and 1 / sqrt(12), about 0.2887.
    """
    if not 0 < length < LONGEST:
        raise ValueError(f"power_ema: a length must be above 0 and below {LONGEST:.4f}, got {length:g}")
    inverse = length**-2
    return float(np.max(np.roots([1, 7, 16 - inverse, 12 - inverse]).real))


def length_of(gamma: float) -> float:
    """The length `sqrt(gamma + 1) / ((gamma + 2) sqrt(gamma + 3))` of a profile: its standard deviation over its step."""
    return math.sqrt(gamma + 1) / ((gamma + 2) * math.sqrt(gamma + 3))


def share(length: float) -> Callable[[Array], Array]:
    """From step t, of which 1 is the first, to `1 - beta = 1 - (1 - 1 / t)^(gamma + 1)`, what the new params count for.

    So the params after step i weigh `(i^(gamma + 1) - (i - 1)^(gamma + 1)) / t^(gamma + 1)`, and the initial ones nothing.
    """
    power = gamma_of(length) + 1
    return lambda step: -jnp.expm1(power * jnp.log1p(-1 / step))


def inner_products(a: Sequence[Profile], b: Sequence[Profile]) -> np.ndarray:
    """The integrals `[A, B]` over t of the products of profiles, float64.

    `(g + 1) (h + 1) / (g + h + 1) (u / v)^h / v` where u <= v are the steps, and h belongs to v.
    """
    (t, g), (s, h) = (np.array(profiles, np.float64).T for profiles in (a, b))
    t, g, s, h = t[:, None], g[:, None], s[None], h[None]
    later, power = np.maximum(t, s), np.where(t > s, g, h)
    return (g + 1) * (h + 1) / (g + h + 1) * (np.minimum(t, s) / later) ** power / later


def solve(wanted: Profile, known: Sequence[Profile]) -> tuple[np.ndarray, float]:
    """The weights `[N]`, of sum 1, whose sum of known profiles is nearest to the wanted one, and how far it is from it.

    Least squares over t; the distance is relative to the wanted profile's norm. That the weights sum to 1, which the paper leaves
    to the fit, keeps what all snapshots have in common to the last digit.
    """
    gram, product = inner_products(known, known), inner_products(known, [wanted])[:, 0]
    size = np.sqrt(np.diag(gram))  # profiles of norm 1 are the better conditioned problem
    system = np.block([[gram / np.outer(size, size), (1 / size)[:, None]], [(1 / size)[None], np.zeros((1, 1))]])
    found = np.linalg.lstsq(system, np.append(product / size, 1), rcond=1e-13)[0]
    weights = found[:-1] / size
    norm2 = inner_products([wanted], [wanted])[0, 0]
    distance2 = norm2 - 2 * weights @ product + weights @ gram @ weights
    return weights, math.sqrt(max(distance2, 0) / norm2)


def name_of(length: float) -> str:
    """The name, among the averages of a training state, of the one of that length; its dot tells it from names of a config."""
    return f"power_{length:.6f}".rstrip("0")
