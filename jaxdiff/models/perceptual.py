"""Activations of trained networks, between which perceptual distances are measured: unit vectors over channels.

Zhang et al. (2018), eq. 1, where each channel is then scaled by the square root of a weight, if there are weights.
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxdiff.io import weights
from jaxdiff.io.errors import ConfigError
from jaxdiff.models.classifier import NoisyClassifier
from jaxdiff.models.layers import ResidualBlock

CLEAN = 10.0  # logsnr at which a classifier of noised images sees clean ones
VGG16 = (2, 2, 3, 3, 3)  # convolutions between two poolings
CONVOLUTIONS = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)  # their numbers in torchvision's network
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's pixels in [0, 1]


def classifier_features(module: NoisyClassifier) -> Callable[[Any, Array], list[Array]]:
    """The function `(params, images [B, H, W, C]) -> activations [B, h, w, C']` of each residual block of a noisy classifier."""

    def activations(params: Any, images: Array) -> list[Array]:
        logsnr = jnp.full(images.shape[:1], CLEAN, images.dtype)
        _, kept = module.apply(
            {"params": params},
            images,
            logsnr,
            capture_intermediates=lambda block, method: isinstance(block, ResidualBlock) and method == "__call__",
            mutable=["intermediates"],
        )
        return [unit(leaf) for leaf in jax.tree.leaves(kept)]

    return activations


def vgg16(params: Mapping[str, Any], images: Array) -> list[Array]:
    """The last activations before each pooling of VGG16, of images in [-1, 1] with 1 or 3 channels.

    Simonyan & Zisserman (2015), configuration D.

    Args:
        params: `convolutions`, thirteen mappings of `kernel [3, 3, C, C']` and `bias [C']`; with LPIPS, `weights`, of the
            channels of each of the five activations.
        images: `[B, H, W, C]`, at least 16 pixels high and wide.
    """
    mean, std = (jnp.asarray(value, images.dtype)[None, None, None] for value in (MEAN, STD))
    x = (jnp.broadcast_to(images, (*images.shape[:-1], 3)) / 2 + 0.5 - mean) / std
    layers, activations = iter(params["convolutions"]), []
    for level, number in enumerate(VGG16):
        if level > 0:
            x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
        for layer in (next(layers) for _ in range(number)):
            x = jax.lax.conv_general_dilated(x, layer["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
            x = jax.nn.relu(x + layer["bias"][None, None, None])
        weight = params["weights"][level] if "weights" in params else jnp.ones(x.shape[-1:])
        activations.append(unit(x) * jnp.sqrt(weight)[None, None, None])
    return activations


def load(path: pathlib.Path | str) -> dict[str, Any]:
    """The params of `vgg16` from a .npz file of torchvision's `vgg16().state_dict()`.

    LPIPS's own `lin0.model.1.weight` to `lin4.model.1.weight`, if the file holds them, weight the channels.

    Raises:
        ConfigError: no such file, or not these weights.
    """
    with weights.open_npz(path, "VGG16 as torchvision names them") as file:
        kernels, biases = ([file[f"features.{n}.{name}"] for n in CONVOLUTIONS] for name in ("weight", "bias"))
        linear = [file[name].reshape(-1) for level in range(5) if (name := f"lin{level}.model.1.weight") in file]
        kernels, biases, linear = ([np.asarray(each, np.float32) for each in arrays] for arrays in (kernels, biases, linear))
    if any(kernel.ndim != 4 or kernel.shape[-1] != 3 for kernel in kernels):
        raise ConfigError(f"sources.features: {path}: the convolutions must be of 3x3, [out, in, 3, 3]")
    if len(linear) not in (0, 5):
        raise ConfigError(f"sources.features: {path} holds {len(linear)} of LPIPS's five lin*.model.1.weight; keep all, or none")
    layers = [{"kernel": k.transpose(2, 3, 1, 0), "bias": b} for k, b in zip(kernels, biases, strict=True)]
    return {"convolutions": layers, **({"weights": linear} if linear else {})}


def unit(features: Array) -> Array:
    """The features `[..., C]` divided by their length, float32."""
    features = features.astype(jnp.float32)
    return features * jax.lax.rsqrt(jnp.sum(features**2, axis=-1, keepdims=True) + 1e-10)
