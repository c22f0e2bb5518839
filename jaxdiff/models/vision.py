"""CLIP's image transformer (Radford et al. 2021, section 2.4), after Dosovitskiy et al. (2021)."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from jaxdiff.models.attention import attended
from jaxdiff.models.layers import Conv, Dense
from jaxdiff.models.text import Activation, EncoderLayer, quick_gelu
from jaxdiff.models.transformer import LayerNorm

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # of CLIP's images in [0, 1], by colours


def normalised(images: Array, size: int) -> Array:
    """Images `[B, H, W, 3]` in [-1, 1] as CLIP sees them: resized (cubic), the middle square, of its mean and spread of colours."""
    batch, height, width, _ = images.shape
    side = min(height, width)
    if side != size:
        height, width = size * height // side, size * width // side
        images = jax.image.resize(images, (batch, height, width, 3), "cubic")
    top, left = round((height - size) / 2), round((width - size) / 2)
    square = images[:, top : top + size, left : left + size]
    mean, std = (jnp.asarray(values, images.dtype)[None, None, None] for values in (MEAN, STD))
    return (square.clip(-1, 1) / 2 + 0.5 - mean) / std


class ImageEncoder(nn.Module):
    """Images `[B, size, size, 3]`, normalised as CLIP's, as vectors `[B, projection]` in the space of the pooled texts.

    Attributes:
        size: of the images.
        patch: size of the patches, of which each becomes a token.
        width: of the tokens.
        layers: how many.
        heads: of attention.
        feed: width of the feed-forward; 0 is four times `width`.
        activation: `quick_gelu` or `gelu`, of the feed-forward.
        projection: width of the vectors, by a dense layer without bias.
        epsilon: of the norms.
        dtype: of the computation.
    """

    size: int = 224
    patch: int = 14
    width: int = 1024
    layers: int = 24
    heads: int = 16
    feed: int = 0
    activation: Activation = quick_gelu
    projection: int = 768
    epsilon: float = 1e-5
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, images: Array) -> Array:
        patch, initial = (self.patch, self.patch), nn.initializers.normal(0.02)
        patches = Conv(self.width, patch, patch, padding="VALID", use_bias=False, dtype=self.dtype, name="patches")(images)
        patches = patches.reshape(len(images), -1, self.width)
        first = nn.Embed(1, self.width, dtype=self.dtype, embedding_init=initial, name="class")(
            jnp.zeros((len(images), 1), jnp.int32)
        )
        tokens = jnp.concatenate([first, patches], axis=1)
        places = nn.Embed((self.size // self.patch) ** 2 + 1, self.width, dtype=self.dtype, embedding_init=initial, name="position")
        x = self._norm("norm_in")(tokens + places(jnp.arange(tokens.shape[1]))[None])
        for number in range(self.layers):
            layer = (self.heads, self.feed or 4 * self.width, self.activation, attended, self.epsilon, self.dtype)
            x = EncoderLayer(*layer, name=f"layer_{number}")(x)
        pooled = self._norm("norm")(x[:, :1])[:, 0]
        return Dense(self.projection, use_bias=False, dtype=self.dtype, name="projection")(pooled)

    def _norm(self, name: str) -> LayerNorm:
        return LayerNorm(self.dtype, self.epsilon, name=name)
