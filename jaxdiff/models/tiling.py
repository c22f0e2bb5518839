"""Tiled decoding, for images whose activations do not fit in memory."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array


def tiled(decode: Callable[[Array], Array], z: Array, tile: int, overlap: int, factor: int) -> Array:
    """About `decode(z)`, images `[B, factor * h, factor * w, C']`, in the memory of one tile and of the images themselves.

    Tiles are decoded one after another. Where two overlap, the outer quarter of the overlap of each, next to its cut, counts
    nothing, and between the quarters they are blended linearly. So a decoder of convolutions of which no pixel sees farther
    than `overlap / 4` latents is computed exactly.

    What a decoder does with the whole image, it does here with each tile alone: attention sees nothing outside it, and group
    norms take its statistics. Tones may then differ from tile to tile, which the blending hides but does not correct; choose
    tiles as large as those that the decoder was trained on.

    Args:
        decode: from latents `[B, tile, tile, C]` to images `[B, factor * tile, factor * tile, C']`.
        z: latents `[B, h, w, C]`, at least a tile high and wide; the last tile of a row or column is shifted inward.
        tile: height and width of a tile, in latents.
        overlap: of neighbouring tiles, in latents.
        factor: how many times larger images are than latents.

    Raises:
        ValueError: the sizes do not fit each other.
    """
    batch, height, width, channels = z.shape
    _check(min(height, width), tile, overlap)
    made = jax.eval_shape(decode, jax.ShapeDtypeStruct((batch, tile, tile, channels), z.dtype))
    if made.shape[1:3] != (factor * tile, factor * tile):
        raise ValueError(
            f"tiled: {tile} latents become {made.shape[1]} pixels; set factor to {made.shape[1] // tile}, not {factor}"
        )
    (rows, down), (columns, across) = (_cut(length, tile, overlap, factor) for length in (height, width))

    def place(canvas: Array, number: Array) -> tuple[Array, None]:
        row, column = number // len(columns), number % len(columns)
        decoded = decode(jax.lax.dynamic_slice(z, (0, rows[row], columns[column], 0), (batch, tile, tile, channels)))
        share = (down[row][:, None] * across[column][None]).astype(decoded.dtype)
        corner = (0, factor * rows[row], factor * columns[column], 0)
        below = jax.lax.dynamic_slice(canvas, corner, decoded.shape)
        return jax.lax.dynamic_update_slice(canvas, below + decoded * share[None, :, :, None], corner), None

    canvas = jnp.zeros((batch, factor * height, factor * width, made.shape[-1]), made.dtype)
    return jax.lax.scan(place, canvas, jnp.arange(len(rows) * len(columns)))[0]


def _cut(length: int, tile: int, overlap: int, factor: int) -> tuple[Array, Array]:
    """Where the tiles of a row begin `[N]`, in latents, and the share of each in its pixels `[N, factor * tile]`."""
    starts = jnp.array([*range(0, length - tile, tile - overlap), length - tile])
    pixel, blended = jnp.arange(factor * tile, dtype=jnp.float32) + 0.5, factor * overlap

    def weight(distance: Array, whole: Array) -> Array:
        rising = jnp.clip((distance - blended / 4) / max(blended / 2, 1), 0, 1)
        return jnp.where(whole[:, None], 1.0, rising[None])

    weights = jnp.minimum(weight(pixel, starts == 0), weight(factor * tile - pixel, starts == length - tile))
    places = factor * starts[:, None] + jnp.arange(factor * tile)[None]
    return starts, weights / jnp.zeros(factor * length).at[places].add(weights)[places]


def _check(size: int, tile: int, overlap: int) -> None:
    if not 1 <= tile <= size:
        raise ValueError(f"tiled: a tile of {tile} does not fit in {size} latents; choose a tile of 1 to {size}")
    if not 0 <= overlap < tile:
        raise ValueError(f"tiled: an overlap of {overlap} does not fit in a tile of {tile}; choose an overlap of 0 to {tile - 1}")
