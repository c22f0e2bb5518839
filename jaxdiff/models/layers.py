"""Layers that the networks share. Parameters are float32, computation is in `dtype`."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike

from jaxdiff.io import count
from jaxdiff.models.attention import attended, head_count

# Each is traced once a shape: Flax evaluates them at initialisation, and to check shapes whenever a network is traced.
lecun_normal, normal, zeros, ones = (
    jax.jit(initializer, static_argnums=(1, 2))
    for initializer in (nn.initializers.lecun_normal(), nn.initializers.normal(1.0), nn.initializers.zeros, nn.initializers.ones)
)
Dense = functools.partial(nn.Dense, kernel_init=lecun_normal, bias_init=zeros)
Conv = functools.partial(nn.Conv, kernel_init=lecun_normal, bias_init=zeros)
Frequencies = Callable[[Array, int], Array]  # (value [B], features) -> [B, features]


class Norm(nn.Module):
    """Group normalisation (Wu & He 2018) in the most groups, up to 32, that divide the channels into four or more each.

    Statistics are float32, and accurate where a mean is far larger than the spread, as in published models.

    `modulation`, a scale and a shift `[B, C]`, is applied on top: `y * (1 + scale) + shift`, in the same multiply-add.

    Attributes:
        dtype: of the output.
        groups: their number; 0 is the rule above. Published networks have 32 at every width.
        epsilon: added to the variance.
    """

    dtype: DTypeLike = jnp.float32
    groups: int = 0
    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: Array, modulation: tuple[Array, Array] | None = None) -> Array:
        channels = x.shape[-1:]
        scale, bias = self.param("scale", ones, channels), self.param("bias", zeros, channels)
        return _normalised(x, scale, bias, modulation, groups=self._groups(*channels), epsilon=self.epsilon).astype(self.dtype)

    def _groups(self, channels: int) -> int:
        if not self.groups:
            return next(n for n in (32, 16, 8, 4, 2, 1) if n == 1 or (channels % n == 0 and channels // n >= 4))
        if channels % self.groups:
            raise ValueError(f"norm: {count(channels, 'channel')} cannot be split into {count(self.groups, 'group')}")
        return self.groups


# Traced, differentiated and lowered once for all places of one shape.
@functools.partial(jax.jit, static_argnames=("groups", "epsilon"))
def _normalised(
    x: Array, scale: Array, bias: Array, modulation: tuple[Array, Array] | None, *, groups: int, epsilon: float
) -> Array:
    batch, *places, channels = x.shape

    def spread(values: Array) -> Array:
        return values.reshape(batch, *(1 for _ in places), channels)

    def mean_of(values: Array) -> Array:
        """By groups, of values `[B, C]`, for every channel."""
        means = jnp.mean(values.reshape(batch, groups, channels // groups), axis=2)
        return jnp.repeat(means, channels // groups, axis=1)

    # Distances from the middle pixel are summed (Chan et al. 1983, section 4): one pass, as accurate as two, whose derivative
    # needs none of the pixel's. The pixel is taken from x before it is widened, else a TPU keeps x in float32.
    origin = jax.lax.stop_gradient(x[(slice(None), *(size // 2 for size in places))]).astype(jnp.float32)
    distance = x.astype(jnp.float32) - spread(origin)
    axes = tuple(range(1, x.ndim - 1))  # by channels first: XLA reads x as it lies, which it need not if groups come first
    first, second = jnp.mean(distance, axis=axes), jnp.mean(distance**2, axis=axes)
    mean = mean_of(origin + first) - origin
    variance = mean_of(jnp.maximum(second - first**2, 0) + (first - mean) ** 2)
    gain = jax.lax.rsqrt(variance + epsilon) * scale[None]
    offset = bias[None] - mean * gain
    if modulation is not None:
        scale, shift = (value.astype(jnp.float32) for value in modulation)
        gain, offset = gain * (1 + scale), offset * (1 + scale) + shift
    return distance * spread(gain) + spread(offset)


def frequencies(value: Array, features: int, slowest: float = 0.05, fastest: float = 8.0) -> Array:
    """Sines and cosines of a scalar `[B]` at geometrically spaced angular frequencies, `[B, features]`.

    Vaswani et al. (2017), section 3.5, with frequencies for values about -15 to 15, such as a logsnr.
    """
    rates = jnp.geomspace(slowest, fastest, features // 2, dtype=value.dtype)
    angles = value[:, None] * rates[None, :]
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


@functools.cache  # equal arguments make the same function, by which modules that hold it are equal
def sinusoids(base: float = 10_000.0, cosine_first: bool = False, shift: float = 0.0, num: int = 0) -> Frequencies:
    """A function `(value [B], features) -> [B, features]`: sines and cosines at the angular frequencies of published networks.

    These are `base^(-i / (features / 2 - shift))`, from 1 downwards, for values such as time steps up to 1,000 (Vaswani et al.
    2017, section 3.5). DDPM has a shift of 1 and sines first; ADM and Stable Diffusion 0 and cosines first. With `num` there
    are so many features, whatever the network asks for.
    """

    def features_of(value: Array, features: int) -> Array:
        half = (num or features) // 2
        rates = jnp.asarray(base ** (-np.arange(half) / (half - shift)), value.dtype)
        angles = value[:, None] * rates[None, :]
        parts = jnp.sin(angles), jnp.cos(angles)
        return jnp.concatenate(parts[::-1] if cosine_first else parts, axis=-1)

    return features_of


def embedded(features: Array, channels: int, dtype: DTypeLike) -> Array:
    """Features `[B, any]`, such as `frequencies`, through two dense layers of the module that calls this: `[B, 4 * channels]`."""
    hidden = Dense(4 * channels, dtype=dtype)(features.astype(dtype))
    return Dense(4 * channels, dtype=dtype)(nn.silu(hidden))


class AddedEmbedding(nn.Module):
    """A further scalar `[B]`, a guidance scale say, as features `[B, 4 * channels]` that start at zero, as if none were given.

    Meng et al. (2023), section 3.1, embed the scale as they do the level.
    """

    channels: int
    dtype: DTypeLike = jnp.float32
    frequencies: Frequencies = frequencies

    @nn.compact
    def __call__(self, value: Array) -> Array:
        hidden = Dense(4 * self.channels, dtype=self.dtype, name="in")(self.frequencies(value, self.channels).astype(self.dtype))
        return Dense(4 * self.channels, dtype=self.dtype, kernel_init=zeros, name="out")(nn.silu(hidden))


class Attention(nn.Module):
    """A residual block of multi-head self-attention over all pixels (Vaswani et al. 2017; Ho et al. 2020)."""

    head_channels: int = 64
    dtype: DTypeLike = jnp.float32
    heads: int = 0
    groups: int = 0
    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: Array) -> Array:
        batch, height, width, channels = x.shape
        heads = head_count(channels, self.head_channels, self.heads)
        tokens = Norm(self.dtype, self.groups, self.epsilon)(x).reshape(batch, height * width, channels)
        queries_keys_values = Dense(3 * channels, dtype=self.dtype, name="qkv")(tokens)
        each = (batch, height * width, heads, channels // heads)
        q, k, v = (part.reshape(each) for part in jnp.split(queries_keys_values, 3, axis=-1))
        mixed = attended(q, k, v).reshape(batch, height, width, channels)
        return x + Dense(channels, dtype=self.dtype, kernel_init=zeros, name="out")(mixed)


class ResidualBlock(nn.Module):
    """Norm, SiLU, 3x3 convolution, twice; the condition `[B, E]`, if any, scales and shifts the second norm.

    Ho et al. (2020), appendix B, with the adaptive norm of Dhariwal & Nichol (2021), section 3.1; without `scale_shift`
    the condition is added before that norm, as Ho et al. do. The second convolution starts at zero. `resample` halves
    (average) or doubles (nearest) the image inside the block, as in BigGAN.
    """

    channels: int
    dropout: float = 0.0
    resample: float = 1.0
    dtype: DTypeLike = jnp.float32
    scale_shift: bool = True
    groups: int = 0
    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: Array, condition: Array | None, train: bool) -> Array:
        norm = functools.partial(Norm, self.dtype, self.groups, self.epsilon)
        hidden = resized(nn.silu(norm()(x)), self.resample)
        hidden = Conv(self.channels, (3, 3), dtype=self.dtype)(hidden)
        modulation = None
        if condition is not None and self.scale_shift:
            scale, shift = jnp.split(Dense(2 * self.channels, dtype=self.dtype)(nn.silu(condition)), 2, axis=-1)
            modulation = scale, shift
        elif condition is not None:
            hidden = hidden + Dense(self.channels, dtype=self.dtype)(nn.silu(condition))[:, None, None]
        hidden = nn.silu(norm()(hidden, modulation))
        hidden = nn.Dropout(self.dropout, deterministic=not train)(hidden)
        hidden = Conv(self.channels, (3, 3), dtype=self.dtype, kernel_init=zeros)(hidden)
        x = resized(x, self.resample)
        if x.shape[-1] != self.channels:
            x = Dense(self.channels, dtype=self.dtype, name="skip")(x)
        return x + hidden


def rematted(kind: Any, remat: str) -> Any:
    """The kind of layer, one that is computed again in the backward pass where `remat` names it.

    Chen et al. (2016). `remat` is none, attention (and transformers), blocks (residual ones), or everything; only the inputs of
    such layers are kept.
    """
    residual = kind is ResidualBlock
    if remat not in ("everything", "blocks" if residual else "attention"):
        return kind
    return nn.remat(kind, static_argnums=(3,)) if residual else nn.remat(kind)


def applied(module: nn.Module, params: Any, inputs: tuple[Array, ...], dropout_key: Array | None, **named: Any) -> Any:
    """The module's output at these params and inputs; it drops units only where given a key."""
    rngs = {} if dropout_key is None else {"dropout": dropout_key}
    return module.apply({"params": params}, *inputs, train=dropout_key is not None, rngs=rngs, **named)


def check_size(shape: tuple[int, ...], levels: int) -> None:
    """Whether images `[B, H, W, C]` can be halved between that many levels.

    Raises:
        ValueError: they cannot.
    """
    factor = 2 ** (levels - 1)
    if shape[1] % factor or shape[2] % factor:
        raise ValueError(
            f"an image of {shape[1]}x{shape[2]} cannot be halved {count(levels - 1, 'time')}; "
            f"choose a size divisible by {factor} (data.image_shape) or fewer model.multipliers"
        )


def resized(x: Array, factor: float) -> Array:
    """The images `[B, H, W, C]` halved by averaging (factor 0.5), doubled by repetition (2), or as they are (1)."""
    if factor == 0.5:
        batch, height, width, channels = x.shape
        return jnp.mean(x.reshape(batch, height // 2, 2, width // 2, 2, channels), axis=(2, 4))
    if factor == 2:
        return jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
    return x
