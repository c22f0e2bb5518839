"""Guidance: from denoisers to a denoiser, outside every sampler."""

from __future__ import annotations

from jax import Array

from jaxdiff.denoiser import Denoiser
from jaxdiff.process import Level


def guide(denoise: Denoiser, reference: Denoiser, scale: float | Array) -> Denoiser:
    """`scale * denoise + (1 - scale) * reference`: away from the reference, further towards the denoiser.

    Classifier-free guidance where the reference is the same network without a label (Ho & Salimans 2022, eq. 6, with
    scale = 1 + w); autoguidance where it is a weaker network (Karras et al. 2024). Exactly `denoise` at scale 1,
    exactly `reference` at scale 0.
    """

    def guided(x: Array, level: Level) -> Array:
        return scale * denoise(x, level) + (1 - scale) * reference(x, level)

    return guided
