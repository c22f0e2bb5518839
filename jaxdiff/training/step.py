"""Training: the state, one pure step, and the loop over it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import chex
import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.typing import DTypeLike

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
Decays = Mapping[
    str, float | Callable[[Array], Array]
]  # a function, as `power_ema.share`: from the step, 1 the first, to 1 - decay
Gradient = Callable[[Params, TrainState, Batch, Array], tuple[tuple[Array, Metrics], Params]]  # as jax.value_and_grad with has_aux


def initial_state(
    params: Params,
    optimizer: optax.GradientTransformation,
    ema_decays: Decays,
    frozen: Any = None,
    ema_dtype: DTypeLike | None = None,
) -> TrainState:
    """The state at step 0; every EMA starts as a copy of the params, of their dtype unless one is given."""
    ema = {name: jax.tree.map(lambda leaf: jnp.array(leaf, ema_dtype or leaf.dtype), params) for name in ema_decays}
    return TrainState(jnp.zeros((), jnp.int32), params, ema, optimizer.init(params), {} if frozen is None else frozen)


def train_step(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    ema_decays: Decays,
    num_microbatches: int = 1,
    reduce_gradients: Callable[[Gradient], Gradient] = lambda gradient: gradient,
) -> Step:
    """One pure step `(state, batch, key) -> (state, metrics)`; the same key serves every step of a run.

    An EMA moves by `(1 - d) * (params - ema)` with `d = min(decay, (1 + k) / (10 + k))` after k steps, so that it forgets the
    initial params soon. One of bfloat16 is rounded at random, up or down by the distance, or it would never move. Arrays of uint8
    in the batch are images, which the objective sees as float32 in [-1, 1].

    Args:
        objective: the loss `[]` to minimise in its first argument; or a pair of it and metrics `[]` to report beside it. It is
            a mean over the rows of the batch, and sees a state without params and optimizer.
        optimizer: any optax transformation; clipping, warm-up and schedule are its own.
        ema_decays: name -> decay of every EMA in the state; or what the new params count for, as a function of the step.
        num_microbatches: into how many microbatches a batch is split, whose gradients are computed in sequence to save memory.
        reduce_gradients: from the gradient on a device's own rows to that on the rows of all: gathers params and averages
            gradients, see `mesh.Layout`.
    """
    gradient = reduce_gradients(_accumulated(_gradient(objective), num_microbatches))

    def step(state: TrainState, batch: Batch, key: Array) -> tuple[TrainState, Metrics]:
        chex.assert_equal_shape_prefix(jax.tree.leaves(batch), 1)
        batch, key = scale_pixels(batch), jax.random.fold_in(key, state.step)
        (loss, terms), grads = gradient(state.params, replace(state, params={}, opt_state=()), batch, key)
        with jax.numpy_dtype_promotion("standard"):  # optax's schedules divide counts of steps
            updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        keys = zip(ema_decays.items(), jax.random.split(jax.random.fold_in(key, 1), max(len(ema_decays), 1)), strict=False)
        ema = {name: _average(state.ema[name], params, decay, state.step, key) for (name, decay), key in keys}
        metrics = {"loss": loss, **terms, "grad_norm": optax.tree.norm(grads), "param_norm": optax.tree.norm(params)}
        return TrainState(state.step + 1, params, ema, opt_state, state.frozen), metrics

    return step


def scale_pixels(batch: Batch) -> Batch:
    """The batch, with its arrays of uint8 as float32 in [-1, 1]."""
    return {name: rows.astype(jnp.float32) / 127.5 - 1 if rows.dtype == jnp.uint8 else rows for name, rows in batch.items()}


def _gradient(objective: Objective) -> Gradient:
    def loss(params: Params, state: TrainState, batch: Batch, key: Array) -> tuple[Array, Metrics]:
        result = objective(params, replace(state, ema=as_float32(state.ema)), batch, key)
        return result if isinstance(result, tuple) else (result, {})

    return jax.value_and_grad(loss, has_aux=True)


def _accumulated(gradient: Gradient, num_microbatches: int) -> Gradient:
    """The mean of the gradients of microbatches, computed in sequence: that of the batch, with the memory of a microbatch."""
    if num_microbatches == 1:
        return gradient

    def mean(params: Params, state: TrainState, batch: Batch, key: Array) -> Any:
        split = jax.tree.map(lambda rows: rows.reshape(num_microbatches, -1, *rows.shape[1:]), batch)

        def add(total: Any, microbatch: Batch) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, total, gradient(params, state, microbatch, key)), None

        like = jax.eval_shape(gradient, params, state, jax.tree.map(lambda rows: rows[0], split), key)
        total, _ = jax.lax.scan(add, jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), like), split)
        return jax.tree.map(lambda leaf: leaf / num_microbatches, total)

    return mean


def as_float32(ema: Params) -> Params:
    """The params that an average stands for: float32 where it was kept in bfloat16."""
    return jax.tree.map(lambda leaf: leaf.astype(jnp.float32) if leaf.dtype == jnp.bfloat16 else leaf, ema)


def _average(ema: Params, params: Params, decay: float | Callable[[Array], Array], step: Array, key: Array) -> Params:
    count = step.astype(jnp.float32)
    share = decay(1 + count) if callable(decay) else 1 - jnp.minimum(decay, (1 + count) / (10 + count))

    def moved(number: int, old: Array, new: Array) -> Array:
        if old.dtype == new.dtype:
            return old + share.astype(old.dtype) * (new - old)
        wide = old.astype(new.dtype)
        return _rounded(wide + share.astype(new.dtype) * (new - wide), jax.random.fold_in(key, number))

    leaves, structure = jax.tree.flatten(ema)
    pairs = zip(leaves, jax.tree.leaves(params), strict=True)
    return structure.unflatten([moved(number, old, new) for number, (old, new) in enumerate(pairs)])


def _rounded(value: Array, key: Array) -> Array:
    """The float32 value as bfloat16, one of its two neighbours at random so that the mean is the value."""
    noise = jax.random.bits(key, value.shape, jnp.uint16).astype(jnp.uint32)
    bits = jax.lax.bitcast_convert_type(value, jnp.uint32) + noise
    return jax.lax.bitcast_convert_type((bits >> 16).astype(jnp.uint16), jnp.bfloat16)
