"""Training of a run: a directory with config.json, checkpoints/, metrics.jsonl, tensorboard/, samples/ and what `finish` writes."""

import contextlib
import dataclasses
import logging
import math
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array

from jaxdiff import data
from jaxdiff.app import build
from jaxdiff.app.config import Experiment, distillation, rules, to_dict, uses_discrete_levels
from jaxdiff.app.runs import finish, latent_cache, prompts, storage
from jaxdiff.app.runs.sources import record_sources, source_configs, source_params
from jaxdiff.app.runs.trained import cycle_labels, image_sampler
from jaxdiff.io import paths, pictures, progress
from jaxdiff.io.errors import ConfigError, NonFiniteError
from jaxdiff.training import (
    Step,
    TrainState,
    as_float32,
    checkpoint,
    distributed,
    mean_metrics,
    metrics,
    power_ema,
    profiling,
    sinks,
    snapshots,
    steps_per_call,
)
from jaxdiff.training.mesh import Layout, describe

log = logging.getLogger(__name__)

DEFAULT_SINKS = {"tensorboard": sinks.tensorboard}


class LoopContext(NamedTuple):
    """What the loop over the steps of a run needs: step and batches, when to stop, and a sign of life for the watchdog.

    `size` is from the number of steps done to the number that the next call of `step` does, with `batches(size)`.
    """

    config: Experiment
    workdir: pathlib.Path
    layout: Layout
    step: Step
    size: Callable[[int], int]
    batches: Callable[[int], Any]
    stopped: Callable[[], str | None]
    alive: Callable[[bool], None]
    profile: tuple[int, int] | None
    log_to: Mapping[str, sinks.Factory]
    began: float


def train_run(
    config: Experiment,
    workdir: pathlib.Path,
    data_dir: str | None = None,
    step_timeout: float | None = None,
    profile: tuple[int, int] | None = None,
    log_to: Mapping[str, sinks.Factory] = DEFAULT_SINKS,
) -> str | None:
    """Trains the config in `workdir`, from its newest checkpoint if it has one; the signal that stopped it early, or None.

    A process ends where a step takes longer than `step_timeout` seconds; 0 is never, None is `distributed.STEP_TIMEOUT` with
    several processes and never with one. A trace of the steps from profile[0] to profile[1] goes to `workdir`/profile. Metrics
    and grids of samples go to the sinks of `log_to` as well.

    Raises:
        ConfigError: `workdir` cannot be written or holds a run of another config, or the data does not fit the config.
        NonFiniteError: the loss or a gradient is NaN or infinite; the last good checkpoint stays.
    """
    began, c = time.perf_counter(), config.data
    if config.mesh.mapping == "pmap" and distributed.is_multi_process():
        raise ConfigError("mesh.mapping pmap is for the devices of one process; of several write jit")
    sources, frozen = source_configs(config, workdir), source_params(config, workdir, build.frozen_places(config))
    if config.data.latents and config.sources.text:
        frozen["null"] = prompts.null_states(config, workdir)
    layout = build.layout(config, frozen, sources)
    with distributed.first_process_first():
        prompts.make_tokenizer(config, workdir, data_dir)
        source = _source(config, workdir, data_dir)
    storage.check_or_write_config(workdir, config)
    if distributed.is_first() and (missing := finish.missing_measures(config, data_dir)):
        log.warning("%s", missing)
    record_sources(config, workdir)
    state = initial_or_restored_state(config, workdir, layout, frozen, sources)
    start, mine = int(state.step), layout.rows(c.batch_size)
    if distributed.is_first():
        snapshots.drop_after(workdir, start)
    rows = data.batches(source, c.batch_size, seed=config.seed, flip=c.flip, start=start, rows=mine, workers=c.workers)
    size, batches, compiled = _calls(config, workdir, layout, rows)
    step = compiled(build.train_step(config, layout, sources))
    log.info("%s", describe(layout, state.params, c.batch_size))
    length = distillation.round_steps(config)
    with (
        contextlib.closing(rows),
        distributed.stop_signals() as stopped,
        distributed.step_watchdog(step_timeout, workdir) as alive,
        _last_good(workdir),
    ):
        context = LoopContext(config, workdir, layout, step, size, batches, stopped, alive, profile, log_to, began)
        for end in range((start // length + 1) * length, config.steps + 1, length):  # of the rounds that are not over
            state = _steps(context, start_next_round(config, layout, state), end, source)
            if config.objective == "progressive" and int(state.step) == end and not config.model.context_channels:
                _draw_round(config, workdir, state)
            if stopped() is not None:
                break
        return stopped() if int(state.step) < config.steps else None


def _calls(config: Experiment, workdir: pathlib.Path, layout: Layout, rows: Iterator[Any]) -> tuple[Any, Any, Any]:
    """How many steps a call does, the batches of one, and how its step is compiled: see `LoopContext`."""
    several = config.steps_per_call or int(config.mesh.mapping == "pmap" or jax.default_backend() in steps_per_call.HOSTS)
    if several == 1:
        return steps_per_call.fixed(1), lambda size: layout.shard(next(rows)), layout.compile
    divides, kept = math.gcd(*rules.between_calls(config).values()), paths.path(workdir) / "steps_per_call.json"
    size = steps_per_call.fixed(several) if several else steps_per_call.automatic(divides, config.steps, kept)
    return size, lambda size: layout.shard(data.stacked(rows, size)), layout.compile_repeated


def initial_or_restored_state(
    config: Experiment, workdir: pathlib.Path, layout: Layout, frozen: Any, sources: build.Sources
) -> TrainState:
    """The newest state of a run, or one at step 0, with what is frozen in it: in a later round, the student before it."""
    sharding = dataclasses.replace(layout.sharding, frozen={})
    state = checkpoint.restore(workdir, storage.with_sharding(build.state_shapes(config, sources), sharding))
    frozen = distributed.shard_from_host(frozen, layout.sharding.frozen)
    if state is None:
        init = jax.jit(partial(build.init, config, sources=sources), out_shardings=sharding)
        place = "init" if config.sources.init else "teacher"
        known = frozen.get(place) if place == "teacher" else source_params(config, workdir, (place,))[place]
        state = init(jax.random.key(config.seed), known)
        return dataclasses.replace(state, frozen=frozen)
    step, length = int(state.step), distillation.round_steps(config)
    log.info("going on from step %d of %s", step, workdir)
    before = step // length * length
    if config.objective == "progressive" and 0 < before < step:
        name = next(iter(config.ema))
        like = storage.with_sharding(state.ema[name], layout.sharding.frozen["teacher"])
        frozen["teacher"] = as_float32(checkpoint.restore_ema(workdir, name, like, before)[1])
    return dataclasses.replace(state, frozen=frozen)


def start_next_round(config: Experiment, layout: Layout, state: TrainState) -> TrainState:
    """The state; where a round but the first begins, with the student before it for a teacher and for initial params."""
    step = int(state.step)
    if config.objective != "progressive" or step == 0 or step % distillation.round_steps(config):
        return state
    state = jax.device_put(state, layout.sharding)  # which pmap leaves on every device
    return jax.jit(partial(build.next_round_state, config), out_shardings=layout.sharding)(state)


def _source(config: Experiment, workdir: pathlib.Path, data_dir: str | None) -> Any:
    """What the config is trained on: images, or latents."""
    c, num_classes = config.data, config.model.num_classes
    if c.latents:
        run = storage.source_directories(config, workdir)["autoencoder"]
        source: Any = latent_cache.load_latents(c, run, prompts.fingerprints(config, workdir))
    else:
        source = finish.load_images(config, workdir, c.split, data_dir)
    if config.objective not in ("vae", "autoencoder") and num_classes:
        if not source.num_classes:
            raise ConfigError(f"data set {c.name} has no labels; set model.num_classes 0, or another data.name")
        if num_classes < source.num_classes:
            raise ConfigError(f"model.num_classes must be at least {source.num_classes} for the data set {c.name}")
    return source


@contextlib.contextmanager
def _last_good(workdir: pathlib.Path) -> Iterator[None]:
    """Adds to a NonFiniteError which checkpoint is the last good one."""
    try:
        yield
    except NonFiniteError as error:
        saved = checkpoint.steps(workdir)
        good = f"the last good checkpoint is step {saved[-1]} in {workdir}" if saved else f"{workdir} has no checkpoint yet"
        raise NonFiniteError(f"{error}; {good}") from error


def _steps(context: LoopContext, state: TrainState, end: int, source: Any) -> TrainState:
    """The state after the steps up to `end`, with progress bar, metrics, checkpoints and sample grids."""
    config, workdir = context.config, context.workdir
    first, left = int(state.step), state
    pending: dict[int, Mapping[str, Array]] = {}
    rate = profiling.steps_per_second()
    bar = progress.bar(config.steps, "training", "step", patience=0, initial=first, leave=True)
    keep_every = distillation.round_steps(config) if config.objective == "progressive" else None
    with (
        metrics.writer(workdir, first, context.log_to, to_dict(config)) as (write, show, flush),
        checkpoint.manager(workdir, config.keep, keep_every) as to,
        profiling.trace_steps(context.profile, paths.path(workdir) / "profile") as (before, after),
        bar as shown,
    ):
        generate = image_sampler(config, workdir=workdir, training=True) if config.sampling.every else None
        state, key, previous = context.layout.enter(state), jax.random.key(config.seed + 1), None
        number, size, ends = first, context.size(first), False
        while not ends:
            number, done = number + size, size
            before(number - size + 1, number)
            state, values = context.step(state, context.batches(size), key)
            jax.block_until_ready(previous)  # at most two calls are in flight
            pending[number] = previous = values
            after(number, values)
            checkpoint.check(to)
            if number == first + size:
                profiling.log_first_step(values, context.began)
            shown.update(size)
            ends = number >= end or context.stopped() is not None
            saves = ends or number % config.checkpoint_every == 0
            draws = bool(config.sampling.every) and number % config.sampling.every == 0 and not ends
            size = context.size(number)
            context.alive(saves or draws or size != done)  # another size is compiled
            if saves or number % config.log_every == 0:
                mean = mean_metrics(pending)
                shown.set_postfix(loss=f"{mean['loss']:.4f}")
                write(number, mean | rate(number))
                pending.clear()
            if saves:
                left = context.layout.leave(state)
                if config.objective == "autoencoder" and number >= config.steps:
                    left = finish.measure_latents(config, source, left)
                levels = vars(build.student_levels(config, number)) if uses_discrete_levels(config) else None
                flush()
                _snapshot(config, workdir, number, left)
                checkpoint.save(to, left, to_dict(config), levels)
            if draws:
                name = f"step_{number:07d}.png"
                _draw_grid(config, workdir, context.layout.leave(state), generate, name, partial(show, number))
    return left


def _snapshot(config: Experiment, workdir: pathlib.Path, number: int, state: TrainState) -> None:
    """Writes a snapshot of the power-function averages where one is due, also at a run's last step."""
    if config.power_ema and (number >= config.steps or number % (config.snapshot_every or config.checkpoint_every) == 0):
        names = map(power_ema.name_of, config.power_ema)
        snapshots.write(workdir, number, {name: state.ema[name] for name in names})


def _draw_round(config: Experiment, workdir: pathlib.Path, state: TrainState) -> None:
    """Draws samples of the progressive student that is done with this state."""
    steps = config.distillation.steps // 2 ** (int(state.step) // distillation.round_steps(config))
    config = dataclasses.replace(config, sampling=dataclasses.replace(config.sampling, steps=steps, sampler="ddim"))
    _draw_grid(config, workdir, state, image_sampler(config, workdir=workdir), f"steps_{steps}.png")


def _draw_grid(config: Experiment, workdir: pathlib.Path, state: TrainState, generate: Any, name: str, show: Any = None) -> None:
    """Writes and shows samples of a state, which all processes draw, on the first."""
    params = distributed.replicate_locally(as_float32(state.ema[next(iter(config.ema))]))
    columns = min(config.model.num_classes, 10) or 10
    labels, shown = cycle_labels(range(columns), config.sampling.num), config.sampling.prompts
    given = prompts.prompted(config, workdir, np.resize(shown, len(labels)).tolist()) if shown else {}
    images = generate(params, labels, config.seed, given)
    if distributed.is_first():
        pictures.save_grid(paths.path(workdir) / "samples" / name, images, columns)
        if show:
            show(pictures.grid(images, columns))
