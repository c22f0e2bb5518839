"""What images are compared by: VGG16 held to its definition, LPIPS, a classifier's activations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import objectives
from jaxdiff.io.errors import ConfigError
from jaxdiff.models import perceptual
from jaxdiff.models.classifier import NoisyClassifier

RNG = np.random.default_rng(0)


def convolved(x, kernel, bias):
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))), (3, 3), axis=(1, 2))
    return np.einsum("bhwcij,ijcd->bhwd", windows, kernel) + bias


def vgg(widths=(4, 3, 5, 2, 3)):
    """Random weights of a thin VGG16."""
    layers, channels = [], 3
    for width, number in zip(widths, perceptual.VGG16, strict=True):
        for _ in range(number):
            kernel = RNG.normal(size=(3, 3, channels, width)) / np.sqrt(4 * channels)
            layers.append({"kernel": kernel.astype(np.float32), "bias": RNG.normal(size=width).astype(np.float32) / 4})
            channels = width
    return {"convolutions": layers}


@pytest.mark.parametrize("channels", [1, 3])
def test_vgg16_is_thirteen_convolutions_and_four_poolings(channels):
    params = vgg()
    images = RNG.uniform(-1, 1, (2, 16, 20, channels)).astype(np.float32)
    x = (np.repeat(images, 3 // channels, axis=-1) / 2 + 0.5 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    expected, layers = [], iter(params["convolutions"])
    for number in (2, 2, 3, 3, 3):
        if expected:
            batch, height, width, depth = x.shape
            x = x[:, : height // 2 * 2, : width // 2 * 2].reshape(batch, height // 2, 2, width // 2, 2, depth).max(axis=(2, 4))
        for _ in range(number):
            x = np.maximum(convolved(x, **next(layers)), 0)
        expected.append(x / np.sqrt((x**2).sum(-1, keepdims=True) + 1e-10))
    weights = [RNG.uniform(0, 2, x.shape[-1]).astype(np.float32) for x in expected]
    plain, weighted = (jax.jit(perceptual.vgg16)(each, images) for each in (params, {**params, "weights": weights}))
    for found, scaled, truth, weight in zip(plain, weighted, expected, weights, strict=True):
        np.testing.assert_allclose(found, truth, atol=1e-5)
        np.testing.assert_allclose(scaled, truth * np.sqrt(weight), atol=1e-5)


def test_perceptual_distance_is_lpips():
    """Zhang et al. (2018), eq. 1: unit vectors, weighted squares, the mean over positions, the sum over layers."""
    a, b = ([RNG.normal(size=(2, n, n, 3)).astype(np.float32) for n in (4, 2)] for _ in range(2))
    features = {0.0: a, 1.0: b}
    distance = objectives.perceptual_distance(lambda frozen, which: [jnp.asarray(x) for x in features[which]])
    expected = sum(((x - y) ** 2).sum(-1).mean() for x, y in zip(a, b, strict=True))
    np.testing.assert_allclose(distance({}, 0.0, 1.0), expected, rtol=1e-6)
    assert distance({}, 0.0, 0.0) == 0
    both = objectives.weighted((2.0, distance), (0.5, lambda frozen, x0, x_hat: jnp.float32(3)))
    np.testing.assert_allclose(both({}, 0.0, 1.0), 2 * expected + 1.5, rtol=1e-6)


@pytest.mark.parametrize("options", [{}, {"remat": "everything"}, {"dtype": jnp.bfloat16}], ids=str)
def test_a_classifiers_features_are_those_of_each_residual_block(options):
    module = NoisyClassifier(channels=8, multipliers=(1, 2), blocks=2, attention=(), head_channels=8, **options)
    x0 = RNG.normal(size=(2, 8, 8, 1)).astype(np.float32)
    shapes = jax.eval_shape(module.init, jax.random.key(1), x0, jnp.zeros(2))["params"]
    params = jax.tree.map(lambda leaf: 0.3 * RNG.normal(size=leaf.shape).astype(np.float32), shapes)
    features = perceptual.classifier_features(module)
    distance = objectives.perceptual_distance(features)
    found, same, other = jax.jit(lambda params, x0, x: (features(params, x0), distance(params, x0, x0), distance(params, x0, x)))(
        params, x0, x0[::-1]
    )
    assert [leaf.shape for leaf in found] == [(2, 8, 8, 8)] * 2 + [(2, 4, 4, 16)] * 2
    for leaf in found:
        assert leaf.dtype == jnp.float32
        np.testing.assert_allclose(np.sum(np.square(leaf), axis=-1), 1, rtol=1e-3)
    assert same == 0
    assert other > 0.1


def test_vgg16_is_read_as_torchvision_names_it(tmp_path):
    params = vgg()
    numbers = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
    arrays = {}
    for number, layer in zip(numbers, params["convolutions"], strict=True):
        arrays |= {f"features.{number}.weight": layer["kernel"].transpose(3, 2, 0, 1), f"features.{number}.bias": layer["bias"]}
    linear = {f"lin{level}.model.1.weight": np.full((1, width, 1, 1), level) for level, width in enumerate((4, 3, 5, 2, 3))}
    np.savez(tmp_path / "vgg.npz", **arrays)
    np.savez(tmp_path / "lpips.npz", **arrays, **linear)
    jax.tree.map(np.testing.assert_array_equal, perceptual.load(tmp_path / "vgg.npz"), params)
    assert [weight.tolist() for weight in perceptual.load(tmp_path / "lpips.npz")["weights"]] == [
        [0] * 4,
        [1] * 3,
        [2] * 5,
        [3] * 2,
        [4] * 3,
    ]
    np.savez(tmp_path / "other.npz", **{name: array for name, array in arrays.items() if "28" not in name})
    np.savez(tmp_path / "flat.npz", **{name: array.reshape(len(array), -1) for name, array in arrays.items()})
    (tmp_path / "text.npz").write_text("weights")
    for name, message in (
        ("nowhere.npz", "holds no weights of VGG16"),
        ("text.npz", "holds no weights of VGG16"),
        ("other.npz", r"features\.28\.weight"),
        ("flat.npz", "must be of 3x3"),
    ):
        with pytest.raises(ConfigError, match=message) as error:
            perceptual.load(tmp_path / name)
        assert "\n" not in str(error.value)
        assert name in str(error.value)
