"""The blocks of diffusion transformers: adaLN-Zero, with cross-attention to a context or in joint attention with it."""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from jaxdiff.models.attention import attended_by_rows
from jaxdiff.models.layers import ones, zeros

xavier, small = (
    jax.jit(initializer, static_argnums=(1, 2)) for initializer in (nn.initializers.xavier_uniform(), nn.initializers.normal(0.02))
)
Dense = functools.partial(nn.Dense, kernel_init=xavier, bias_init=zeros)


class CrossBlock(nn.Module):
    """Self-attention, cross-attention to a context `[B, S, D]` if there is one, and feed-forward of tokens `[B, T, C]`.

    Peebles & Xie (2022), section 3.2, adaLN-Zero: the embedding `[B, C]` shifts, scales and gates; gates are zero at first.
    Cross-attention is that of PixArt (Chen et al. 2023, section 2.3), not gated; its projection out starts at zero.
    """

    heads: int
    mlp_ratio: float = 4.0
    qk_norm: bool = False
    swiglu: bool = False
    dtype: DTypeLike = jnp.float32
    epsilon: float = 1e-6

    @nn.compact
    def __call__(self, tokens: Array, embedding: Array, context: Array | None, places: Array | None) -> Array:
        channels = tokens.shape[-1]
        projection = functools.partial(_Projection, self.heads, self.qk_norm, self.dtype)
        first = modulations(channels, 6, self.dtype, "modulation", embedding)
        q, k, v = projection(name="self_attention")(seen := modulated(tokens, first[0], first[1]), seen)
        mixed = attended_by_rows(turned(q, places), turned(k, places), v).reshape(tokens.shape)
        tokens = tokens + first[2][:, None] * _Out(channels, self.dtype, name="self_attention_out")(mixed)
        if context is not None:
            q, k, v = projection(name="cross_attention")(tokens, context.astype(self.dtype))
            mixed = attended_by_rows(q, k, v).reshape(tokens.shape)
            tokens = tokens + _Out(channels, self.dtype, True, name="cross_attention_out")(mixed)
        feed = FeedForward(self.mlp_ratio, self.swiglu, self.dtype, name="self_mlp")
        return tokens + first[5][:, None] * feed(modulated(tokens, first[3], first[4], self.epsilon))


class JointBlock(nn.Module):
    """One attention of tokens `[B, T, C]` and context `[B, S, C]`, and feed-forward of each; both, with weights of their own.

    Esser et al. (2024), figure 2b. The last block returns no context, and has no weights for it but those of attention.
    """

    heads: int
    mlp_ratio: float = 4.0
    qk_norm: bool = False
    swiglu: bool = False
    dtype: DTypeLike = jnp.float32
    epsilon: float = 1e-6
    last: bool = False

    @nn.compact
    def __call__(self, tokens: Array, context: Array, embedding: Array, places: Array | None) -> tuple[Array, Array]:
        channels, length = tokens.shape[-1], tokens.shape[1]
        projection = functools.partial(_Projection, self.heads, self.qk_norm, self.dtype)
        own = modulations(channels, 6, self.dtype, "modulation", embedding)
        others = modulations(channels, 2 if self.last else 6, self.dtype, "context_modulation", embedding)
        seen, beside = modulated(tokens, own[0], own[1]), modulated(context, others[0], others[1])
        parts = projection(name="self_attention")(seen, seen), projection(name="context_attention")(beside, beside)
        q, k, v = (jnp.concatenate(pair, axis=1) for pair in zip(*parts, strict=True))
        if places is not None:
            places = jnp.pad(places, ((0, context.shape[1]), (0, 0)))
        mixed = attended_by_rows(turned(q, places), turned(k, places), v).reshape(len(tokens), -1, channels)
        tokens = self._fed(tokens, mixed[:, :length], own, "self")
        return tokens, context if self.last else self._fed(context, mixed[:, length:], others, "context")

    def _fed(self, tokens: Array, mixed: Array, parts: list[Array], prefix: str) -> Array:
        tokens = tokens + parts[2][:, None] * _Out(tokens.shape[-1], self.dtype, name=f"{prefix}_attention_out")(mixed)
        feed = FeedForward(self.mlp_ratio, self.swiglu, self.dtype, name=f"{prefix}_mlp")
        return tokens + parts[5][:, None] * feed(modulated(tokens, parts[3], parts[4], self.epsilon))


class FeedForward(nn.Module):
    """`out(gelu(in))` of `[B, T, C]`, with the tanh approximation as published, or SwiGLU, `out(silu(gate) * in)`, 2/3 as wide."""

    ratio: float = 4.0
    swiglu: bool = False
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, tokens: Array) -> Array:
        channels = tokens.shape[-1]
        wide = int(channels * self.ratio)
        wide = 8 * max(wide * 2 // 3 // 8, 1) if self.swiglu else wide
        hidden = Dense(wide, dtype=self.dtype, name="in")(tokens)
        hidden = nn.silu(Dense(wide, dtype=self.dtype, name="gate")(tokens)) * hidden if self.swiglu else nn.gelu(hidden)
        return Dense(channels, dtype=self.dtype, name="out")(hidden)


class _Projection(nn.Module):
    """Queries of tokens `[B, T, C]`, keys and values of a source `[B, S, D]`, by heads."""

    heads: int
    qk_norm: bool = False
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, tokens: Array, source: Array) -> tuple[Array, Array, Array]:
        channels = tokens.shape[-1]

        def projected(x: Array, name: str) -> Array:
            y = Dense(channels, dtype=self.dtype, name=name)(x).reshape(*x.shape[:2], self.heads, channels // self.heads)
            if not self.qk_norm or name == "v":
                return y
            return _root_mean_square(y, self.param(f"norm_{name}", ones, y.shape[-1:]))

        return projected(tokens, "q"), projected(source, "k"), projected(source, "v")


class _Out(nn.Module):
    """The projection `[B, T, C]` of what attention mixed; zero at first where nothing gates it."""

    channels: int
    dtype: DTypeLike = jnp.float32
    zero: bool = False

    @nn.compact
    def __call__(self, mixed: Array) -> Array:
        return Dense(self.channels, dtype=self.dtype, kernel_init=zeros if self.zero else xavier, name="out")(mixed)


def modulations(channels: int, num: int, dtype: DTypeLike, name: str, embedding: Array) -> list[Array]:
    """So many vectors `[B, channels]` of an embedding, by a dense layer of the module that calls this, zero at first."""
    return jnp.split(Dense(num * channels, dtype=dtype, kernel_init=zeros, name=name)(embedding), num, axis=-1)


def modulated(tokens: Array, shift: Array, scale: Array, epsilon: float = 1e-6) -> Array:
    """Layer normalisation (Ba et al. 2016) of `[B, T, C]`, times `1 + scale`, plus shift, `[B, C]`; statistics are float32."""
    full = tokens.astype(jnp.float32)
    mean = jnp.mean(full, axis=-1, keepdims=True)
    variance = jnp.mean((full - mean) ** 2, axis=-1, keepdims=True)
    gain, offset = 1 + scale.astype(jnp.float32)[:, None], shift.astype(jnp.float32)[:, None]
    return ((full - mean) * jax.lax.rsqrt(variance + epsilon) * gain + offset).astype(tokens.dtype)


def turned(x: Array, angles: Array | None) -> Array:
    """Queries or keys `[B, T, H, C]`, each pair of channels turned by angles `[T, C / 2]`, if any (Su et al. 2021, eq. 34)."""
    if angles is None:
        return x
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    cos, sin = jnp.cos(angles)[None, :, None], jnp.sin(angles)[None, :, None]
    return jnp.concatenate([first * cos - second * sin, first * sin + second * cos], axis=-1).astype(x.dtype)


def _root_mean_square(x: Array, scale: Array, epsilon: float = 1e-6) -> Array:
    """RMS normalisation (Zhang & Sennrich 2019) over the last axis."""
    full = x.astype(jnp.float32)
    size = jax.lax.rsqrt(jnp.mean(full**2, axis=-1, keepdims=True) + epsilon)
    return (full * size * scale.reshape(*(1 for _ in x.shape[:-1]), -1)).astype(x.dtype)
