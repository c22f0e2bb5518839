"""Denoising: networks that regress onto data, with or without a condition."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jax import Array

from jaxdiff import losses, targets
from jaxdiff.denoiser import Denoiser, Parameterization, denoiser
from jaxdiff.losses import Distance, Weight
from jaxdiff.objectives.conditions import Condition
from jaxdiff.objectives.draws import draw
from jaxdiff.objectives.types import ConditionalNetwork, Objective, Params
from jaxdiff.process import Schedule


def diffusion(
    network: ConditionalNetwork,
    schedule: Schedule,
    parameterization: Parameterization,
    weight: Weight,
    *,
    condition: Condition,
    distance: Distance = losses.squared_error,
) -> Objective:
    """The loss of denoising data at uniform times of a schedule: DDPM, score matching, flow matching, EDM alike.

    Ho et al. (2020), algorithm 1. `condition` extracts what the network is given of a batch, such as `labels(null_label)`.
    """

    def objective(params: Params, state: Any, batch: Mapping[str, Array], key: Array) -> Array:
        drawn = draw(batch, key, condition)
        student = conditional(network, parameterization, params, drawn.given, drawn.dropout_key)
        level, target = drawn.levels(schedule), targets.data(drawn.x0)
        return jnp.mean(losses.regression_loss(student, target, drawn.x0, level, drawn.noise_keys, weight, distance))

    return objective


def conditional(
    network: ConditionalNetwork, parameterization: Parameterization, params: Params, given: Any, dropout_key: Array | None = None
) -> Denoiser:
    """The denoiser of a network at these params, given its condition; dropout is active only with a key."""
    return denoiser(lambda x, logsnr: network(params, x, logsnr, given, dropout_key), parameterization)
