"""Variational autoencoding: an encoder and a decoder trained together on a bound of the likelihood."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
from jax import Array

from jaxdiff.likelihood.vae import Posterior, channel_kl, reparameterized
from jaxdiff.objectives.rng import keys_of
from jaxdiff.objectives.types import Objective, Params


def vae(
    encode: Callable[[Params, Array], Posterior | tuple[Array, Array]],
    decode: Callable[[Params, Array, Array], Array],
    *,
    beta: float = 1.0,
    free_bits: float = 0.0,
) -> Objective:
    """`(beta * KL(q(z | x0) || N(0, I)) - log p(x0 | z)) / dimensions` with one code per example, in nats per dimension of x0.

    Kingma & Welling (2014), eq. 7; beta other than 1 is Higgins et al. (2017), eq. 4. A channel of the code whose KL is under
    `free_bits` nats counts as `free_bits` (Kingma et al. 2016, eq. 15), here for each example and not for the mean over a
    batch, so that the loss does not depend on how the batch is split.

    Args:
        encode: `(params, x0) -> (mean, std)` of the code, `[B, ..., channels]`.
        decode: `(params, z, x0) -> log p(x0 | z) [B]`.
        beta: weight of the KL.
        free_bits: nats of KL per channel that are free.
    """

    def objective(params: Params, state: Any, batch: Mapping[str, Array], key: Array) -> Array:
        x0 = batch["image"]
        posterior = Posterior(*encode(params, x0))
        z = reparameterized(posterior, keys_of(key, batch["index"]))
        kl = jnp.sum(jnp.maximum(channel_kl(posterior), free_bits), axis=-1)
        return jnp.mean(beta * kl - decode(params, z, x0)) / math.prod(x0.shape[1:])

    return objective
