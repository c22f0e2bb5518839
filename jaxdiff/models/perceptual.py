"""Activations of trained networks, between which perceptual distances are measured: unit vectors over channels.

Zhang et al. (2018), eq. 1, where each channel is then scaled by the square root of a weight, if there are weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxdiff.models.classifier import NoisyClassifier
from jaxdiff.models.layers import ResidualBlock

CLEAN = 10.0  # logsnr at which a classifier of noised images sees clean ones
VGG16 = (2, 2, 3, 3, 3)  # convolutions between two poolings
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
    layers, found = iter(params["convolutions"]), []
    for level, number in enumerate(VGG16):
        if level > 0:
            x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
        for layer in (next(layers) for _ in range(number)):
            x = jax.lax.conv_general_dilated(x, layer["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
            x = jax.nn.relu(x + layer["bias"][None, None, None])
        weights = params["weights"][level] if "weights" in params else jnp.ones(x.shape[-1:])
        found.append(unit(x) * jnp.sqrt(weights)[None, None, None])
    return found


def unit(features: Array) -> Array:
    """The features `[..., C]` divided by their length, float32."""
    features = features.astype(jnp.float32)
    return features * jax.lax.rsqrt(jnp.sum(features**2, axis=-1, keepdims=True) + 1e-10)
