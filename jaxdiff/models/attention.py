"""Attention as a function of queries, keys and values, in as few scores at once as pays."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

from jaxdiff.io import count

# Attention of more scores than this a head is computed in parts, which a TPU keeps in its VMEM (128 MiB; the batch of a
# chip multiplies them): at 4,096 tokens it would else write and read 64 MiB of scores an example and head. By the compiler's
# own HLO a Stable Diffusion UNet call takes 0.6 of the time (benchmarks/latent_compile.py). Against a Pallas kernel: the
# same matrix products, and it shards, differentiates forwards too and runs on every platform.
SCORES = 2**20
# Where the scores of all heads and examples are as many as fill that memory (in float32), one head after the other: CIFAR-10's
# 256 tokens in four heads at 128 images, whose step moves 4 GB less. Fewer fit, and are slower by heads.
ALL_SCORES = 2**25
EIGHTHS = 8


def head_count(channels: int, head_channels: int, heads: int = 0) -> int:
    """Into how many heads attention splits its channels: `heads`, or where that is 0, as many as `head_channels` allows.

    Raises:
        ValueError: the channels cannot be shared equally.
    """
    num = heads or max(channels // head_channels, 1)
    if channels % num:
        setting = "model.heads" if heads else "model.head_channels"
        raise ValueError(f"attention: {count(channels, 'channel')} cannot be shared by {count(num, 'head')}; change {setting}")
    return num


def attended(q: Array, k: Array, v: Array) -> Array:
    """`softmax(q k^T / sqrt(C)) v` of queries `[B, T, H, C]`, keys and values `[B, S, H, C]` (Vaswani et al. 2017, eq. 1)."""
    scores = q.shape[1] * k.shape[1]
    if scores >= SCORES:
        return attended_in_parts(q, k, v, SCORES)
    if q.shape[0] * q.shape[2] * scores >= ALL_SCORES:
        return _attended_by_heads(q, k, v)
    return _attention(q, k, v)


def attended_by_rows(q: Array, k: Array, v: Array) -> Array:
    """The same by eighths of the examples where the scores of all would not stay in a TPU's VMEM: for heads of a transformer.

    Their channels (72 in DiT-XL) do not fill a lane, so heads one by one move more than they save. A training step of DiT-XL/2 at
    32 images is bounded by 193 ms in place of 231 with all scores at once, by the compiler's own HLO.
    """
    scores = q.shape[1] * k.shape[1]
    if scores >= SCORES or q.shape[0] * q.shape[2] * scores < ALL_SCORES or q.shape[0] % EIGHTHS:
        return attended(q, k, v)

    def split(x: Array) -> Array:  # every eighth row, so that a sharded batch stays where it is
        return jnp.moveaxis(x.reshape(x.shape[0] // EIGHTHS, EIGHTHS, *x.shape[1:]), 1, 0)

    mixed = jax.lax.map(lambda rows: _recomputed_attention(*rows), (split(q), split(k), split(v)))
    return jnp.moveaxis(mixed, 0, 1).reshape(q.shape)


def causally_attended(q: Array, k: Array, v: Array) -> Array:
    """The same of a sequence, `[B, T, H, C]` each, where a place sees itself and those before it; of texts, which are short."""
    return _attention(q, k, v, causal=True)


def _attention(q: Array, k: Array, v: Array, causal: bool = False) -> Array:
    with jax.numpy_dtype_promotion("standard"):  # jax's own attention promotes bfloat16 to float32 by itself
        return jax.nn.dot_product_attention(q, k, v, is_causal=causal)


_recomputed_attention = jax.checkpoint(_attention)  # the backward pass would else keep, and read, the scores


@jax.jit  # traced, differentiated and lowered once for all places of one shape
def _attended_by_heads(q: Array, k: Array, v: Array) -> Array:
    heads = zip(*(jnp.split(x, x.shape[2], axis=2) for x in (q, k, v)), strict=True)
    return jnp.concatenate([_recomputed_attention(*head) for head in heads], axis=2)


def attended_in_parts(q: Array, k: Array, v: Array, scores: int) -> Array:
    """The same, by one head and a part of the queries at a time: at most `scores` scores an example at once.

    Rabe & Staats (2021), without their parts of keys. Where T has no divisor near `scores / S`, the parts are smaller.
    """
    batch, length, _, channels = q.shape
    size = max(n for n in range(1, length + 1) if length % n == 0 and (n == 1 or n * k.shape[1] <= scores))

    def head(parts: tuple[Array, Array, Array]) -> Array:
        q, k, v = parts

        def part(queries: Array) -> Array:
            return _recomputed_attention(queries, k, v)

        queries = jnp.moveaxis(q.reshape(batch, length // size, size, 1, channels), 1, 0)
        return jnp.moveaxis(jax.lax.map(part, queries), 0, 1).reshape(batch, length, channels)

    q, k, v = (jnp.moveaxis(x[:, :, None], 3, 0) for x in (q, k, v))
    return jnp.moveaxis(jax.lax.map(head, (q, k, v)), 0, 2)
