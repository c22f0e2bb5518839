"""Classifiers: a small one of clean images, whose features judge samples, and one of noised images, which guides."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from jaxdiff.models.layers import (
    Attention,
    Conv,
    Dense,
    Norm,
    ResidualBlock,
    applied,
    check_size,
    embedded,
    frequencies,
    rematted,
    resized,
    zeros,
)


class Classifier(nn.Module):
    """From images `[B, H, W, C]` to logits `[B, num_classes]` and features `[B, features]` of the layer before."""

    num_classes: int
    channels: int = 32
    features: int = 64
    dropout: float = 0.3
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> tuple[Array, Array]:
        channels = self.channels
        while True:
            x = nn.silu(Norm(self.dtype)(Conv(channels, (3, 3), dtype=self.dtype)(x)))
            if x.shape[1] < 8 or x.shape[1] % 2 or x.shape[2] % 2:
                break
            x = resized(x, 0.5)
            channels *= 2
        x = nn.Dropout(self.dropout, deterministic=not train)(x.reshape(x.shape[0], -1))
        features = nn.silu(Dense(self.features, dtype=self.dtype)(x))
        return Dense(self.num_classes, dtype=self.dtype)(features), features


class NoisyClassifier(nn.Module):
    """From noised images `[B, H, W, C]` and a condition `[B]` (logsnr) to logits `[B, num_classes]`: half a UNet.

    The downsampling trunk of the UNet of Dhariwal & Nichol (2021), section 4.3, each level but the first begun by a
    residual block that halves the image; at its end attention and the mean over all pixels, where theirs pools by
    attention. The attributes are those of `unet.UNet`; the logits start at zero.
    """

    channels: int = 128
    multipliers: tuple[int, ...] = (1, 2, 2, 2)
    blocks: int = 2
    attention: tuple[int, ...] = (16,)
    head_channels: int = 64
    num_classes: int = 10
    dropout: float = 0.0
    remat: str = "none"
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array, condition: Array, train: bool = False) -> Array:
        check_size(x.shape, len(self.multipliers))
        embedding = embedded(frequencies(condition, self.channels), self.channels, self.dtype)
        residual = rematted(ResidualBlock, self.remat)
        x = Conv(self.channels, (3, 3), dtype=self.dtype)(x.astype(self.dtype))
        for level, multiplier in enumerate(self.multipliers):
            for number in range(self.blocks):
                resample = 0.5 if level > 0 and number == 0 else 1.0
                name = f"residual_{level}_{number}"  # by hand, so that remat does not rename the parameters
                x = residual(self.channels * multiplier, self.dropout, resample, self.dtype, name=name)(x, embedding, train)
                if x.shape[1] in self.attention:
                    x = Attention(self.head_channels, self.dtype, name=f"attention_{level}_{number}")(x)
        x = Attention(self.head_channels, self.dtype, name="attention")(x)
        pooled = jnp.mean(nn.silu(Norm(self.dtype)(x)), axis=(1, 2))
        return Dense(self.num_classes, dtype=self.dtype, kernel_init=zeros)(pooled)


def network(module: NoisyClassifier) -> Callable[..., Array]:
    """The module as a pure function `(params, x, logsnr, dropout_key) -> logits`; no key, no dropout."""

    def apply(params: Any, x: Array, logsnr: Array, dropout_key: Array | None = None) -> Array:
        return applied(module, params, (x, logsnr), dropout_key)

    return apply
