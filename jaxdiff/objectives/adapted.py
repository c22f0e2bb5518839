"""Training adapters alone: any objective, of a frozen base and a small tree beside it (LCM-LoRA, Luo et al. 2023b)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from jax import Array

from jaxdiff.objectives.types import Objective, Params


def adapted(objective: Objective, merge: Callable[[Any, Params], Params]) -> Objective:
    """The objective of adapters: `objective(merge(state.frozen, adapters), ...)`, with each EMA merged likewise.

    The gradient is of the adapters alone. An EMA of adapters is merged after averaging, and a product of averages is not quite
    the average of products.

    Args:
        objective: of the merged params.
        merge: `(frozen, adapters) -> params`, such as `lambda frozen, each: models.lora.merged(frozen["teacher"], each)`.
    """

    def on_adapters(adapters: Params, state: Any, batch: Mapping[str, Array], key: Array) -> Any:
        ema = {name: merge(state.frozen, average) for name, average in state.ema.items()}
        return objective(merge(state.frozen, adapters), replace(state, ema=ema), batch, key)

    return on_adapters
