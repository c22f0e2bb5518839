"""The patch discriminator of Isola et al. (2017), as autoencoders of latent diffusion are trained against."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from jaxdiff.models.layers import Conv, Norm


class PatchDiscriminator(nn.Module):
    """From images `[B, H, W, C]` to a score of each patch `[B, h, w]`, float32: high for real ones. h is about `H / 2^layers`.

    Isola et al. (2017), appendix 6.1.2, with group normalisation where theirs is over the batch, so that an image's score
    does not depend on its neighbours.

    Attributes:
        channels: width of the first layer; each further one doubles it, up to eight times.
        layers: convolutions that halve the image.
        dtype: of the computation; parameters are float32.
    """

    channels: int = 64
    layers: int = 3
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = x.astype(self.dtype)
        for layer in range(self.layers + 1):
            strides = (2, 2) if layer < self.layers else (1, 1)
            x = Conv(self.channels * min(2**layer, 8), (4, 4), strides, dtype=self.dtype, name=f"conv_{layer}")(x)
            x = nn.leaky_relu(x if layer == 0 else Norm(self.dtype, name=f"norm_{layer}")(x), 0.2)
        return Conv(1, (4, 4), dtype=self.dtype, name="conv_out")(x)[..., 0].astype(jnp.float32)
