"""Discriminators: of patches (Isola et al. 2017), for autoencoders; and of a denoiser's features, for distribution matching."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from jaxdiff.models.layers import Conv, Dense, Norm, zeros


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


class Head(nn.Module):
    """From features `[B, h, w, C]` of another network to a score `[B]`, float32: high for real ones, 0 at first.

    Convolutions with group normalisation, and a dense layer of their mean over positions: of a UNet's middle it is the
    classifier of Yin et al. (2024), section 4.3.

    Attributes:
        channels: width of the convolutions.
        layers: their number.
        dtype: of the computation; parameters are float32.
    """

    channels: int = 64
    layers: int = 2
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = x.astype(self.dtype)
        for layer in range(self.layers):
            x = Conv(self.channels, (3, 3), dtype=self.dtype, name=f"conv_{layer}")(x)
            x = nn.silu(Norm(self.dtype, name=f"norm_{layer}")(x))
        pooled = jnp.mean(x, axis=(1, 2))
        return Dense(1, dtype=self.dtype, kernel_init=zeros, name="out")(pooled)[..., 0].astype(jnp.float32)


def middle(module: nn.Module) -> Callable[..., Array]:
    """`(params, x, condition, given) -> features [B, h, w, C]`: what a UNet sows as its middle, without its way up."""

    def apply(params: Any, x: Array, condition: Array, given: Mapping[str, Array]) -> Any:
        named: dict[str, Any] = dict(given)
        _, found = module.apply({"params": params}, x, condition, **named, mutable=["intermediates"])
        return found["intermediates"]["middle"][0]

    return apply
