"""Training: the state, one pure step, and the loop over it."""

from jaxdiff.training.loop import loop, mean_metrics, repeated, stop_signals
from jaxdiff.training.step import (
    Batch,
    Decays,
    Gradient,
    Metrics,
    Objective,
    Params,
    Step,
    TrainState,
    as_float32,
    initial_state,
    scale_pixels,
    train_step,
)

__all__ = [
    "Batch",
    "Decays",
    "Gradient",
    "Metrics",
    "Objective",
    "Params",
    "Step",
    "TrainState",
    "initial_state",
    "loop",
    "mean_metrics",
    "stop_signals",
    "repeated",
    "scale_pixels",
    "train_step",
    "as_float32",
]
