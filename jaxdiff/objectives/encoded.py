"""Any objective on text that frozen encoders read within the training step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax import Array

from jaxdiff.objectives.types import Objective, Params


def encoded(objective: Objective, encode: Callable[[Any, Mapping[str, Any]], Mapping[str, Any]]) -> Objective:
    """The objective with each batch as `encode(frozen, batch)` has it: with states in place of tokens, say, and no gradient."""

    def on_states(params: Params, state: Any, batch: Mapping[str, Array], key: Array) -> Any:
        return objective(params, state, jax.lax.stop_gradient(encode(state.frozen, batch)), key)

    return on_states
