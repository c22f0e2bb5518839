"""Features of images by a network, on all devices of this process."""

from __future__ import annotations

import math
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array

from jaxdiff.evaluate.feature_cache import digest
from jaxdiff.io import progress
from jaxdiff.training.mesh import batch_sharding, make_mesh, replicated


class Network(NamedTuple):
    """A network that maps images to features.

    Attributes:
        name: with a digest of its weights.
        resize: how images are resized before.
        apply: `(variables, images [B, H, W, C] in [-1, 1]) -> (features [B, F], logits [B, K])`; K may be 0.
        variables: its weights.
        labels: whether its logits are of the labels of the data set.
        dtype: the dtype of its computation.
        classes: whether it has logits.
        encode_captions: of texts the features `[N, F]`, in the space of those of images; None of a network that reads none.
    """

    name: str
    resize: str
    apply: Callable[[Any, Array], tuple[Array, Array]]
    variables: Any
    labels: bool
    dtype: str = "float32"
    classes: bool = True
    encode_captions: Callable[[Sequence[str]], np.ndarray] | None = None


class Features(NamedTuple):
    """Of images: features float32 `[N, F]` and class probabilities `[N, K]`."""

    features: np.ndarray
    probabilities: np.ndarray


def inception(path: pathlib.Path) -> Network:
    """The InceptionV3 of published FIDs, with the weights of a file (see `models.inception.load`).

    Its logits are without bias, as those are of published inception scores.

    Raises:
        ConfigError: the file holds no such weights.
    """
    from jaxdiff.models import inception

    variables, model = inception.load(path), inception.InceptionV3()

    def apply(variables: Any, images: Array) -> tuple[Array, Array]:
        features, logits = model.apply(variables, inception.resized(images))
        return features, logits - variables["params"]["fc"]["bias"][None]

    name = f"inception {digest(*(np.asarray(leaf) for leaf in jax.tree.leaves(variables)))}"
    return Network(name, "299x299, bilinear as in TensorFlow 1", apply, variables, labels=False)


def extract(
    network: Network, fetch: Callable[[np.ndarray], np.ndarray], num: int, batch_size: int = 500, what: str = "images"
) -> Features:
    """The features of images `fetch(indices [B]) -> [B, H, W, C]` in [-1, 1] number 0 to num - 1.

    Batches are spread over the devices; `what` names them on the progress bar.
    """
    mesh = make_mesh(devices=jax.local_devices())
    rows, everywhere = batch_sharding(mesh), replicated(mesh)
    size = mesh.size * math.ceil(min(batch_size, num) / mesh.size)

    def seen(variables: Any, images: Array) -> tuple[Array, Array]:
        features, logits = network.apply(variables, images)
        return features, jax.nn.softmax(logits)

    compiled = jax.jit(seen, in_shardings=(everywhere, rows), out_shardings=rows)
    variables, parts = jax.device_put(network.variables, everywhere), []
    with jax.default_matmul_precision("highest"):  # else a TPU computes float32 in bfloat16, a GPU in TF32
        for start in progress.track(range(0, num, size), f"features of {what}", "batch"):
            images = fetch(np.arange(start, start + size) % num)
            found = jax.device_get(compiled(variables, jax.device_put(images, rows)))
            parts.append([each[: num - start] for each in found])
    return Features(*(np.concatenate(part) for part in zip(*parts, strict=True)))
