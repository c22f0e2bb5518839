"""Training: the state, one pure step, and the loop over it."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from jaxdiff.errors import NonFiniteError

Params = Any
Batch = Mapping[str, Array]
Metrics = Mapping[str, Array]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """All that a step changes, and what it reads and leaves alone (`frozen`: a teacher, an autoencoder).

    `ema` maps a name to an average of the params. `step` is also the position in the data and in the stream of keys, so
    a state says exactly where its run stands.
    """

    step: Array
    params: Params
    ema: Mapping[str, Params]
    opt_state: optax.OptState
    frozen: Any = field(default_factory=dict)


Objective = Callable[[Params, TrainState, Batch, Array], Array | tuple[Array, Metrics]]  # the loss; with it, terms to report
Step = Callable[[TrainState, Batch, Array], tuple[TrainState, Metrics]]


def initial_state(
    params: Params, optimizer: optax.GradientTransformation, ema_decays: Mapping[str, float], frozen: Any = None
) -> TrainState:
    """The state at step 0; every EMA starts as a copy of the params."""
    ema = {name: jax.tree.map(jnp.copy, params) for name in ema_decays}
    return TrainState(jnp.zeros((), jnp.int32), params, ema, optimizer.init(params), {} if frozen is None else frozen)


def train_step(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    ema_decays: Mapping[str, float],
    gather: Callable[[Params], Params] = lambda params: params,
    average: Callable[[Any], Any] = lambda tree: tree,
) -> Step:
    """One pure step `(state, batch, key) -> (state, metrics)`; the same key serves every step of a run.

    An EMA moves by `(1 - d) * (params - ema)` with `d = min(decay, (1 + k) / (10 + k))` after k steps, so that it forgets the
    initial params soon. With `optax.MultiSteps` it moves when the params do.

    Args:
        objective: the loss `[]` to minimise in its first argument; or a pair of it and metrics `[]` to report beside it.
        optimizer: any optax transformation; clipping, warm-up, accumulation are its own.
        ema_decays: name -> decay of every EMA in the state.
        gather: applied to params, EMAs and what is frozen, where they are used: replicates sharded ones (see `mesh`).
        average: applied to loss, metrics and gradients: `lax.pmean` under pmap.
    """

    def step(state: TrainState, batch: Batch, key: Array) -> tuple[TrainState, Metrics]:
        chex.assert_equal_shape_prefix(jax.tree.leaves(batch), 1)
        key = jax.random.fold_in(key, state.step)

        def scored(params: Params) -> tuple[Array, Metrics]:
            seen = replace(state, ema=gather(state.ema), frozen=gather(state.frozen))
            result = objective(gather(params), seen, batch, key)
            return result if isinstance(result, tuple) else (result, {})

        (loss, terms), grads = average(jax.value_and_grad(scored, has_aux=True)(state.params))
        with jax.numpy_dtype_promotion("standard"):  # optax's schedules divide counts of steps
            updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = {name: _average(state.ema[name], params, opt_state, decay, state.step) for name, decay in ema_decays.items()}
        metrics = {"loss": loss, **terms, "grad_norm": optax.tree.norm(grads), "param_norm": optax.tree.norm(params)}
        return TrainState(state.step + 1, params, ema, opt_state, state.frozen), metrics

    return step


def _average(ema: Params, params: Params, opt_state: optax.OptState, decay: float, step: Array) -> Params:
    moved, count = jnp.bool_(True), step
    if isinstance(opt_state, optax.MultiStepsState):
        moved, count = jnp.asarray(opt_state.mini_step) == 0, jnp.asarray(opt_state.gradient_step) - 1
    count = count.astype(jnp.float32)
    share = jnp.where(moved, 1 - jnp.minimum(decay, (1 + count) / (10 + count)), 0.0)
    return jax.tree.map(lambda old, new: old + share.astype(old.dtype) * (new - old), ema, params)


def loop(step: Step, state: TrainState, batches: Iterable[Batch], key: Array) -> Iterator[tuple[TrainState, Metrics]]:
    """State and metrics after each batch; at most two steps are in flight, so that the host prepares while the device works."""
    previous = None
    for batch in batches:
        state, metrics = step(state, batch, key)
        jax.block_until_ready(previous)
        previous = metrics
        yield state, metrics


def mean_metrics(pending: Mapping[int, Metrics]) -> dict[str, float]:
    """The mean of each metric over the pending steps (step -> metrics), read from the device here.

    Raises:
        NonFiniteError: names the first step whose loss, gradient or params are infinite or not a number.
    """
    values = {step: {name: float(value) for name, value in jax.device_get(m).items()} for step, m in pending.items()}
    for step, metrics in values.items():
        for name, value in metrics.items():
            if not np.isfinite(value):
                raise NonFiniteError(f"{name} is {value} at step {step}; try a lower learning rate in another --workdir")
    return {name: float(np.mean([m[name] for m in values.values()])) for name in next(iter(values.values()))}


@contextlib.contextmanager
def stop_signals() -> Iterator[Callable[[], str | None]]:
    """A function that names the first SIGTERM or SIGINT (Ctrl-C) received inside the block, so that a run saves first.

    A second one acts as usual.
    """
    received: list[str] = []

    def remember(number: int, frame: Any) -> None:
        received.append(signal.Signals(number).name)
        restore()

    def restore() -> None:
        for number, handler in previous.items():
            signal.signal(number, handler)

    previous = {number: signal.signal(number, remember) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda: received[0] if received else None
    finally:
        restore()
