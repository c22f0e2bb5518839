"""Latent diffusion: any objective on the latents of a frozen autoencoder (Rombach et al. 2022)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax import Array

from jaxdiff.likelihood.vae import Posterior, reparameterized
from jaxdiff.objectives.rng import keys_of
from jaxdiff.objectives.types import Objective, Params

LATENT = 0x6C61  # folded into the key for the draws of latents; the objective gets the key itself, as on images


def latent(objective: Objective, posterior: Callable[[Any, Mapping[str, Array]], Posterior]) -> Objective:
    """The objective with each batch's images replaced by latents drawn from their posterior, afresh at each step.

    With an identity autoencoder it is bit-exactly the objective on images.

    Args:
        objective: of a batch whose `image` is latents.
        posterior: `(frozen, batch) -> mean and std [B, h, w, C]`: an encoder applied to `image`, or stored moments.
    """

    def on_latents(params: Params, state: Any, batch: Mapping[str, Array], key: Array) -> Any:
        keys = keys_of(jax.random.fold_in(key, LATENT), batch["index"])
        z = jax.lax.stop_gradient(reparameterized(posterior(state.frozen, batch), keys))
        return objective(params, state, {**batch, "image": z}, key)

    return on_latents
