"""Targets: denoisers made of data or of other denoisers, what a student regresses onto."""

from __future__ import annotations

from jax import Array

from jaxdiff.denoiser import Denoiser


def data(x0: Array) -> Denoiser:
    """The clean data itself, at every level: the target of plain diffusion training."""
    return lambda x, level: x0
