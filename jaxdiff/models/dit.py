"""The diffusion transformer of Peebles & Xie (2022), with today's options, as a Flax Linen module."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike

from jaxdiff.io import count
from jaxdiff.models.attention import head_count
from jaxdiff.models.dit_blocks import CrossBlock, Dense, JointBlock, modulated, modulations, small
from jaxdiff.models.layers import AddedEmbedding, Frequencies, frequencies, zeros

SIZES = {"S": (12, 384, 6), "B": (12, 768, 12), "L": (24, 1024, 16), "XL": (28, 1152, 16)}  # depth, channels, heads
FEATURES = 256  # sines and cosines of the condition, as published


class DiT(nn.Module):
    """A transformer from images `[B, H, W, C]`, a condition `[B]` (logsnr) and what is given to images, as `models.unet.UNet`.

    Images are cut into patches, whose places are told by fixed sines and cosines; the condition and the label scale, shift and
    gate every block (adaLN-Zero), which is the identity at first, and the output is zero. Given may be labels `[B]`; context
    vectors `[B, T, context_channels]`, zeros where there are none; guidance `[B]`, the scale that a distilled network imitates,
    and until `[B]`, the condition of the level to which a flow map goes, whose parameters exist where they were given at
    initialisation.

    DiT-XL/2 is `DiT(1152, 28, 16, patch=2, num_classes=1000, learned_variance=True)` with a time step for condition: 674,834,720
    parameters on latents 32x32x4, which with its positions, 256 x 1152 constants that its file holds too, are the published
    675,129,632.

    Attributes:
        channels: width of the tokens, divisible by 4.
        depth: blocks.
        heads: attention heads; 0: as many as `head_channels` gives.
        patch: height and width of a patch.
        num_classes: labels are 0 .. num_classes - 1; label `num_classes` is the null label. With 0, labels are ignored.
        mlp_ratio: width of the feed-forward layers, relative to `channels`.
        head_channels: channels of an attention head, where `heads` is 0.
        epsilon: of the norms before feed-forward layers; the others have 1e-6, as diffusers.
        dtype: of the computation; parameters are float32.
        remat: none, or any other word: blocks are computed again in the backward pass, for less memory (Chen et al. 2016).
        frequencies: the features of the condition before its two dense layers, such as `layers.sinusoids(cosine_first=True)`.
        learned_variance: the output has twice the channels, of which the second half tells the variance of a step (Nichol &
            Dhariwal 2021, section 3.1).
        qk_norm: queries and keys are divided by their root mean square a head, times a learned scale (Esser et al. 2024, 5.3.2).
        swiglu: feed-forward layers are gated, `out(silu(gate) * in)` (Shazeer 2020, eq. 6), 2/3 as wide: as many parameters.
        rotary: queries and keys are turned by their place too, half of each head by rows, half by columns (Su et al. 2021).
        registers: learned tokens beside those of the image (Darcet et al. 2023).
        context_channels: width of the context vectors that blocks attend to; 0 is none.
        context_blocks: cross, attention to the context after each self-attention (Chen et al. 2023, PixArt), or joint, one
            attention of image and context, each with weights of its own (Esser et al. 2024, MMDiT).
    """

    channels: int = 384
    depth: int = 12
    heads: int = 0
    patch: int = 2
    num_classes: int = 0
    mlp_ratio: float = 4.0
    head_channels: int = 64
    epsilon: float = 1e-6
    dtype: DTypeLike = jnp.float32
    remat: str = "none"
    frequencies: Frequencies = frequencies
    learned_variance: bool = False
    qk_norm: bool = False
    swiglu: bool = False
    rotary: bool = False
    registers: int = 0
    context_channels: int = 0
    context_blocks: str = "cross"

    @nn.compact
    def __call__(
        self,
        x: Array,
        condition: Array,
        label: Array | None = None,
        train: bool = False,
        *,
        context: Array | None = None,
        guidance: Array | None = None,
        until: Array | None = None,
    ) -> Array:
        self._check(x, context)
        height, width, channels = x.shape[1] // self.patch, x.shape[2] // self.patch, x.shape[-1]
        embedding = nn.silu(self._embedding(condition, label, guidance, until))
        tokens = Dense(self.channels, dtype=self.dtype, name="patches")(patches(x, self.patch).astype(self.dtype))
        tokens = tokens + jnp.asarray(positions(height, width, self.channels), self.dtype)[None]
        places = rotations(height, width, self.channels // self._heads(), self.registers) if self.rotary else None
        if self.registers:
            learned = self.param("registers", small, (self.registers, self.channels)).astype(self.dtype)
            tokens = jnp.concatenate([jnp.broadcast_to(learned[None], (len(x), *learned.shape)), tokens], axis=1)
        tokens = self._transformed(tokens, embedding, context, places)[:, self.registers :]
        shift, scale = modulations(self.channels, 2, self.dtype, "modulation", embedding)
        outputs = channels * (2 if self.learned_variance else 1)
        last = Dense(self.patch**2 * outputs, dtype=self.dtype, kernel_init=zeros, name="out")
        return images(last(modulated(tokens, shift, scale)), height, width, self.patch)

    def _transformed(self, tokens: Array, embedding: Array, context: Array | None, places: Array | None) -> Array:
        options = self._heads(), self.mlp_ratio, self.qk_norm, self.swiglu, self.dtype, self.epsilon
        joint = bool(self.context_channels) and self.context_blocks == "joint"
        if not joint:
            block = CrossBlock if self.remat == "none" else nn.remat(CrossBlock)
            for number in range(self.depth):  # named by hand, so that remat does not rename the parameters
                tokens = block(*options, name=f"block_{number}")(tokens, embedding, context, places)
            return tokens
        kind = JointBlock if self.remat == "none" else nn.remat(JointBlock)
        beside = Dense(self.channels, dtype=self.dtype, name="context")(jnp.asarray(context, self.dtype))
        for number in range(self.depth):
            last = number == self.depth - 1
            tokens, beside = kind(*options, last, name=f"block_{number}")(tokens, beside, embedding, places)
        return tokens

    def _embedding(self, condition: Array, label: Array | None, guidance: Array | None, until: Array | None) -> Array:
        hidden = _Embedding(self.channels, self.dtype, name="condition")(self.frequencies(condition, FEATURES))
        if guidance is not None:
            hidden = hidden + AddedEmbedding(self.channels // 4, self.dtype, name="guidance")(guidance)
        if until is not None:
            hidden = hidden + _Embedding(self.channels, self.dtype, True, name="until")(self.frequencies(until, FEATURES))
        if not self.num_classes:
            return hidden
        if label is None:
            raise ValueError(f"label: the network has classes; give labels [B], {self.num_classes} where there is none")
        return hidden + nn.Embed(self.num_classes + 1, self.channels, dtype=self.dtype, embedding_init=small, name="label")(label)

    def _heads(self) -> int:
        return head_count(self.channels, self.head_channels, self.heads)

    def _check(self, x: Array, context: Array | None) -> None:
        if x.shape[1] % self.patch or x.shape[2] % self.patch:
            fault = f"an image of {x.shape[1]}x{x.shape[2]} cannot be cut into patches of {self.patch}x{self.patch}"
            raise ValueError(f"{fault}; choose a size divisible by dit.patch (data.image_shape), or another dit.patch")
        if self.channels % 4 or (self.rotary and self.channels // self._heads() % 4):
            fault = f"{count(self.channels, 'channel')} in {count(self._heads(), 'head')} cannot hold sines and cosines of places"
            raise ValueError(f"{fault}; change model.channels or model.heads")
        wanted = self.context_channels
        given = None if context is None else context.shape[2:]
        if given != ((wanted,) if wanted else None):
            raise ValueError(
                f"context: the network's model.context_channels is {wanted}; "
                + (f"give vectors [B, T, {wanted}], or zeros for none" if wanted else "give none")
            )


class _Embedding(nn.Module):
    """Features `[B, any]` through two dense layers, `[B, channels]`; zero at first where it is added to what was there before."""

    channels: int
    dtype: DTypeLike = jnp.float32
    added: bool = False

    @nn.compact
    def __call__(self, features: Array) -> Array:
        hidden = Dense(self.channels, dtype=self.dtype, kernel_init=small, name="in")(features.astype(self.dtype))
        start = zeros if self.added else small
        return Dense(self.channels, dtype=self.dtype, kernel_init=start, name="out")(nn.silu(hidden))


def patches(x: Array, patch: int) -> Array:
    """The patches of images `[B, H, W, C]`, row by row, `[B, H W / patch^2, patch^2 C]`."""
    batch, height, width, channels = x.shape
    cut = x.reshape(batch, height // patch, patch, width // patch, patch, channels)
    return jnp.moveaxis(cut, 2, 3).reshape(batch, -1, patch**2 * channels)


def images(tokens: Array, height: int, width: int, patch: int) -> Array:
    """The images of so many patches `[B, height width, patch^2 C]` a column and a row: the inverse of `patches`."""
    cut = tokens.reshape(len(tokens), height, width, patch, patch, -1)
    return jnp.moveaxis(cut, 3, 2).reshape(len(tokens), height * patch, width * patch, -1)


def positions(height: int, width: int, channels: int) -> np.ndarray:
    """Sines and cosines of the column of each patch, then of its row, `[height width, channels]`, at `10000^(-4 i / channels)`.

    Vaswani et al. (2017), section 3.5, in two dimensions, as Peebles & Xie (2022) have them.
    """
    angles = _angles(height, width, channels // 4)
    waves = [wave(axis) for axis in angles[::-1] for wave in (np.sin, np.cos)]
    return np.concatenate(waves, axis=-1).astype(np.float32)


def rotations(height: int, width: int, channels: int, before: int) -> Array:
    """The angles `[before + height width, channels / 2]` by which pairs of a head's channels turn, by rows, then by columns.

    The tokens before those of the image do not turn.
    """
    angles = np.concatenate(_angles(height, width, channels // 4), axis=-1)
    return jnp.asarray(np.pad(angles, ((before, 0), (0, 0))), jnp.float32)


def _angles(height: int, width: int, num: int) -> tuple[np.ndarray, np.ndarray]:
    """Of the row and of the column of each patch, `[height width, num]`."""
    rates = 10_000.0 ** (-np.arange(num) / num)
    row, column = np.divmod(np.arange(height * width), width)
    return row[:, None] * rates, column[:, None] * rates
