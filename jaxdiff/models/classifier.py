"""A small convolutional classifier, whose features judge samples."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from jaxdiff.models.layers import Norm, resized


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
            x = nn.silu(Norm(self.dtype)(nn.Conv(channels, (3, 3), dtype=self.dtype)(x)))
            if x.shape[1] < 8 or x.shape[1] % 2 or x.shape[2] % 2:
                break
            x = resized(x, 0.5)
            channels *= 2
        x = nn.Dropout(self.dropout, deterministic=not train)(x.reshape(x.shape[0], -1))
        features = nn.silu(nn.Dense(self.features, dtype=self.dtype)(x))
        return nn.Dense(self.num_classes, dtype=self.dtype)(features), features
