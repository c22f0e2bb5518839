"""Any objective for the training of adapters of frozen params (LCM-LoRA, Luo et al. 2023b)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from jax import Array

from jaxdiff.objectives.types import Objective, Params


def adapted(objective: Objective, merge: Callable[[Any, Params], Params]) -> Objective:
    """The objective of adapters: `objective(merge(state.frozen, adapters), ...)`, with each EMA merged likewise.

    Only the adapters have a gradient. Averages of adapters are merged after averaging, which differs slightly from averages of
    merged params, as low-rank products are not linear.

    Args:
        objective: of the merged params.
        merge: `(frozen, adapters) -> params`, such as `lambda frozen, each: models.lora.merged(frozen["teacher"], each)`.
    """

    def on_adapters(adapters: Params, state: Any, batch: Mapping[str, Array], key: Array) -> Any:
        ema = {name: merge(state.frozen, average) for name, average in state.ema.items()}
        return objective(merge(state.frozen, adapters), replace(state, ema=ema), batch, key)

    return on_adapters
