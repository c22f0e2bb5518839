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
from jaxdiff.losses import Distance, Weight
from jaxdiff.process import Schedule

Params = Any
LabelledNetwork = Callable[[Params, Array, Array, Array, Array | None], Array]
# (params, scaled x [B, ...], logsnr [B], label [B], dropout key or None) -> output [B, ...], from any framework
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
        level = schedule(losses.spread_times(time_key, index)).expand(x0.ndim)
        label = drop_label(label_key, index, batch["label"], null_label, label_dropout)
        dropout_key = jax.random.fold_in(dropout_key, jnp.min(index))  # not index[0]: a slice of a sharded array shards the key
        student = labelled(network, parameterization, params, label, dropout_key)
        return jnp.mean(losses.regression_loss(student, targets.data(x0), x0, level, _keys(noise_key, index), weight, distance))

    return objective


def labelled(
    network: LabelledNetwork, parameterization: Parameterization, params: Params, label: Array, dropout_key: Array | None = None
) -> Denoiser:
    """The denoiser of a labelled network at these params and labels `[B]`; it drops units only where given a key."""
    return denoiser(lambda x, logsnr: network(params, x, logsnr, label, dropout_key), parameterization)


def drop_label(key: Array, index: Array, label: Array, null_label: int, rate: float) -> Array:
    """The labels `[B]`, each replaced by the null label with probability `rate`."""
    dropped = jax.vmap(lambda k: jax.random.bernoulli(k, rate))(_keys(key, index))
    return jnp.where(dropped, jnp.full_like(label, null_label), label)


def _keys(key: Array, index: Array) -> Array:
    """One key an example `[B]`, from its index in the whole batch."""
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, index)
