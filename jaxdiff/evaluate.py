"""Evaluation: a classifier trained on the real data names the samples, and measures their Frechet distance."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from tqdm import trange

from jaxdiff.data import Images, normalized
from jaxdiff.models.classifier import Classifier


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


def report(judge: Judge, samples: np.ndarray, labels: np.ndarray, train: Images, test: Images) -> Report:
    """The report of samples `[N, H, W, C]` in [-1, 1] that were asked to be `labels [N]`."""
    named, features = judge.name(np.clip(samples, -1, 1))
    _, real = judge.name(normalized(train.fetch(np.arange(train.num_examples))[0]))
    _, held_out = judge.name(normalized(test.fetch(np.arange(test.num_examples))[0]))
    num = min(len(features), len(held_out))
    return Report(
        accuracy=judge.accuracy,
        agreement=float(np.mean(named == labels)),
        num=len(samples),
        frechet=frechet_distance(features[:num], real),
        frechet_real=frechet_distance(held_out[:num], real),
        num_real=num,
    )


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
    init_key, order_key = jax.random.split(jax.random.key(seed))
    params = jax.jit(model.init)(init_key, normalized(images[:1]))["params"]
    steps = len(images) // batch_size
    optimizer = optax.adam(optax.cosine_decay_schedule(2e-3, epochs * steps))
    epoch = jax.jit(partial(_epoch, model, optimizer, batch_size))
    state = (params, optimizer.init(params))
    for number in trange(epochs, desc="training the classifier", unit="epoch", leave=False):
        state = epoch(state, normalized(images), labels, jax.random.fold_in(order_key, number))
    params = state[0]
    apply = jax.jit(lambda x: model.apply({"params": params}, x))

    def name(images: np.ndarray, chunk: int = 500) -> tuple[np.ndarray, np.ndarray]:
        parts = [jax.device_get(apply(images[i : i + chunk])) for i in range(0, len(images), chunk)]
        logits, features = (np.concatenate(part) for part in zip(*parts, strict=True))
        return logits.argmax(-1), features

    real, truth = test.fetch(np.arange(test.num_examples))
    return Judge(name, float(np.mean(name(normalized(real))[0] == truth)))


def _epoch(model, optimizer, batch_size, state, images, labels, key):
    order_key, step_key = jax.random.split(key)
    steps = len(images) // batch_size
    order = jax.random.permutation(order_key, len(images))[: steps * batch_size].reshape(steps, batch_size)

    def loss(params, x, y, key):
        logits, _ = model.apply({"params": params}, x, train=True, rngs={"dropout": key})
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, y))

    def step(carry, indices):
        params, opt_state, key = carry
        key, shift_key, dropout_key = jax.random.split(key, 3)
        x = _shifted(images[indices], shift_key)
        grads = jax.grad(loss)(params, x, labels[indices], dropout_key)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state, key), None

    (params, opt_state, _), _ = jax.lax.scan(step, (*state, step_key), order)
    return params, opt_state


def _shifted(images: Array, key: Array) -> Array:
    """The images, each moved by -1, 0 or 1 pixels along both axes; the edge comes in as background (-1)."""
    padded = jnp.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-1)
    shifts = jax.random.randint(key, (len(images), 2), 0, 3)
    return jax.vmap(lambda image, shift: jax.lax.dynamic_slice(image, (shift[0], shift[1], 0), images.shape[1:]))(padded, shifts)


def _root(covariance: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(covariance)
    return (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
