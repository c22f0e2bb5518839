"""CLIP's text transformer (Radford et al. 2021, section 2.4), as Stable Diffusion, OpenCLIP and others have it."""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from jaxdiff.models.attention import attended, causally_attended, head_count
from jaxdiff.models.layers import Dense
from jaxdiff.models.transformer import LayerNorm

Activation = Callable[[Array], Array]


def quick_gelu(x: Array) -> Array:
    """`x * sigmoid(1.702 x)`, an approximation of GELU (Hendrycks & Gimpel 2016, section 2), in OpenAI's CLIP."""
    return x * jax.nn.sigmoid(1.702 * x)


def gelu(x: Array) -> Array:
    """`x * Phi(x)` with the normal distribution function itself (Hendrycks & Gimpel 2016, eq. 1), in OpenCLIP."""
    return jax.nn.gelu(x, approximate=False)


class EncoderLayer(nn.Module):
    """Self-attention and feed-forward of tokens `[B, T, C]`, each behind a layer norm and residual.

    Vaswani et al. (2017), section 3.1, with the norms before (Xiong et al. 2020).

    Attributes:
        heads: of attention.
        feed: width of the feed-forward.
        activation: of the feed-forward.
        attend: attention of queries, keys and values `[B, T, H, C]`.
        epsilon: of the norms.
        dtype: of the computation.
    """

    heads: int
    feed: int
    activation: Activation
    attend: Callable[[Array, Array, Array], Array] = attended
    epsilon: float = 1e-5
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, tokens: Array) -> Array:
        width = tokens.shape[-1]
        heads = head_count(width, 64, self.heads)
        queries_keys_values = Dense(3 * width, dtype=self.dtype, name="qkv")(self._norm("norm_self")(tokens))
        each = (*tokens.shape[:2], heads, width // heads)
        q, k, v = (part.reshape(each) for part in jnp.split(queries_keys_values, 3, axis=-1))
        tokens = tokens + Dense(width, dtype=self.dtype, name="out")(self.attend(q, k, v).reshape(tokens.shape))
        feed = FeedForward(self.feed, self.activation, self.dtype, name="feed")
        return tokens + feed(self._norm("norm_feed")(tokens))

    def _norm(self, name: str) -> LayerNorm:
        return LayerNorm(self.dtype, self.epsilon, name=name)


class FeedForward(nn.Module):
    """`out(activation(in(x)))` (Vaswani et al. 2017, section 3.3)."""

    width: int
    activation: Activation
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, tokens: Array) -> Array:
        hidden = self.activation(Dense(self.width, dtype=self.dtype, name="in")(tokens))
        return Dense(tokens.shape[-1], dtype=self.dtype, name="out")(hidden)


class TextEncoder(nn.Module):
    """Tokens `[B, T]` as states `[B, T, width]` and one pooled vector `[B, projection or width]`.

    A state depends on the tokens up to its own; T may be less than `positions`. The pooled vector is that of the last layer, after
    the final norm, at the first end token.

    Attributes:
        vocabulary: how many tokens there are.
        width: of the states.
        layers: how many.
        heads: of attention.
        feed: width of the feed-forward; 0 is four times `width`.
        positions: the most tokens of a text.
        activation: `quick_gelu` or `gelu`, of the feed-forward.
        skip: how many layers at the end the states leave out; 1 in Stable Diffusion XL (Podell et al. 2023, section 2.1).
        final_norm: of the states; those of Stable Diffusion XL have none.
        projection: width of the pooled vector, by a dense layer without bias; 0 is `width`, without that layer.
        end: the token where the pooled vector is read.
        epsilon: of the norms.
        dtype: of the computation.
    """

    vocabulary: int = 49_408
    width: int = 768
    layers: int = 12
    heads: int = 12
    feed: int = 0
    positions: int = 77
    activation: Activation = quick_gelu
    skip: int = 0
    final_norm: bool = True
    projection: int = 0
    end: int = 49_407
    epsilon: float = 1e-5
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, tokens: Array) -> tuple[Array, Array]:
        initial = nn.initializers.normal(1.0)  # of CLIP's 0.02 little would be left beside what the layers add
        embedded = nn.Embed(self.vocabulary, self.width, dtype=self.dtype, embedding_init=initial, name="token")(tokens)
        places = nn.Embed(self.positions, self.width, dtype=self.dtype, embedding_init=initial, name="position")
        x = embedded + places(jnp.arange(tokens.shape[1]))[None]
        states = x
        for number in range(self.layers):
            feed = self.feed or 4 * self.width
            layer = (self.heads, feed, self.activation, causally_attended, self.epsilon, self.dtype)
            x = EncoderLayer(*layer, name=f"layer_{number}")(x)
            states = x if number == self.layers - 1 - self.skip else states
        norm = LayerNorm(self.dtype, self.epsilon, name="norm")
        last = norm(x)
        ends = jnp.argmax(tokens == self.end, axis=1)
        pooled = jnp.take_along_axis(last, ends[:, None, None], axis=1)[:, 0]
        if self.projection:
            pooled = Dense(self.projection, use_bias=False, dtype=self.dtype, name="projection")(pooled)
        if not self.final_norm:
            return states, pooled
        return (norm(states) if self.skip else last), pooled
