"""A convolutional autoencoder with a Gaussian code, as Flax Linen modules: of Esser et al. (2021) and Rombach et al. (2022)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from jaxdiff.models.layers import Attention, Conv, Dense, Norm, ResidualBlock, check_size, rematted, resized, zeros

LOG_STD = (-15.0, 10.0)  # where the log of a code's standard deviation is clipped, as in latent diffusion's autoencoder


class Half(nn.Module):
    """What encoder and decoder have in common.

    Attributes:
        channels: width of the finest level; multiples of 128 suit a TPU.
        multipliers: width of each level relative to `channels`, finest first; between two the image is halved or doubled.
        blocks: residual blocks a level (one more in the decoder).
        attention: image sizes at which attention follows each residual block; it is always in the middle.
        attention_levels: the numbers of levels with attention, instead of image sizes.
        head_channels: channels of an attention head.
        heads: attention heads at every place, instead of heads of `head_channels`.
        groups: of every norm; 0 is the rule of `layers.Norm`.
        epsilon: of every norm.
        remat: layers computed again in the backward pass, for less memory (see `layers.rematted`).
        dtype: of the computation; parameters are float32.
    """

    channels: int = 128
    multipliers: tuple[int, ...] = (1, 2, 4)
    blocks: int = 2
    attention: tuple[int, ...] = ()
    attention_levels: tuple[int, ...] = ()
    head_channels: int = 64
    heads: int = 0
    groups: int = 0
    epsilon: float = 1e-5
    remat: str = "none"
    dtype: DTypeLike = jnp.float32

    def block(self, x: Array, channels: int, name: str, attend: bool) -> Array:
        """A residual block, and maybe attention."""
        residual, attention = (rematted(kind, self.remat) for kind in (ResidualBlock, Attention))
        norm: dict[str, Any] = {"dtype": self.dtype, "groups": self.groups, "epsilon": self.epsilon}
        x = residual(channels, **norm, name=f"residual_{name}")(x, None, False)  # by hand, so that remat does not rename
        return attention(self.head_channels, heads=self.heads, **norm, name=f"attention_{name}")(x) if attend else x

    def blocks_of(self, x: Array, level: int, num: int) -> Array:
        """So many blocks of a level, with attention where its number or the image size says so."""
        attend = level in self.attention_levels if self.attention_levels else x.shape[1] in self.attention
        for number in range(num):
            x = self.block(x, self.channels * self.multipliers[level], f"{level}_{number}", attend)
        return x

    def middle(self, x: Array) -> Array:
        """Residual block, attention, residual block, at the coarsest level."""
        return self.block(self.block(x, x.shape[-1], "middle_0", attend=True), x.shape[-1], "middle_1", attend=False)

    def conv(self, x: Array, channels: int, name: str, **options: Any) -> Array:
        """A 3x3 convolution."""
        return Conv(channels, (3, 3), dtype=self.dtype, name=name, **options)(x)

    def ending(self, x: Array, channels: int, **options: Any) -> Array:
        """Norm, SiLU and the convolution to the channels of the output."""
        norm = Norm(self.dtype, self.groups, self.epsilon, name="norm_out")
        return self.conv(nn.silu(norm(x)), channels, "conv_out", **options)


class Encoder(Half):
    """From images `[B, H, W, C]` to mean and log standard deviation of the code, `[B, h, w, 2 * latent_channels]`.

    h is `H / 2^(levels - 1)`. The attributes are those of `Half`, `latent_channels`, and `moments`: 1 where the code is the
    output itself, as before a codebook.
    """

    latent_channels: int = 4
    moments: int = 2

    @nn.compact
    def __call__(self, x: Array) -> Array:
        check_size(x.shape, len(self.multipliers))
        x = self.conv(x, self.channels, "conv_in")
        for level in range(len(self.multipliers)):
            if level > 0:
                x = self.conv(x, x.shape[-1], f"down_{level}", strides=(2, 2))
            x = self.blocks_of(x, level, self.blocks)
        moments = self.moments * self.latent_channels
        return Dense(moments, dtype=self.dtype, name="quant")(self.ending(self.middle(x), moments))


class Decoder(Half):
    """From codes `[B, h, w, latent_channels]` to images `[B, H, W, out_channels]`, the encoder backwards; they start at zero.

    The attributes are those of `Half`, and `out_channels`.
    """

    out_channels: int = 3

    @nn.compact
    def __call__(self, z: Array) -> Array:
        z = Dense(z.shape[-1], dtype=self.dtype, name="post_quant")(z)
        x = self.conv(z, self.channels * self.multipliers[-1], "conv_in")
        x = self.middle(x)
        for level in reversed(range(len(self.multipliers))):
            x = self.blocks_of(x, level, self.blocks + 1)
            if level > 0:
                x = self.conv(resized(x, 2), x.shape[-1], f"up_{level}")
        return self.ending(x, self.out_channels, kernel_init=zeros)


def init(encoder: Encoder, decoder: Decoder, key: Array, x0: Array) -> dict[str, Any]:
    """The params `{"encoder": ..., "decoder": ...}` that `encode` and `decode` read, for images of x0's shape."""
    encoder_key, decoder_key = jax.random.split(key)
    code, variables = encoder.init_with_output(encoder_key, x0)
    z = code[..., : encoder.latent_channels]
    return {"encoder": variables["params"], "decoder": decoder.init(decoder_key, z)["params"]}


def encode(module: Encoder) -> Callable[[Any, Array], tuple[Array, Array]]:
    """The encoder as a pure function `(params, x0) -> (mean, std)` of a diagonal Gaussian over codes, float32.

    With one moment the code is deterministic: std is 0.
    """

    def apply(params: Any, x0: Array) -> tuple[Array, Array]:
        output = _applied(module, params["encoder"], x0).astype(jnp.float32)
        if module.moments == 1:
            return output, jnp.zeros_like(output)
        mean, log_std = jnp.split(output, 2, axis=-1)
        return mean, jnp.exp(jnp.clip(log_std, *LOG_STD))

    return apply


def decode(module: Decoder) -> Callable[[Any, Array], Array]:
    """The decoder as a pure function `(params, z) -> output`, float32."""
    return lambda params, z: _applied(module, params["decoder"], z).astype(jnp.float32)


def _applied(module: nn.Module, params: Any, x: Array) -> Any:
    return module.apply({"params": params}, x)
