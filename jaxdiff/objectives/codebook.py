"""A codebook that follows its codes' means: vector quantisation (van den Oord et al. 2017) as part of one gradient step.

The codebook is two running means over all positions of the latents: `share [K]` of the positions whose nearest code is
k, and `sum [K, C]` of their latents, so that code k is sum / share. An exponential moving average is gradient descent with
the rate 1 - decay on half the squared distance from each batch's mean: `following` is a loss of value 0 with that
gradient, which makes the codebook one more part of the params, with `optax.sgd(1 - decay)` as its optimizer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

Codebook = Mapping[str, Array]  # "share" [K], "sum" [K, C]

HIGHEST = jax.lax.Precision.HIGHEST  # or a TPU would round latents to bfloat16, and codes with them
DEAD = 0.1  # of the share of a code if all were used alike: under it a code is dead


class Quantized(NamedTuple):
    """Latents `[..., C]` each replaced by the nearest code, which is number `chosen [...]`."""

    code: Array
    chosen: Array


def empty(num_codes: int, channels: int) -> dict[str, Array]:
    """A codebook whose codes are all dead: `following` fills it with latents of the first batch."""
    return {"share": jnp.zeros((num_codes,)), "sum": jnp.zeros((num_codes, channels))}


def codes(codebook: Codebook) -> Array:
    """The codes `[K, C]`; a code that was never used is 0."""
    return codebook["sum"] / jnp.where(codebook["share"] > 0, codebook["share"], 1.0)[:, None]


def quantized(codebook: Codebook, z: Array) -> Quantized:
    """The nearest code of each latent `[..., C]`. No gradient passes."""
    z, book, share = jax.lax.stop_gradient((z, codes(codebook), codebook["share"]))
    shape = (*(1 for _ in z.shape[:-1]), len(book))
    similarity = jnp.einsum("...c,kc->...k", z, book, precision=HIGHEST)
    distances = jnp.sum(book**2, axis=-1).reshape(shape) - 2 * similarity  # without the square of z, the same for all codes
    chosen = jnp.argmin(jnp.where(share.reshape(shape) > 0, distances, jnp.inf), axis=-1)
    return Quantized(book[chosen], chosen)


def following(codebook: Codebook, z: Array, chosen: Array, key: Array, decay: float, revive: Array | bool = True) -> Array:
    """A loss `[]` of value 0, at whose gradient `optax.sgd(1 - decay)` moves the codebook's means towards this batch's.

    van den Oord et al. (2017), appendix A.1. Where `revive`, a dead code becomes a latent of the batch, drawn at random,
    with the share that all would have if they were used alike (as Dhariwal et al. 2020, section 3.1, restart codes). Where
    gradients of several batches are averaged, by accumulation or under pmap, it becomes the mean of one latent of each.
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
    """Of codes number `chosen [...]`: the share of the codebook that is used, and the perplexity, `exp(entropy)`."""
    share = jnp.bincount(chosen.reshape(-1), length=num_codes) / chosen.size
    entropy = -jnp.sum(share * jnp.log(jnp.where(share > 0, share, 1.0)))
    return {"codebook_usage": jnp.mean(share > 0), "perplexity": jnp.exp(entropy)}
