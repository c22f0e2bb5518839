"""A codebook updated by running means: vector quantisation (van den Oord et al. 2017) as part of one gradient step.

The codebook is two running means over all positions of the latents: `share [K]` of the positions whose nearest code is
k, and `sum [K, C]` of their latents, so that code k is sum / share. An exponential moving average is gradient descent with
learning rate 1 - decay on half the squared distance to each batch's mean: `following` is a loss of value 0 with that gradient.
The codebook is thus part of the params, with `optax.sgd(1 - decay)` as its optimizer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

Codebook = Mapping[str, Array]  # "share" [K], "sum" [K, C]

HIGHEST = jax.lax.Precision.HIGHEST  # a TPU would otherwise round latents and codes to bfloat16
DEAD = 0.1  # a code used less than this times the uniform share is dead


class Quantized(NamedTuple):
    """The nearest code of each latent, `[..., C]`, and its number, `chosen [...]`."""

    code: Array
    chosen: Array


def empty(num_codes: int, channels: int) -> dict[str, Array]:
    """A codebook of dead codes, which `following` replaces with latents of the first batch."""
    return {"share": jnp.zeros((num_codes,)), "sum": jnp.zeros((num_codes, channels))}


def codes(codebook: Codebook) -> Array:
    """The codes `[K, C]`; a code that was never used is 0."""
    return codebook["sum"] / jnp.where(codebook["share"] > 0, codebook["share"], 1.0)[:, None]


def quantized(codebook: Codebook, z: Array) -> Quantized:
    """The nearest code of each latent `[..., C]`, without gradient."""
    z, book, share = jax.lax.stop_gradient((z, codes(codebook), codebook["share"]))
    shape = (*(1 for _ in z.shape[:-1]), len(book))
    similarity = jnp.einsum("...c,kc->...k", z, book, precision=HIGHEST)
    distances = (
        jnp.sum(book**2, axis=-1).reshape(shape) - 2 * similarity
    )  # without the square of z, which is the same for all codes
    chosen = jnp.argmin(jnp.where(share.reshape(shape) > 0, distances, jnp.inf), axis=-1)
    return Quantized(book[chosen], chosen)


def following(codebook: Codebook, z: Array, chosen: Array, key: Array, decay: float, revive: Array | bool = True) -> Array:
    """A loss `[]` of value 0, by whose gradient `optax.sgd(1 - decay)` moves the codebook's means towards the batch's.

    van den Oord et al. (2017), appendix A.1. If `revive`, a dead code is replaced by a random latent of the batch,
    with the uniform share (as the restarts of Dhariwal et al. 2020, section 3.1); where gradients of several batches are averaged,
    by accumulation or under pmap, by the mean of one latent of each.
    """
    book, z = jax.lax.stop_gradient((codebook, z.reshape(-1, z.shape[-1])))
    num_codes = len(book["share"])
    shares = jax.nn.one_hot(chosen.reshape(-1), num_codes, dtype=z.dtype) / len(z)
    batch = {"share": jnp.sum(shares, axis=0), "sum": jnp.einsum("nk,nc->kc", shares, z, precision=HIGHEST)}
    drawn = z[jax.random.randint(key, (num_codes,), 0, len(z))]
    reborn = {"share": jnp.full_like(book["share"], 1 / num_codes), "sum": drawn / num_codes}
    dead = (book["share"] < DEAD / num_codes) & revive

    def descent(name: str) -> Array:
        where = dead.reshape(-1, *(1 for _ in book[name].shape[1:]))
        return jnp.where(where, (book[name] - reborn[name]) / (1 - decay), book[name] - batch[name])

    gradient = {name: descent(name) for name in ("share", "sum")}
    return sum((jnp.sum((codebook[name] - book[name]) * gradient[name]) for name in gradient), jnp.zeros(()))


def usage(chosen: Array, num_codes: int) -> dict[str, Any]:
    """The share of the codebook's codes that are among `chosen [...]`, and their perplexity, `exp(entropy)`."""
    share = jnp.bincount(chosen.reshape(-1), length=num_codes) / chosen.size
    entropy = -jnp.sum(share * jnp.log(jnp.where(share > 0, share, 1.0)))
    return {"codebook_usage": jnp.mean(share > 0), "perplexity": jnp.exp(entropy)}
