"""Objectives: networks and losses bound together into what is trained.

An objective is a pure function `(params, state, batch, key) -> loss []`. A batch is a mapping of arrays: `image`
`[B, H, W, C]` in [-1, 1], `label` `[B]`, and `index` `[B]`, an example's position in the whole batch. Times, noise and
dropped labels are keyed by that index, so a loss does not depend on how the batch is cut over devices. Dropout masks
alone are drawn for the array at hand: the same on every mesh, others under pmap or another number of processes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxdiff import losses, targets
from jaxdiff.denoiser import Denoiser, Parameterization, denoiser
from jaxdiff.guidance import LogProb
from jaxdiff.losses import Distance, Weight
from jaxdiff.process import Level, Schedule, diffuse

Params = Any
LabelledNetwork = Callable[[Params, Array, Array, Array, Array | None], Array]
# (params, scaled x [B, ...], logsnr [B], label [B], dropout key or None) -> output [B, ...], from any framework
ClassifierNetwork = Callable[[Params, Array, Array, Array | None], Array]
# (params, x scaled to unit size [B, ...], logsnr [B], dropout key or None) -> logits [B, K], from any framework
Objective = Callable[[Params, Any, Mapping[str, Array], Array], Array]


def diffusion(
    network: LabelledNetwork,
    schedule: Schedule,
    parameterization: Parameterization,
    weight: Weight,
    *,
    null_label: int,
    label_dropout: float = 0.1,
    distance: Distance = losses.squared_error,
) -> Objective:
    """The loss of denoising data at uniform times of a schedule: DDPM, score matching, flow matching, EDM alike.

    Ho et al. (2020), algorithm 1. With probability `label_dropout` the label is `null_label`, so that one network learns
    both denoisers of classifier-free guidance (Ho & Salimans 2022, algorithm 1).
    """

    def objective(params: Params, state: Any, batch: Mapping[str, Array], key: Array) -> Array:
        x0, index = batch["image"], batch["index"]
        time_key, noise_key, label_key, dropout_key = jax.random.split(key, 4)
        level = _spread_levels(schedule, time_key, index, x0.ndim)
        label = drop_label(label_key, index, batch["label"], null_label, label_dropout)
        student = labelled(network, parameterization, params, label, _batch_key(dropout_key, index))
        return jnp.mean(losses.regression_loss(student, targets.data(x0), x0, level, _keys(noise_key, index), weight, distance))

    return objective


def classifier(network: ClassifierNetwork, schedule: Schedule) -> Objective:
    """The cross-entropy `-log p(label | x, level)` of images noised to uniform times of a schedule: a classifier that guides.

    Dhariwal & Nichol (2021), section 4.3. The exact posterior of the labels minimises it.
    """

    def objective(params: Params, state: Any, batch: Mapping[str, Array], key: Array) -> Array:
        x0, index = batch["image"], batch["index"]
        time_key, noise_key, dropout_key = jax.random.split(key, 3)
        level = _spread_levels(schedule, time_key, index, x0.ndim)
        x = diffuse(x0, losses.noise_like(_keys(noise_key, index), x0), level)
        log_prob = label_log_prob(network, params, batch["label"], _batch_key(dropout_key, index))
        return -jnp.mean(log_prob(x, level))

    return objective


def class_log_probs(
    network: ClassifierNetwork, params: Params, dropout_key: Array | None = None
) -> Callable[[Array, Level], Array]:
    """The function `(x, level) -> log p(each class | x) [B, K]` of a classifier, which sees `x / hypot(alpha, sigma)`.

    That input depends on logsnr alone, so a classifier trained on one schedule serves all that stay within its logsnr.
    """

    def log_probs(x: Array, level: Level) -> Array:
        scaled = x / jnp.hypot(level.alpha, level.sigma)
        logits = network(params, scaled, jnp.broadcast_to(jnp.ravel(level.logsnr), x.shape[:1]), dropout_key)
        return jax.nn.log_softmax(logits.astype(x.dtype))

    return log_probs


def label_log_prob(network: ClassifierNetwork, params: Params, label: Array, dropout_key: Array | None = None) -> LogProb:
    """The function `(x, level) -> log p(label | x) [B]` of labels `[B]`, as `guidance.classifier_guide` takes it.

    The label K is none at all: 0 everywhere, so that it guides nowhere.
    """
    log_probs = class_log_probs(network, params, dropout_key)

    def log_prob(x: Array, level: Level) -> Array:
        of_class = log_probs(x, level)
        return jnp.sum(jax.nn.one_hot(label, of_class.shape[-1], dtype=x.dtype) * of_class, axis=-1)

    return log_prob


def labelled(
    network: LabelledNetwork, parameterization: Parameterization, params: Params, label: Array, dropout_key: Array | None = None
) -> Denoiser:
    """The denoiser of a labelled network at these params and labels `[B]`; it drops units only where given a key."""
    return denoiser(lambda x, logsnr: network(params, x, logsnr, label, dropout_key), parameterization)


def drop_label(key: Array, index: Array, label: Array, null_label: int, rate: float) -> Array:
    """The labels `[B]`, each replaced by the null label with probability `rate`."""
    dropped = jax.vmap(lambda k: jax.random.bernoulli(k, rate))(_keys(key, index))
    return jnp.where(dropped, jnp.full_like(label, null_label), label)


def _spread_levels(schedule: Schedule, key: Array, index: Array, ndim: int) -> Level:
    """A level for each example, at uniform times of the schedule, `[B, 1, ..., 1]`."""
    return schedule(losses.spread_times(key, index)).expand(ndim)


def _batch_key(key: Array, index: Array) -> Array:
    """One key for the array at hand; not of index[0]: a slice of a sharded array shards the key."""
    return jax.random.fold_in(key, jnp.min(index))


def _keys(key: Array, index: Array) -> Array:
    """One key an example `[B]`, from its index in the whole batch."""
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, index)
