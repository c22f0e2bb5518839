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
from jaxdiff.data.labels import classes_of_places
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

    Where images have several places with classes of their own it sees them one by one: it knows combinations that are not among
    the training images, and its label of an image is right where those of all places are. Features are those of all places.

    Raises:
        DataError: the data set has no labels.
    """
    if not source.train.num_classes:
        why = f"the classifier whose features measure samples needs labels, which {source.name.split()[0]} has not"
        raise DataError(f"not measured: {why}; those of another network: --features inception --weights FILE.npz, or clip, FOLDER")
    train = _place_images(source.train)
    path = files.cache_dir() / "judges" / f"{source.file}_{epochs}_epochs_seed_{SEED}_version_{VERSION}.npz"
    flat: Any = feature_cache.cached_arrays(path, lambda: _flat(train_classifier(train, epochs)))
    params = traverse_util.unflatten_dict(flat, sep="/")
    model = Classifier(train.num_classes)

    def apply(params: Any, images: Array) -> tuple[Array, Array]:
        logits, features = cast(tuple[Array, Array], model.apply({"params": params}, _split_places(images, source.train.places)))
        return features.reshape(len(images), -1), _joint_logits(logits.reshape(len(images), source.train.places, -1))

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


def _place_images(images: Images) -> Images:
    """The places of images as images of their own, those of an image one after another; the images themselves if they have one."""
    places, num_classes = images.places, round(images.num_classes ** (1 / images.places))
    if places == 1:
        return images

    def fetch(indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        whole, label = images.fetch(indices // places)
        each = np.arange(len(indices)) * places + indices % places
        return _split_places(whole, places)[each], classes_of_places(label, num_classes, places).ravel()[each]

    return images._replace(fetch=fetch, num_examples=places * images.num_examples, num_classes=num_classes, places=1)


def _split_places(images: Any, places: int) -> Any:
    """The places of images `[B, H, W, C]`, from left to right, `[B * places, H, W / places, C]`."""
    batch, height, _, channels = images.shape
    return images.reshape(batch, height, places, -1, channels).swapaxes(1, 2).reshape(batch * places, height, -1, channels)


def _joint_logits(logits: Array) -> Array:
    """Logits `[B, K ** places]` of all combinations of classes, of those `[B, places, K]` of each place: their sums."""
    both = logits[:, 0]
    for place in range(1, logits.shape[1]):
        both = (both[:, :, None] + logits[:, place, None]).reshape(len(logits), -1)
    return both


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
