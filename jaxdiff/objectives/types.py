"""Types of objectives and of the functions that they take, from any framework."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from jax import Array

from jaxdiff.denoiser import Denoiser

Params = Any
Given = Any  # what a network is given of a batch: labels [B], or a mapping of several
ConditionalNetwork = Callable[[Params, Array, Array, Any, Array | None], Array]
# (params, scaled x [B, ...], logsnr [B], given, dropout key or None) -> output [B, ...], from any framework
ClassifierNetwork = Callable[[Params, Array, Array, Array | None], Array]
# (params, x scaled to unit size [B, ...], logsnr [B], dropout key or None) -> logits [B, K], from any framework
Student = Callable[[Params, Given, Array | None], Denoiser]  # (params, given, dropout key or None) -> denoiser
Teacher = Callable[[Any, Given], Denoiser]  # (frozen, given) -> denoiser, guided by what is given or by a scale of its own
Objective = Callable[[Params, Any, Mapping[str, Array], Array], Any]  # -> loss [], or a pair of it and metrics
