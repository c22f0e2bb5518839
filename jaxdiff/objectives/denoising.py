"""Denoising: networks that regress onto data, with labels or without."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxdiff import losses, targets
from jaxdiff.denoiser import Denoiser, Parameterization, denoiser
from jaxdiff.losses import Distance, Weight
from jaxdiff.objectives.keys import batch_key, drop_label, keys_of, spread_levels
from jaxdiff.objectives.kinds import LabelledNetwork, Objective, Params
from jaxdiff.process import Schedule


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
        level = spread_levels(schedule, time_key, index, x0.ndim)
        label = drop_label(label_key, index, batch["label"], null_label, label_dropout)
        student = labelled(network, parameterization, params, label, batch_key(dropout_key, index))
        return jnp.mean(losses.regression_loss(student, targets.data(x0), x0, level, keys_of(noise_key, index), weight, distance))

    return objective


def labelled(
    network: LabelledNetwork, parameterization: Parameterization, params: Params, label: Array, dropout_key: Array | None = None
) -> Denoiser:
    """The denoiser of a labelled network at these params and labels `[B]`; it drops units only where given a key."""
    return denoiser(lambda x, logsnr: network(params, x, logsnr, label, dropout_key), parameterization)
