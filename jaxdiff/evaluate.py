"""Evaluation: a classifier trained on the real data names the samples, and measures their Frechet distance."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from tqdm import tqdm

from jaxdiff.data import Images, normalized
from jaxdiff.models.classifier import Classifier
from jaxdiff.train import TrainState, initial_state, train_step


class Judge(NamedTuple):
    """A trained classifier: `name(images [N, H, W, C]) -> (labels [N], features [N, F])`, and its test accuracy."""

    name: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
    accuracy: float


@dataclass(frozen=True)
class Report:
    """How samples compare with real images, held-out real images measured in the same way.

    `frechet` and `frechet_real` are distances from the training images in the classifier's features, each over `num_real`
    images: as many samples as there are held-out images, since the distance is biased by the number.
    """

    accuracy: float
    agreement: float
    num: int
    frechet: float
    frechet_real: float
    num_real: int

    def __str__(self) -> str:
        return (
            f"classifier: {self.accuracy:.1%} of {self.num_real} held-out real images named right\n"
            f"label agreement: {self.agreement:.1%} of {self.num} samples\n"
            f"Frechet distance from the training images in its features: {self.frechet:.2f} "
            f"(held-out real images: {self.frechet_real:.2f}; {self.num_real} images each)"
        )


class Reference(NamedTuple):
    """A judge's features of real images: of those for training and of held-out ones, `[N, F]`."""

    train: np.ndarray
    held_out: np.ndarray


def reference(judge: Judge, train: Images, test: Images) -> Reference:
    """What samples are compared with."""
    return Reference(*(judge.name(normalized(each.fetch(np.arange(each.num_examples))[0]))[1] for each in (train, test)))


def report(judge: Judge, reference: Reference, samples: np.ndarray, labels: np.ndarray) -> Report:
    """The report of samples `[N, H, W, C]` in [-1, 1] that were asked to be `labels [N]`."""
    named, features = judge.name(np.clip(samples, -1, 1))
    num = min(len(features), len(reference.held_out))
    return Report(
        accuracy=judge.accuracy,
        agreement=float(np.mean(named == labels)),
        num=len(samples),
        frechet=frechet_distance(features[:num], reference.train),
        frechet_real=frechet_distance(reference.held_out[:num], reference.train),
        num_real=num,
    )


def accuracy(label: Callable[[np.ndarray], Array | np.ndarray], test: Images, chunk: int = 500) -> float:
    """The share of the test images whose label `label(images [B, H, W, C]) -> labels [B]` says."""
    images, truth = test.fetch(np.arange(test.num_examples))
    parts = [np.asarray(label(normalized(images[i : i + chunk]))) for i in range(0, len(images), chunk)]
    return float(np.mean(np.concatenate(parts) == truth))


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """`|mean_a - mean_b|^2 + tr(A + B - 2 sqrt(A B))` of Gaussians fitted to features `[N, F]` (Heusel et al. 2017, eq. 6)."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    cov_a, cov_b = (np.cov(features, rowvar=False, ddof=1) for features in (a, b))
    root = _root(cov_a)
    cross = np.sqrt(np.clip(np.linalg.eigvalsh(root @ cov_b @ root), 0, None)).sum()
    return float(np.sum((a.mean(0) - b.mean(0)) ** 2) + np.trace(cov_a) + np.trace(cov_b) - 2 * cross)


def train_judge(train: Images, test: Images, epochs: int, seed: int = 0, batch_size: int = 64) -> Judge:
    """A classifier of the training images, shifted by at most one pixel at random, with its accuracy on the test images."""
    images, labels = train.fetch(np.arange(train.num_examples))
    model = Classifier(train.num_classes)
    num_steps = len(images) // batch_size
    optimizer = optax.adam(optax.cosine_decay_schedule(2e-3, epochs * num_steps))
    step = jax.jit(train_step(partial(_classification, model), optimizer, {}), donate_argnums=0)
    init_key, key = jax.random.split(jax.random.key(seed))
    state = initial_state(jax.jit(model.init)(init_key, normalized(images[:1]))["params"], optimizer, {})
    with tqdm(total=epochs * num_steps, desc="training the classifier", unit="step", leave=False) as bar:
        for first in range(0, epochs * num_steps, num_steps):
            order = np.asarray(jax.random.permutation(jax.random.fold_in(key, first), len(images)))
            for rows in np.split(order[: num_steps * batch_size], num_steps):
                state, metrics = step(state, {"image": normalized(images[rows]), "label": labels[rows]}, key)
                jax.block_until_ready(metrics)  # so that the bar tells the truth
                bar.update()
    return _judge(model, state.params, test)


def _judge(model: Classifier, params: Any, test: Images) -> Judge:
    apply = jax.jit(model.apply)

    def name(images: np.ndarray, chunk: int = 500) -> tuple[np.ndarray, np.ndarray]:
        parts = [jax.device_get(apply({"params": params}, images[i : i + chunk])) for i in range(0, len(images), chunk)]
        logits, features = (np.concatenate(part) for part in zip(*parts, strict=True))
        return logits.argmax(-1), features

    return Judge(name, accuracy(lambda images: name(images)[0], test))


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


def _root(covariance: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(covariance)
    return (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
