"""What an objective draws for a batch before its loss: noise, what the network is given, and the key of its dropout."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import jax
from jax import Array

from jaxdiff import losses
from jaxdiff.objectives.conditions import Condition
from jaxdiff.objectives.rng import batch_key, keys_of, spread_levels
from jaxdiff.objectives.types import Given
from jaxdiff.process import Level, Schedule


class Draws(NamedTuple):
    """A batch's images `[B, ...]` and indices `[B]`, and what is drawn for them: levels are, by `time_key`, the objective's."""

    x0: Array
    indices: Array
    time_key: Array
    noise_keys: Array
    given: Given
    dropout_key: Array

    def times(self) -> Array:
        """Times in [0, 1], evenly spread over the whole batch, `[B]`."""
        return losses.spread_times(self.time_key, self.indices)

    def levels(self, schedule: Schedule) -> Level:
        """The levels of a schedule at these times, `[B, 1, ..., 1]`."""
        return spread_levels(schedule, self.time_key, self.indices, self.x0.ndim)


def draw(batch: Mapping[str, Array], key: Array, condition: Condition) -> Draws:
    """The draws for a batch, each example's from its index in the whole batch."""
    time_key, noise_key, condition_key, dropout_key = jax.random.split(key, 4)
    index = batch["index"]
    given = condition(batch, condition_key)
    return Draws(batch["image"], index, time_key, keys_of(noise_key, index), given, batch_key(dropout_key, index))
