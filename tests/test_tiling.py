"""Decoding in tiles: what it computes exactly, how it blends, the memory it takes."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.app import build
from jaxdiff.app.build import networks
from jaxdiff.app.config import Experiment, Model
from jaxdiff.models import autoencoder
from jaxdiff.models.tiling import tiled


def pointwise(z):
    return jnp.repeat(jnp.repeat(jnp.tanh(z[..., :2]), 2, axis=1), 2, axis=2)


def local(radius):
    kernel = jax.random.normal(jax.random.key(1), (2 * radius + 1, 2 * radius + 1, 3, 2))

    def decode(z):
        return pointwise(jax.lax.conv_general_dilated(z, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")))

    return decode


@pytest.mark.parametrize(
    ("size", "overlap"), [((8, 8), 3), ((13, 9), 0), ((13, 9), 1), ((13, 9), 6), ((17, 24), 0), ((17, 24), 3), ((17, 24), 6)]
)
def test_tiles_of_a_pointwise_decoder_make_the_whole_image(size, overlap):
    z = jax.random.normal(jax.random.key(0), (2, *size, 3))
    found = jax.jit(lambda z: tiled(pointwise, z, 8, overlap, 2))(z)
    np.testing.assert_allclose(found, pointwise(z), atol=1e-6)


@pytest.mark.parametrize(("radius", "overlap", "exact"), [(1, 0, False), (1, 4, True), (2, 4, False), (2, 8, True)])
def test_tiles_whose_overlap_covers_what_a_pixel_sees_make_the_whole_image(radius, overlap, exact):
    z, decode = jax.random.normal(jax.random.key(0), (1, 19, 14, 3)), local(radius)
    error = jax.jit(lambda z: jnp.abs(tiled(decode, z, 9, overlap, 2) - decode(z)).max())(z)
    assert error < 1e-5 if exact else error > 0.01


def test_tiles_are_blended_linearly_between_the_outer_quarters_of_their_overlap():
    """Two tiles, one all -1 and the other all 1, share pixels 16 to 23."""
    z = jnp.zeros((1, 12, 20, 1)).at[:, 0, 0].set(-1.0).at[:, 0, -1].set(1.0)
    image = jax.jit(lambda z: tiled(lambda part: jnp.full((1, 24, 24, 1), jnp.sum(part)), z, 12, 4, 2))(z)
    np.testing.assert_allclose(
        image[0, :, :, 0], np.broadcast_to([-1] * 18 + [-0.75, -0.25, 0.25, 0.75] + [1] * 18, (24, 40)), rtol=1e-5
    )


def test_an_autoencoder_decodes_large_latents_in_tiles(monkeypatch):
    """By itself; a smaller image as a whole."""
    made = Experiment(objective="autoencoder", model=Model(channels=4, multipliers=(1, 1), blocks=1, head_channels=4))
    networks_of = build.codec(made)
    params = jax.tree.map(lambda leaf: leaf + 0.1, build.init(made, jax.random.key(0)).params)  # the last layer begins at zero
    z = jax.random.normal(jax.random.key(1), (1, 12, 16, made.autoencoder.latent_channels))
    whole = networks_of.decode(params, z)
    monkeypatch.setattr(networks, "TILE", 8)
    for limit, same in ((14, True), (13, False)):
        monkeypatch.setattr(networks, "UNTILED", limit)
        found = networks_of.decode(params, z)
        assert found.shape == whole.shape
        assert np.array_equal(found, whole) == same


def test_tiles_of_a_large_image_take_the_memory_of_one():
    module = autoencoder.Decoder(channels=16, multipliers=(1, 2, 2), blocks=1, head_channels=16)
    params = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 8, 8, 4)))
    z = jax.ShapeDtypeStruct((1, 96, 96, 4), jnp.float32)

    def memory(decode):
        used = jax.jit(decode).lower(params, z).compile().memory_analysis()
        return used.temp_size_in_bytes + used.output_size_in_bytes

    whole, parts = memory(module.apply), memory(lambda params, z: tiled(partial(module.apply, params), z, 16, 4, 4))
    assert parts < 0.1 * whole


@pytest.mark.parametrize(
    ("tile", "overlap", "factor", "message"),
    [
        (12, 4, 2, "a tile of 12 does not fit in 9 latents; choose a tile of 1 to 9"),
        (0, 0, 2, "a tile of 0 does not fit"),
        (8, 8, 2, "an overlap of 8 does not fit in a tile of 8; choose an overlap of 0 to 7"),
        (8, -1, 2, "an overlap of -1"),
        (8, 4, 4, "8 latents become 16 pixels; set factor to 2, not 4"),
    ],
)
def test_tiles_that_do_not_fit(tile, overlap, factor, message):
    with pytest.raises(ValueError, match=message):
        tiled(pointwise, jnp.zeros((1, 9, 13, 3)), tile, overlap, factor)
