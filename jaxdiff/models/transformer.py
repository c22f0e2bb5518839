"""Transformer blocks for images: self-attention, cross-attention to context vectors, feed-forward."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from jaxdiff.models.attention import attended, head_count
from jaxdiff.models.layers import Dense, Norm, ones, zeros


class Transformer(nn.Module):
    """A residual transformer over all pixels of an image `[B, H, W, C]`: norm, projection in, blocks, projection out.

    Rombach et al. (2022), appendix E.2.1. The blocks attend to the context `[B, T, D]`, if any, in no order of its vectors.
    The projection out starts at zero.
    """

    blocks: int = 1
    head_channels: int = 64
    dtype: DTypeLike = jnp.float32
    heads: int = 0
    groups: int = 0
    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: Array, context: Array | None) -> Array:
        batch, height, width, channels = x.shape
        heads = head_count(channels, self.head_channels, self.heads)
        tokens = Norm(self.dtype, self.groups, self.epsilon)(x).reshape(batch, height * width, channels)
        tokens = Dense(channels, dtype=self.dtype, name="in")(tokens)
        for number in range(self.blocks):
            tokens = Block(heads, self.dtype, name=f"block_{number}")(tokens, context)
        return x + Dense(channels, dtype=self.dtype, kernel_init=zeros, name="out")(tokens).reshape(x.shape)


class Block(nn.Module):
    """Self-attention, cross-attention to the context, if any, and feed-forward, each behind a layer norm and residual.

    Vaswani et al. (2017), section 3.1, with the norms before (Xiong et al. 2020). Tokens are `[B, T, C]`.
    """

    heads: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, tokens: Array, context: Array | None) -> Array:
        normed = LayerNorm(self.dtype, name="norm_self")(tokens)
        tokens = tokens + MultiHead(self.heads, self.dtype, name="self")(normed, normed)
        if context is not None:
            normed = LayerNorm(self.dtype, name="norm_cross")(tokens)
            tokens = tokens + MultiHead(self.heads, self.dtype, name="cross")(normed, context)
        return tokens + GatedFeedForward(self.dtype, name="feed")(LayerNorm(self.dtype, name="norm_feed")(tokens))


class MultiHead(nn.Module):
    """Attention of queries from tokens `[B, T, C]` to keys and values from a source `[B, S, D]`, `[B, T, C]`."""

    heads: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, tokens: Array, source: Array) -> Array:
        channels = tokens.shape[-1]

        def projected(x: Array, name: str) -> Array:
            y = Dense(channels, use_bias=False, dtype=self.dtype, name=name)(x)
            return y.reshape(*y.shape[:2], self.heads, channels // self.heads)

        mixed = attended(projected(tokens, "q"), projected(source, "k"), projected(source, "v"))
        return Dense(channels, dtype=self.dtype, name="out")(mixed.reshape(tokens.shape))


class GatedFeedForward(nn.Module):
    """GEGLU, `out(a * gelu(b))` with a and b four times as wide as the tokens (Shazeer 2020, eq. 6, with biases)."""

    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, tokens: Array) -> Array:
        channels = tokens.shape[-1]
        value, gate = jnp.split(Dense(8 * channels, dtype=self.dtype, name="in")(tokens), 2, axis=-1)
        return Dense(channels, dtype=self.dtype, name="out")(value * nn.gelu(gate, approximate=False))


class LayerNorm(nn.Module):
    """Layer normalisation (Ba et al. 2016) of `[B, T, C]` over channels; statistics are float32."""

    dtype: DTypeLike = jnp.float32
    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: Array) -> Array:
        scale = self.param("scale", ones, x.shape[-1:])
        bias = self.param("bias", zeros, x.shape[-1:])
        full = x.astype(jnp.float32)
        mean = jnp.mean(full, axis=-1, keepdims=True)
        variance = jnp.mean((full - mean) ** 2, axis=-1, keepdims=True)
        return ((full - mean) * jax.lax.rsqrt(variance + self.epsilon) * scale[None, None] + bias[None, None]).astype(self.dtype)
