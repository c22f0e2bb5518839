"""A small classifier of the real data, trained on first use and cached."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import traverse_util
from jax import Array

from jaxdiff.data import Images, normalize
from jaxdiff.evaluate import feature_cache
from jaxdiff.evaluate.features import Network
from jaxdiff.evaluate.reference_statistics import DataSet
from jaxdiff.io import count, files, progress
from jaxdiff.io.errors import DataError
from jaxdiff.models.classifier import Classifier
from jaxdiff.training import TrainState, initial_state, train_step

VERSION = 1  # of the network and of its training: a change retrains all
SEED, BATCH_SIZE = 0, 64


def classifier(source: DataSet, epochs: int) -> Network:
    """The classifier of a data set, trained for so many epochs; read from the cache where it was trained before.

    Raises:
        DataError: the data set has no labels.
    """
    if not source.train.num_classes:
        why = f"the classifier whose features measure samples needs labels, which {source.name.split()[0]} has not"
        raise DataError(f"not measured: {why}; those of another network: --features inception --weights FILE.npz")
    path = files.cache_dir() / "judges" / f"{source.file}_{epochs}_epochs_seed_{SEED}_version_{VERSION}.npz"
    flat: Any = feature_cache.cached_arrays(path, lambda: _flat(train_classifier(source.train, epochs)))
    params = traverse_util.unflatten_dict(flat, sep="/")
    model = Classifier(source.train.num_classes)

    def apply(params: Any, images: Array) -> tuple[Array, Array]:
        logits, features = cast(tuple[Array, Array], model.apply({"params": params}, images))
        return features, logits

    name = f"classifier, {count(epochs, 'epoch')}, {feature_cache.digest(*(flat[name] for name in sorted(flat)))}"
    return Network(name, "none", apply, params, labels=True)


def train_classifier(train: Images, epochs: int, seed: int = SEED, batch_size: int = BATCH_SIZE) -> Any:
    """The params of a classifier of the training images, shifted by at most one pixel at random.

    Fewer images than a batch are one batch; else the last batch of an epoch is left out where it is not full.
    """
    images, labels = train.fetch(np.arange(train.num_examples))
    model = Classifier(train.num_classes)
    batch_size = min(batch_size, len(images))
    num_steps = len(images) // batch_size
    optimizer = optax.adam(optax.cosine_decay_schedule(2e-3, epochs * num_steps))
    step = jax.jit(train_step(partial(_classification, model), optimizer, {}), donate_argnums=0)
    init_key, key = jax.random.split(jax.random.key(seed))
    state = initial_state(jax.jit(model.init)(init_key, normalize(images[:1]))["params"], optimizer, {})
    with progress.bar(epochs * num_steps, "training the classifier", "step") as bar:
        for first in range(0, epochs * num_steps, num_steps):
            order = np.asarray(jax.random.permutation(jax.random.fold_in(key, first), len(images)))
            for rows in np.split(order[: num_steps * batch_size], num_steps):
                state, metrics = step(state, {"image": normalize(images[rows]), "label": labels[rows]}, key)
                jax.block_until_ready(metrics)  # so that the bar shows finished steps
                bar.update()
    return jax.device_get(state.params)


def _flat(params: Any) -> Any:
    return traverse_util.flatten_dict(params, sep="/")


def accuracy(label: Callable[[np.ndarray], Array | np.ndarray], test: Images, chunk: int = 500) -> float:
    """The share of the test images that `label(images [B, H, W, C]) -> labels [B]` classifies correctly."""
    images, truth = test.fetch(np.arange(test.num_examples))
    parts = [np.asarray(label(normalize(images[i : i + chunk]))) for i in range(0, len(images), chunk)]
    return float(np.mean(np.concatenate(parts) == truth))


def _classification(model: Classifier, params: Any, state: TrainState, batch: Mapping[str, Array], key: Array) -> Array:
    shift_key, dropout_key = jax.random.split(key)
    image = _shifted(batch["image"], shift_key)
    logits, _ = model.apply({"params": params}, image, train=True, rngs={"dropout": dropout_key})
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]))


def _shifted(images: Array, key: Array) -> Array:
    """The images, each moved by -1, 0 or 1 pixels along both axes; the edge comes in as background (-1)."""
    padded = jnp.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-1)
    shifts = jax.random.randint(key, (len(images), 2), 0, 3)
    return jax.vmap(lambda image, shift: jax.lax.dynamic_slice(image, (shift[0], shift[1], 0), images.shape[1:]))(padded, shifts)
