"""Layers that the networks share. Parameters are float32, computation is in `dtype`."""

from __future__ import annotations

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

zeros = nn.initializers.zeros_init()


class Norm(nn.Module):
    """Group normalisation (Wu & He 2018) in at most 32 groups of at least 4 channels, statistics in float32."""

    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        return nn.GroupNorm(num_groups=math.gcd(32, max(x.shape[-1] // 4, 1)), epsilon=1e-5, dtype=self.dtype)(x)


class Dropout(nn.Module):
    """Dropout (Srivastava et al. 2014) from 16 random bits a unit: half the cost of flax's, the rate exact to 1e-5."""

    rate: float

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        if not train or self.rate == 0:
            return x
        threshold = round(self.rate * 2**16)
        keep = jax.random.bits(self.make_rng("dropout"), x.shape, jnp.uint16) >= threshold
        return jnp.where(keep, x * (2**16 / (2**16 - threshold)), jnp.zeros_like(x))


def frequencies(value: Array, features: int, slowest: float = 0.05, fastest: float = 8.0) -> Array:
    """Sines and cosines of a scalar `[B]` at geometrically spaced angular frequencies, `[B, features]`.

    Vaswani et al. (2017), section 3.5, with frequencies for values about -15 to 15, such as a logsnr.
    """
    rates = jnp.geomspace(slowest, fastest, features // 2, dtype=value.dtype)
    angles = value[:, None] * rates[None, :]
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


class Attention(nn.Module):
    """A residual block of multi-head self-attention over all pixels (Vaswani et al. 2017; Ho et al. 2020)."""

    head_channels: int = 64
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        batch, height, width, channels = x.shape
        heads = max(channels // self.head_channels, 1)
        tokens = Norm(self.dtype)(x).reshape(batch, height * width, channels)
        queries_keys_values = nn.Dense(3 * channels, dtype=self.dtype, name="qkv")(tokens)
        q, k, v = jnp.moveaxis(queries_keys_values.reshape(batch, height * width, 3, heads, channels // heads), 2, 0)
        mixed = jax.nn.dot_product_attention(q, k, v).reshape(batch, height, width, channels)
        return x + nn.Dense(channels, dtype=self.dtype, kernel_init=zeros, name="out")(mixed)


class ResidualBlock(nn.Module):
    """Norm, SiLU, 3x3 convolution, twice; the condition `[B, E]` scales and shifts the second norm.

    Ho et al. (2020), appendix B, with the adaptive norm of Dhariwal & Nichol (2021), section 3.1. The second convolution
    starts at zero. `resample` halves (average) or doubles (nearest) the image inside the block, as in BigGAN.
    """

    channels: int
    dropout: float = 0.0
    resample: float = 1.0
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array, condition: Array, train: bool) -> Array:
        hidden = resized(nn.silu(Norm(self.dtype)(x)), self.resample)
        hidden = nn.Conv(self.channels, (3, 3), dtype=self.dtype)(hidden)
        scale_shift = nn.Dense(2 * self.channels, dtype=self.dtype)(nn.silu(condition))[:, None, None, :]
        scale, shift = jnp.split(scale_shift, 2, axis=-1)
        hidden = nn.silu(Norm(self.dtype)(hidden) * (1 + scale) + shift)
        hidden = Dropout(self.dropout)(hidden, train)
        hidden = nn.Conv(self.channels, (3, 3), dtype=self.dtype, kernel_init=zeros)(hidden)
        x = resized(x, self.resample)
        if x.shape[-1] != self.channels:
            x = nn.Dense(self.channels, dtype=self.dtype, name="skip")(x)
        return x + hidden


def resized(x: Array, factor: float) -> Array:
    """The images `[B, H, W, C]` halved by averaging (factor 0.5), doubled by repetition (2), or as they are (1)."""
    if factor == 0.5:
        return nn.avg_pool(x, (2, 2), strides=(2, 2))
    if factor == 2:
        return jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
    return x
