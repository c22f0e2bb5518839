"""Keys by an example's index in the whole batch, so that draws do not depend on how the batch is split over devices."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

from jaxdiff import losses
from jaxdiff.process import Level, Schedule


def spread_levels(schedule: Schedule, key: Array, index: Array, ndim: int) -> Level:
    """A level for each example at uniform times of the schedule, `[B, 1, ..., 1]`."""
    return schedule(losses.spread_times(key, index)).expand(ndim)


def batch_key(key: Array, index: Array) -> Array:
    """One key for the rows `index [B]` of this device. Not from index[0], as a slice of a sharded array shards the key."""
    return jax.random.fold_in(key, jnp.min(index))


def keys_of(key: Array, index: Array) -> Array:
    """One key per example, `[B]`, from its index in the whole batch."""
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, index)
