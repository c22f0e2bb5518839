"""Training: the state, one pure step, and the loop over it."""

from jaxdiff.training.loop import loop, mean_metrics, stop_signals, together
from jaxdiff.training.step import (
    Batch,
    Gradient,
    Metrics,
    Objective,
    Params,
    Step,
    TrainState,
    initial_state,
    train_step,
    widened,
)

__all__ = [
    "Batch",
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
    "together",
    "train_step",
    "widened",
]
