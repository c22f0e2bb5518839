"""What objectives take and are: functions, from any framework."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from jax import Array

Params = Any
ConditionalNetwork = Callable[[Params, Array, Array, Any, Array | None], Array]
# (params, scaled x [B, ...], logsnr [B], given, dropout key or None) -> output [B, ...], from any framework; given is what
# the condition makes of a batch: labels [B], or a mapping of several
ClassifierNetwork = Callable[[Params, Array, Array, Array | None], Array]
# (params, x scaled to unit size [B, ...], logsnr [B], dropout key or None) -> logits [B, K], from any framework
Objective = Callable[[Params, Any, Mapping[str, Array], Array], Any]  # -> loss [], or a pair of it and terms to report
