"""The UNet of Ho et al. (2020), Dhariwal & Nichol (2021) and Rombach et al. (2022), as a Flax Linen module."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any, Unpack

import flax.linen as nn
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from jaxdiff.models.given import Given, check_given
from jaxdiff.models.layers import (
    AddedEmbedding,
    Attention,
    Conv,
    Dense,
    Frequencies,
    Norm,
    ResidualBlock,
    applied,
    check_size,
    embedded,
    frequencies,
    normal,
    rematted,
    resized,
    sinusoids,
    zeros,
)
from jaxdiff.models.transformer import Transformer


class UNet(nn.Module):
    """A convolutional network from images `[B, H, W, C]`, a condition `[B]` (logsnr) and what is given to images.

    Given may be labels `[B]`; context vectors `[B, T, context_channels]`, zeros where there are none; spatial `[B, H, W, any]`,
    seen beside x; augmentation `[B]`, a second condition (the logsnr to which spatial was noised), and guidance `[B]`, the scale
    that a distilled network imitates, and until `[B]`, the condition of the level to which a flow map jumps; the parameters of
    these three exist where they were given at initialisation. Pooled `[B, pooled_channels]` is one vector for the whole context,
    and sizes `[B, 6]` what Stable Diffusion XL is told of an image: height and width of the original, top and left of its crop, and
    the height and width wanted, in pixels (Podell et al. 2023, section 2.2).

    Stable Diffusion 1.x (Rombach et al. 2022; 859,520,964 parameters, latents 64x64x4) is
    `UNet(320, (1, 2, 4, 4), 2, attention_levels=(0, 1, 2), heads=8, transformer=1, context_channels=768, scale_shift=False,
    padding=(1, 1), groups=32, transformer_epsilon=1e-6, frequencies=sinusoids(cosine_first=True))`, with a time step for condition.

    Attributes:
        channels: width of the first level; multiples of 128 suit a TPU.
        multipliers: width of each level relative to `channels`; every level but the last halves the image.
        blocks: residual blocks a level (one more on the way up).
        attention: image sizes at which attention follows each residual block.
        attention_levels: the numbers of levels with attention, instead of image sizes: the same layout at any size.
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
        transformer_depths: their number at each level, instead of one for all; the middle has that of the last.
        context_channels: width of the context vectors that the transformer blocks attend to; 0 is none.
        heads: attention heads at every place, instead of heads of `head_channels`.
        scale_shift: the conditions scale and shift the residual blocks' second norms (ADM), or are added before them (DDPM).
        frequencies: the features of the condition before its two dense layers, such as `layers.sinusoids()`.
        groups: of every norm; 0 is the rule of `layers.Norm`.
        epsilon: of every norm but those of transformers.
        transformer_epsilon: of the norms with which transformers begin; 1e-6 in Stable Diffusion.
        padding: rows above and below, and columns left and right, by which the halving convolution pads: (1, 1) in Stable
            Diffusion's UNet, (0, 1) in DDPM.
        pooled_channels: width of pooled; 0 is none, and no sizes.
        size_features: into how many features each of the sizes is turned.
        learned_variance: the output has twice the channels, of which the second half tells the variance of a step (Nichol &
            Dhariwal 2021, section 3.1).
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
    attention_levels: tuple[int, ...] = ()
    transformer_depths: tuple[int, ...] = ()
    frequencies: Frequencies = frequencies
    groups: int = 0
    epsilon: float = 1e-5
    transformer_epsilon: float = 1e-5
    padding: tuple[int, int] = (0, 1)
    pooled_channels: int = 0
    size_features: int = 256
    learned_variance: bool = False

    @nn.compact
    def __call__(
        self,
        x: Array,
        condition: Array,
        label: Array | None = None,
        train: bool = False,
        **given: Unpack[Given],
    ) -> Array:
        check_given(given)
        check_size(x.shape, len(self.multipliers))
        context = given.get("context")
        self._check_context(context)
        embedding = self._embedding(condition, label, given)
        numbers, last = itertools.count(), len(self.multipliers) - 1

        def block(x: Array, channels: int, level: int, attend: bool, resample: float = 1.0) -> Array:
            number = next(numbers)  # named by hand, so that remat does not rename the parameters
            x = self._residual(channels, resample, f"residual_{number}")(x, embedding, train)
            return self._attended(x, context, number, level) if attend else x

        def resample(x: Array, level: int, factor: float) -> Array:
            if self.residual_resampling:
                return block(x, x.shape[-1], level, attend=False, resample=factor)
            if factor < 1:
                return self._conv(x, x.shape[-1], strides=2, padding=(self.padding, self.padding))
            return self._conv(resized(x, factor), x.shape[-1])

        def attends(x: Array, level: int) -> bool:
            return level in self.attention_levels if self.attention_levels else x.shape[1] in self.attention

        widths = [self.channels * multiplier for multiplier in self.multipliers]
        skips = [self._conv(self._seen(x, given.get("spatial")), self.channels)]
        for level, width in enumerate(widths):
            if level > 0:
                skips.append(resample(skips[-1], level, 0.5))
            for _ in range(self.blocks):
                skips.append(block(skips[-1], width, level, attends(skips[-1], level)))
        hidden = block(block(skips[-1], widths[-1], last, attend=True), widths[-1], last, attend=False)
        self.sow("intermediates", "middle", hidden)  # kept where `discriminator.middle` asks for it
        for level, width in reversed(list(enumerate(widths))):
            for _ in range(self.blocks + 1):
                hidden = block(jnp.concatenate([hidden, skips.pop()], axis=-1), width, level, attends(hidden, level))
            if level > 0:
                hidden = resample(hidden, level, 2)
        hidden = nn.silu(Norm(self.dtype, self.groups, self.epsilon)(hidden))
        return self._conv(hidden, x.shape[-1] * (2 if self.learned_variance else 1), kernel_init=zeros)

    def _conv(self, x: Array, channels: int, **options: Any) -> Array:
        return Conv(channels, (3, 3), dtype=self.dtype, **options)(x)

    def _residual(self, channels: int, resample: float, name: str) -> nn.Module:
        kind, norm = rematted(ResidualBlock, self.remat), (self.groups, self.epsilon)
        return kind(channels, self.dropout, resample, self.dtype, self.scale_shift, *norm, name=name)

    def _attended(self, x: Array, context: Array | None, number: int, level: int) -> Array:
        heads, kind = (self.head_channels, self.dtype, self.heads, self.groups), f"attention_{number}"
        blocks = self.transformer_depths[level] if self.transformer_depths else self.transformer
        if not blocks:
            return rematted(Attention, self.remat)(*heads, self.epsilon, name=kind)(x)
        transformer = rematted(Transformer, self.remat)
        return transformer(blocks, *heads, self.transformer_epsilon, name=f"transformer_{number}")(x, context)

    def _seen(self, x: Array, spatial: Array | None) -> Array:
        angles = [math.pi * 2**exponent * x for exponent in self.fourier]
        beside = [] if spatial is None else [spatial.astype(x.dtype)]
        return jnp.concatenate([x, *map(jnp.sin, angles), *map(jnp.cos, angles), *beside], axis=-1).astype(self.dtype)

    def _embedding(self, condition: Array, label: Array | None, given: Given) -> Array:
        hidden = embedded(self.frequencies(condition, self.channels), self.channels, self.dtype)
        if (guidance := given.get("guidance")) is not None:
            hidden = hidden + AddedEmbedding(self.channels, self.dtype, name="guidance")(guidance)
        if (augmentation := given.get("augmentation")) is not None:
            hidden = hidden + embedded(frequencies(augmentation, self.channels), self.channels, self.dtype)
        if self.num_classes:
            hidden = hidden + self._label_embedding(label)
        if (until := given.get("until")) is not None:
            hidden = hidden + AddedEmbedding(self.channels, self.dtype, self.frequencies, name="until")(until)
        if self.pooled_channels:
            hidden = hidden + self._pooled_embedding(given.get("pooled"), given.get("sizes"))
        return hidden

    def _label_embedding(self, label: Array | None) -> Array:
        if label is None:
            raise ValueError(f"label: the network has classes; give labels [B], {self.num_classes} where there is none")
        return nn.Embed(self.num_classes + 1, 4 * self.channels, dtype=self.dtype, embedding_init=normal)(label)

    def _pooled_embedding(self, pooled: Array | None, sizes: Array | None) -> Array:
        """Of text as a whole and of sizes, by two dense layers (Podell et al. 2023, section 2.2)."""
        if pooled is None or sizes is None or pooled.shape[1:] != (self.pooled_channels,) or sizes.shape[1:] != (6,):
            raise ValueError(f"pooled, sizes: the network reads vectors [B, {self.pooled_channels}] and sizes [B, 6]; give both")
        waves = self.frequencies(sizes.astype(pooled.dtype).ravel(), self.size_features).reshape(len(sizes), -1)
        hidden = Dense(4 * self.channels, dtype=self.dtype, name="pooled_in")(jnp.concatenate([pooled, waves], axis=-1))
        return Dense(4 * self.channels, dtype=self.dtype, name="pooled_out")(nn.silu(hidden))

    def _check_context(self, context: Array | None) -> None:
        wanted = self.context_channels
        if wanted and not (self.transformer or self.transformer_depths):
            raise ValueError(f"model.context_channels {wanted} needs transformer blocks; set model.transformer to 1 or more")
        if wanted and context is None:
            raise ValueError(f"context: the network attends to vectors [B, T, {wanted}]; give them, or zeros for none")
        if context is not None and context.shape[2:] != (wanted,):
            fault = f"context: {context.shape} given, but the network's model.context_channels is {wanted}"
            raise ValueError(f"{fault}; " + (f"give vectors [B, T, {wanted}]" if wanted else "give none"))


def unet(options: Mapping[str, Any], kind: Any = UNet) -> Any:
    """The UNet, or another kind of module, of plain values by name, as a config or a published file has them.

    They are its attributes, dtype by its name, and for frequencies told (logsnr, or another thing), base, cosine_first, shift and
    features; names of other things are left out.
    """
    named = {"attention": (), **options, "dtype": jnp.dtype(options.get("dtype", "float32"))}
    if options.get("told", "logsnr") != "logsnr":
        waves = {name: options[name] for name in ("base", "cosine_first", "shift") if name in options}
        named["frequencies"] = sinusoids(**waves, num=options.get("features", 0))
    return kind(**{name: value for name, value in named.items() if name in kind.__dataclass_fields__})


def network(module: nn.Module) -> Callable[..., Array]:
    """The module as a pure function `(params, x, condition, given, dropout_key) -> output`; no key, no dropout.

    The condition is logsnr, or what else the module was trained to be told. What is given is an array of labels `[B]`, or a mapping
    by the names of `given.GIVEN`.
    """

    def apply(params: Any, x: Array, condition: Array, given: Any, dropout_key: Array | None = None) -> Any:
        named = dict(given) if isinstance(given, Mapping) else {"label": given}
        check_given(named)
        return applied(module, params, (x, condition), dropout_key, **named)

    return apply
