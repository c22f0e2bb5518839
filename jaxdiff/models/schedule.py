"""A learned noise schedule: a network of one number, monotone by its weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jax.nn.initializers import constant


class MonotoneLogsnr(nn.Module):
    """From times in [0, 1] to logsnr, strictly decreasing from logsnr_max at 0 to logsnr_min at 1, in t's dtype.

    `h(t) = l1 t + mean(l3 sigmoid(steepness (l2 t + b)))` with positive weights, rescaled to the two ends: Kingma et al.
    (2021), appendix H. They learn the ends by the bound itself; these are fixed, since where the bound is least is a matter
    of the numerical range. Their sigmoids start nearly flat, these as `features` steps spread over [0, 1], all weights
    of the sum small: the start is linear within rounding, and some hundred updates of usual size bend it far.
    """

    logsnr_min: float = -5.0
    logsnr_max: float = 13.3
    features: int = 64
    steepness: float = 60.0

    @nn.compact
    def __call__(self, t: Array) -> Array:
        shape = (self.features,)
        l1 = self.param("l1", constant(0.1), ())
        l2 = self.param("l2", constant(1.0), shape)
        l3 = self.param("l3", constant(0.1), shape)
        # steps beyond 0 and 1 too: the start would else be flatter at the ends
        bias = self.param("bias", lambda _: jnp.linspace(0.2, -1.2, *shape))
        l1, l2, l3 = (jnp.abs(weight.astype(t.dtype)) for weight in (l1, l2, l3))
        l1, bias = l1 + 1e-4, bias.astype(t.dtype)  # strictly, where all weights have gone to 0

        def parts(time: Array) -> Array:
            steps = jax.nn.sigmoid(self.steepness * (l2 * time + bias))
            return jnp.append(l3 * steps / self.features, l1 * time)

        def share(time: Array) -> Array:
            here, before, after = parts(time), parts(jnp.zeros_like(time)), parts(jnp.ones_like(time))
            gone, left = jnp.sum(here - before), jnp.sum(after - here)
            return gone / (gone + left)  # exactly 0 and 1 at the ends

        shares = jax.vmap(share)(t.ravel()).reshape(t.shape)
        return self.logsnr_max * (1 - shares) + self.logsnr_min * shares


def logsnr(module: MonotoneLogsnr) -> Callable[[Any, Array], Array]:
    """The module as a pure function `(params, t) -> logsnr`."""

    def apply(params: Any, t: Array) -> Any:
        return module.apply({"params": params}, t)

    return apply
