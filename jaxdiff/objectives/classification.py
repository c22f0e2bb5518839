"""Classification of noised data, for classifier guidance."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxdiff import losses
from jaxdiff.guidance import LogProb
from jaxdiff.objectives.rng import batch_key, keys_of, spread_levels
from jaxdiff.objectives.types import ClassifierNetwork, Objective, Params
from jaxdiff.process import Level, Schedule, diffuse


def classifier(network: ClassifierNetwork, schedule: Schedule) -> Objective:
    """The cross-entropy `-log p(label | x, level)` of images noised to uniform times of a schedule.

    Dhariwal & Nichol (2021), section 4.3. It is minimal at the exact posterior of the labels.
    """

    def objective(params: Params, state: Any, batch: Mapping[str, Array], key: Array) -> Array:
        x0, index = batch["image"], batch["index"]
        time_key, noise_key, dropout_key = jax.random.split(key, 3)
        level = spread_levels(schedule, time_key, index, x0.ndim)
        x = diffuse(x0, losses.noise_like(keys_of(noise_key, index), x0), level)
        log_prob = label_log_prob(network, params, batch["label"], batch_key(dropout_key, index))
        return -jnp.mean(log_prob(x, level))

    return objective


def class_log_probs(
    network: ClassifierNetwork, params: Params, dropout_key: Array | None = None
) -> Callable[[Array, Level], Array]:
    """The function `(x, level) -> log p(each class | x) [B, K]` of a classifier, which sees `x / hypot(alpha, sigma)`.

    That input depends on logsnr alone, so a classifier trained on one schedule can be used on others within its logsnr range.
    """

    def log_probs(x: Array, level: Level) -> Array:
        scaled = x / jnp.hypot(level.alpha, level.sigma)
        logits = network(params, scaled, jnp.broadcast_to(jnp.ravel(level.logsnr), x.shape[:1]), dropout_key)
        return jax.nn.log_softmax(logits.astype(x.dtype))

    return log_probs


def label_log_prob(network: ClassifierNetwork, params: Params, label: Array, dropout_key: Array | None = None) -> LogProb:
    """The function `(x, level) -> log p(label | x) [B]` of labels `[B]`, as `guidance.classifier_guide` takes it.

    For the null label K it is 0 everywhere, which is no guidance.
    """
    log_probs = class_log_probs(network, params, dropout_key)

    def log_prob(x: Array, level: Level) -> Array:
        of_class = log_probs(x, level)
        return jnp.sum(jax.nn.one_hot(label, of_class.shape[-1], dtype=x.dtype) * of_class, axis=-1)

    return log_prob
