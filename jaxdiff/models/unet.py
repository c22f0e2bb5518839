"""The UNet of Ho et al. (2020) and Dhariwal & Nichol (2021), as a Flax Linen module."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from jaxdiff.models.layers import Attention, Norm, ResidualBlock, applied, check_size, embedded, resized, zeros


class UNet(nn.Module):
    """A convolutional network from images `[B, H, W, C]`, a condition `[B]` (logsnr) and labels `[B]` to images.

    Attributes:
        channels: width of the first level; multiples of 128 suit a TPU.
        multipliers: width of each level relative to `channels`; every level but the last halves the image.
        blocks: residual blocks a level (one more on the way up).
        attention: image sizes at which attention follows each residual block.
        head_channels: channels of an attention head.
        num_classes: labels are 0 .. num_classes - 1; label `num_classes` is the null label.
        dropout: rate inside the residual blocks.
        fourier: exponents n whose sin and cos of `2^n pi x` are inputs too, so that likelihoods see single pixel values (Kingma et
            al. 2021, appendix C).
        residual_resampling: change the size inside residual blocks (ADM), not by a convolution (DDPM).
        remat: recompute the blocks in the backward pass: less memory, more FLOPs.
        dtype: of the computation; parameters are float32.
    """

    channels: int = 128
    multipliers: tuple[int, ...] = (1, 2, 2, 2)
    blocks: int = 2
    attention: tuple[int, ...] = (16,)
    head_channels: int = 64
    num_classes: int = 0
    dropout: float = 0.0
    fourier: tuple[int, ...] = ()
    residual_resampling: bool = False
    remat: bool = False
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array, condition: Array, label: Array, train: bool = False) -> Array:
        check_size(x.shape, len(self.multipliers))
        out_channels = x.shape[-1]
        embedding = self._embedding(condition, label)
        residual, attention = ResidualBlock, Attention
        if self.remat:
            residual, attention = nn.remat(ResidualBlock, static_argnums=(3,)), nn.remat(Attention)

        numbers = itertools.count()

        def block(x: Array, channels: int, attend: bool, resample: float = 1.0) -> Array:
            number = next(numbers)  # named by hand, so that remat does not rename the parameters
            x = residual(channels, self.dropout, resample, self.dtype, name=f"residual_{number}")(x, embedding, train)
            return attention(self.head_channels, self.dtype, name=f"attention_{number}")(x) if attend else x

        def resample(x: Array, factor: float) -> Array:
            if self.residual_resampling:
                return block(x, x.shape[-1], attend=False, resample=factor)
            if factor < 1:
                return conv(x.shape[-1], strides=(2, 2))(x)
            return conv(x.shape[-1])(resized(x, factor))

        conv = partial(nn.Conv, kernel_size=(3, 3), dtype=self.dtype)
        widths = [self.channels * multiplier for multiplier in self.multipliers]
        angles = [math.pi * 2**exponent * x for exponent in self.fourier]
        x = jnp.concatenate([x, *map(jnp.sin, angles), *map(jnp.cos, angles)], axis=-1)
        x = conv(self.channels)(x.astype(self.dtype))
        skips = [x]
        for level, width in enumerate(widths):
            if level > 0:
                x = resample(x, 0.5)
                skips.append(x)
            for _ in range(self.blocks):
                x = block(x, width, attend=x.shape[1] in self.attention)
                skips.append(x)
        x = block(x, widths[-1], attend=True)
        x = block(x, widths[-1], attend=False)
        for level, width in reversed(list(enumerate(widths))):
            for _ in range(self.blocks + 1):
                x = block(jnp.concatenate([x, skips.pop()], axis=-1), width, attend=x.shape[1] in self.attention)
            if level > 0:
                x = resample(x, 2)
        return conv(out_channels, kernel_init=zeros)(nn.silu(Norm(self.dtype)(x)))

    def _embedding(self, condition: Array, label: Array) -> Array:
        hidden = embedded(condition, self.channels, self.dtype)
        labels = nn.Embed(self.num_classes + 1, 4 * self.channels, dtype=self.dtype, embedding_init=nn.initializers.normal(1.0))
        return hidden + labels(label)


def network(module: nn.Module) -> Callable[..., Array]:
    """The module as a pure function `(params, x, logsnr, label, dropout_key) -> output`; no key, no dropout."""

    def apply(params: Any, x: Array, logsnr: Array, label: Array, dropout_key: Array | None = None) -> Any:
        return applied(module, params, (x, logsnr, label), dropout_key)

    return apply
