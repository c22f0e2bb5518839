"""The UNet of Ho et al. (2020), Dhariwal & Nichol (2021) and Rombach et al. (2022), as a Flax Linen module."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from jaxdiff.models.layers import (
    Attention,
    Conv,
    GuidanceEmbedding,
    Norm,
    ResidualBlock,
    applied,
    check_size,
    embedded,
    normal,
    rematted,
    resized,
    zeros,
)
from jaxdiff.models.transformer import Transformer

GIVEN = ("label", "context", "spatial", "augmentation", "guidance")


class UNet(nn.Module):
    """A convolutional network from images `[B, H, W, C]`, a condition `[B]` (logsnr) and what is given to images.

    Given may be labels `[B]`; context vectors `[B, T, context_channels]`, zeros where there are none; spatial `[B, H, W, any]`,
    seen beside x; augmentation `[B]`, a second condition (the logsnr to which spatial was noised), and guidance `[B]`, the scale
    that a distilled network imitates, whose parameters exist where they were given at initialisation.

    Stable Diffusion 1.x (Rombach et al. 2022; 859,520,964 parameters, latents 64x64x4) is
    `UNet(320, (1, 2, 4, 4), 2, attention=(64, 32, 16), heads=8, transformer=1, context_channels=768, scale_shift=False)`.

    Attributes:
        channels: width of the first level; multiples of 128 suit a TPU.
        multipliers: width of each level relative to `channels`; every level but the last halves the image.
        blocks: residual blocks a level (one more on the way up).
        attention: image sizes at which attention follows each residual block.
        head_channels: channels of an attention head.
        num_classes: labels are 0 .. num_classes - 1; label `num_classes` is the null label. With 0, labels are ignored.
        dropout: rate inside the residual blocks.
        fourier: exponents n whose sin and cos of `2^n pi x` are inputs too, so that likelihoods see single pixel values (Kingma et
            al. 2021, appendix C).
        residual_resampling: change the size inside residual blocks (ADM), not by a convolution (DDPM).
        remat: layers computed again in the backward pass, for less memory (see `layers.rematted`): none, attention, blocks or
            everything.
        dtype: of the computation; parameters are float32.
        transformer: transformer blocks at each place of attention; 0 is plain self-attention.
        context_channels: width of the context vectors that the transformer blocks attend to; 0 is none.
        heads: attention heads at every place, instead of heads of `head_channels`.
        scale_shift: the conditions scale and shift the residual blocks' second norms (ADM), or are added before them (DDPM).
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
    remat: str = "none"
    dtype: DTypeLike = jnp.float32
    transformer: int = 0
    context_channels: int = 0
    heads: int = 0
    scale_shift: bool = True

    @nn.compact
    def __call__(
        self,
        x: Array,
        condition: Array,
        label: Array | None = None,
        train: bool = False,
        *,
        context: Array | None = None,
        spatial: Array | None = None,
        augmentation: Array | None = None,
        guidance: Array | None = None,
    ) -> Array:
        check_size(x.shape, len(self.multipliers))
        self._check_context(context)
        embedding = self._embedding(condition, label, augmentation, guidance)
        numbers = itertools.count()

        def block(x: Array, channels: int, attend: bool, resample: float = 1.0) -> Array:
            number = next(numbers)  # named by hand, so that remat does not rename the parameters
            x = self._residual(channels, resample, f"residual_{number}")(x, embedding, train)
            return self._attended(x, context, number) if attend else x

        def resample(x: Array, factor: float) -> Array:
            if self.residual_resampling:
                return block(x, x.shape[-1], attend=False, resample=factor)
            return self._conv(x, x.shape[-1], strides=2) if factor < 1 else self._conv(resized(x, factor), x.shape[-1])

        widths = [self.channels * multiplier for multiplier in self.multipliers]
        skips = [self._conv(self._seen(x, spatial), self.channels)]
        for level, width in enumerate(widths):
            if level > 0:
                skips.append(resample(skips[-1], 0.5))
            for _ in range(self.blocks):
                skips.append(block(skips[-1], width, attend=skips[-1].shape[1] in self.attention))
        hidden = block(block(skips[-1], widths[-1], attend=True), widths[-1], attend=False)
        for level, width in reversed(list(enumerate(widths))):
            for _ in range(self.blocks + 1):
                hidden = block(jnp.concatenate([hidden, skips.pop()], axis=-1), width, attend=hidden.shape[1] in self.attention)
            if level > 0:
                hidden = resample(hidden, 2)
        return self._conv(nn.silu(Norm(self.dtype)(hidden)), x.shape[-1], kernel_init=zeros)

    def _conv(self, x: Array, channels: int, **options: Any) -> Array:
        return Conv(channels, (3, 3), dtype=self.dtype, **options)(x)

    def _residual(self, channels: int, resample: float, name: str) -> nn.Module:
        kind = rematted(ResidualBlock, self.remat)
        return kind(channels, self.dropout, resample, self.dtype, self.scale_shift, name=name)

    def _attended(self, x: Array, context: Array | None, number: int) -> Array:
        if not self.transformer:
            attention = rematted(Attention, self.remat)
            return attention(self.head_channels, self.dtype, self.heads, name=f"attention_{number}")(x)
        transformer = rematted(Transformer, self.remat)
        name = f"transformer_{number}"
        return transformer(self.transformer, self.head_channels, self.dtype, self.heads, name=name)(x, context)

    def _seen(self, x: Array, spatial: Array | None) -> Array:
        angles = [math.pi * 2**exponent * x for exponent in self.fourier]
        beside = [] if spatial is None else [spatial.astype(x.dtype)]
        return jnp.concatenate([x, *map(jnp.sin, angles), *map(jnp.cos, angles), *beside], axis=-1).astype(self.dtype)

    def _embedding(self, condition: Array, label: Array | None, augmentation: Array | None, guidance: Array | None) -> Array:
        hidden = embedded(condition, self.channels, self.dtype)
        if guidance is not None:
            hidden = hidden + GuidanceEmbedding(self.channels, self.dtype, name="guidance")(guidance)
        if augmentation is not None:
            hidden = hidden + embedded(augmentation, self.channels, self.dtype)
        if not self.num_classes:
            return hidden
        if label is None:
            raise ValueError(f"label: the network has classes; give labels [B], {self.num_classes} where there is none")
        labels = nn.Embed(self.num_classes + 1, 4 * self.channels, dtype=self.dtype, embedding_init=normal)
        return hidden + labels(label)

    def _check_context(self, context: Array | None) -> None:
        wanted = self.context_channels
        if wanted and not self.transformer:
            raise ValueError(f"model.context_channels {wanted} needs transformer blocks; set model.transformer to 1 or more")
        if wanted and context is None:
            raise ValueError(f"context: the network attends to vectors [B, T, {wanted}]; give them, or zeros for none")
        if context is not None and context.shape[2:] != (wanted,):
            fault = f"context: {context.shape} given, but the network's model.context_channels is {wanted}"
            raise ValueError(f"{fault}; " + (f"give vectors [B, T, {wanted}]" if wanted else "give none"))


def network(module: nn.Module) -> Callable[..., Array]:
    """The module as a pure function `(params, x, logsnr, given, dropout_key) -> output`; no key, no dropout.

    What is given is an array of labels `[B]`, or a mapping that may have label, context, spatial, augmentation and guidance.
    """

    def apply(params: Any, x: Array, logsnr: Array, given: Any, dropout_key: Array | None = None) -> Any:
        named = dict(given) if isinstance(given, Mapping) else {"label": given}
        for name in named:
            if name not in GIVEN:
                raise ValueError(f"a network cannot be given {name!r}; it may be given {', '.join(GIVEN)}")
        return applied(module, params, (x, logsnr), dropout_key, **named)

    return apply
