"""The rounds of a run: one, or of progressive distillation one a halving, each with the student before it for a teacher."""

from __future__ import annotations

import dataclasses
import logging
import pathlib
from functools import partial
from typing import Any

import jax

from jaxdiff.app import build
from jaxdiff.app.config import Experiment, round_steps
from jaxdiff.app.runs import storage
from jaxdiff.training import TrainState, as_float32, checkpoint, distributed
from jaxdiff.training.mesh import Layout

log = logging.getLogger(__name__)


def round_ends(config: Experiment, step: int) -> list[int]:
    """The training steps at which the rounds end that are not over at `step`."""
    return [end for end in range(round_steps(config), config.steps + 1, round_steps(config)) if end > step]


def initial_or_restored_state(
    config: Experiment, workdir: pathlib.Path, layout: Layout, frozen: Any, sources: build.Sources
) -> TrainState:
    """The newest state of a run, or one at step 0, with what is frozen in it: of a later round, the student before it."""
    sharding = dataclasses.replace(layout.sharding, frozen={})
    state = checkpoint.restore(workdir, storage.with_sharding(build.state_shapes(config, sources), sharding))
    frozen = distributed.shard_from_host(frozen, layout.sharding.frozen)
    if state is None:
        state = jax.jit(partial(build.init, config, sources=sources), out_shardings=sharding)(jax.random.key(config.seed))
        if "teacher" in frozen:
            begun = jax.jit(partial(build.init_from_teacher, config), out_shardings=sharding)
            state = begun(state, frozen["teacher"])
        return dataclasses.replace(state, frozen=frozen)
    step = int(state.step)
    log.info("going on from step %d of %s", step, workdir)
    before = step // round_steps(config) * round_steps(config)
    if config.objective == "progressive" and 0 < before < step:
        name = next(iter(config.ema))
        like = storage.with_sharding(state.ema[name], layout.sharding.frozen["teacher"])
        frozen["teacher"] = as_float32(checkpoint.restore_ema(workdir, name, like, before)[1])
    return dataclasses.replace(state, frozen=frozen)


def start_next_round(config: Experiment, layout: Layout, state: TrainState) -> TrainState:
    """The state, where a round begins that is not the first: with the student before it as teacher and to start from."""
    step = int(state.step)
    if config.objective != "progressive" or step == 0 or step % round_steps(config):
        return state
    state = jax.device_put(state, layout.sharding)  # which pmap leaves on every device
    return jax.jit(partial(build.next_round_state, config), out_shardings=layout.sharding)(state)
