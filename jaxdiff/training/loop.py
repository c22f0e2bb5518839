"""The loop over training steps, and what is read off it."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxdiff.io.errors import NonFiniteError
from jaxdiff.training.step import Batch, Metrics, Step, TrainState


def loop(step: Step, state: TrainState, batches: Iterable[Batch], key: Array) -> Iterator[tuple[TrainState, Metrics]]:
    """State and metrics after each batch; at most two steps are in flight, so that the host prepares while the device works."""
    previous = None
    for batch in batches:
        state, metrics = step(state, batch, key)
        jax.block_until_ready(previous)
        previous = metrics
        yield state, metrics


def repeated(step: Step) -> Callable[[TrainState, Batch, Array, Array], tuple[TrainState, Metrics]]:
    """`(state, batches [N, B, ...], key, N) -> (state, metrics [N])`: N steps in one program, one batch after another.

    N is an argument too, and one batch is made two, of which the second is not used: so XLA sees no loop of a single step, which
    it takes away, as the TPU compiler does with a scan of length 1, and what remains may be rounded differently. Programs of
    different N have the same loop, and their steps are bit-equal.
    """

    def steps(state: TrainState, batches: Batch, key: Array, count: Array) -> tuple[TrainState, Metrics]:
        num = len(jax.tree.leaves(batches)[0])
        if num == 1:
            batches = jax.tree.map(lambda rows: jnp.concatenate([rows, rows]), batches)

        def body(number: Array, carry: Any) -> Any:
            state, metrics = carry
            state, new = step(state, jax.tree.map(lambda rows: rows[number], batches), key)
            return state, jax.tree.map(lambda all, one: all.at[number].set(one), metrics, new)

        _, like = jax.eval_shape(step, state, jax.tree.map(lambda rows: rows[0], batches), key)
        metrics = jax.tree.map(lambda value: jnp.zeros((max(num, 2), *value.shape), value.dtype), like)
        state, metrics = jax.lax.fori_loop(0, count, body, (state, metrics))
        return state, jax.tree.map(lambda values: values[:num], metrics)

    return steps


def mean_metrics(pending: Mapping[int, Metrics]) -> dict[str, float]:
    """The mean of each metric over the pending steps, read from the device here.

    `pending` has metrics `[]` by their step, or `[N]` of N steps by the last of them.

    Raises:
        NonFiniteError: names the first step whose loss, gradient or params are infinite or not a number.
    """
    values = {step: {name: np.atleast_1d(value) for name, value in jax.device_get(m).items()} for step, m in pending.items()}
    for last, metrics in values.items():
        for name, value in metrics.items():
            if not np.isfinite(value).all():
                first = int(np.argmin(np.isfinite(value)))
                step = last - len(value) + 1 + first
                raise NonFiniteError(f"{name} is {value[first]} at step {step}; try a lower learning rate in another --workdir")
    return {name: float(np.mean(np.concatenate([m[name] for m in values.values()]))) for name in next(iter(values.values()))}


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
