"""A run: a directory where a config is trained, resumed and sampled.

It holds config.json, checkpoints/, metrics.jsonl, tensorboard/, samples/, sources.json where it was trained on other runs,
and at the end what `reports` writes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import logging
import math
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array

from jaxdiff.app import build
from jaxdiff.app.config import Experiment, differences, round_steps, to_dict, uses_discrete_levels
from jaxdiff.app.runs import rounds, storage
from jaxdiff.app.runs.sources import SamplingInputs, record_sources, sampling_inputs, source_configs, source_params
from jaxdiff.io import files, pictures, progress
from jaxdiff.io.errors import ConfigError, NonFiniteError
from jaxdiff.process import Level
from jaxdiff.training import Step, TrainState, as_float32, checkpoint, distributed, mean_metrics, metrics, profiling
from jaxdiff.training.mesh import Layout, describe

log = logging.getLogger(__name__)


def image_sampler(config: Experiment, batch_size: int = 500, workdir: pathlib.Path | None = None) -> Callable[..., np.ndarray]:
    """A function `(params, labels [N], seed, context) -> images [N, H, W, C]` that compiles once and works in batches of one size.

    The context, of a config that has any, is vectors `[N, T, D]`, or `[T, D]` for all.

    Of a diffusion run, or of a VAE, which has no labels. With the run's `workdir` it walks along the levels of its checkpoint,
    and the autoencoder must be the one that the run was trained with.

    Raises:
        ConfigError: a run that sampling needs (a classifier, an autoencoder, a cascade's base) is missing or does not fit.
    """
    trained = None if workdir is None else storage.read_levels(config, workdir)
    return _batched_sampler(config, batch_size, sampling_inputs(config, workdir), trained)


def _batched_sampler(
    config: Experiment, batch_size: int, inputs: SamplingInputs, trained: Level | None = None
) -> Callable[..., np.ndarray]:
    """What `image_sampler` returns; along the config's finest levels unless those of a checkpoint are given."""
    sources, frozen = inputs
    compiled = jax.jit(build.image_generator(config, sources, trained))

    def generate(params: Any, labels: np.ndarray, seed: int, context: np.ndarray | None = None) -> np.ndarray:
        given = {"label": np.asarray(labels, np.int32)} | _contexts(config, context, len(labels))
        size = min(batch_size, len(labels))
        key = jax.random.key(seed)
        parts = []
        for start in progress.track(range(0, len(labels), size), "sampling", "batch"):
            part = {name: np.resize(each[start : start + size], (size, *each.shape[1:])) for name, each in given.items()}
            parts.append(np.asarray(compiled(params, jax.random.fold_in(key, start), part, frozen)))
        images = np.concatenate(parts)[: len(labels)]
        if not np.isfinite(images).all():
            raise NonFiniteError("the samples hold NaN or infinite values; try more --steps or another --sampler")
        return images

    return generate


def _contexts(config: Experiment, context: np.ndarray | None, num: int) -> dict[str, np.ndarray]:
    wanted = config.model.context_channels
    if not wanted and context is None:
        return {}
    shape = () if context is None else context.shape
    if not wanted or shape[-1:] != (wanted,) or len(shape) not in (2, 3) or (len(shape) == 3 and shape[0] != num):
        wants = f"vectors [T, {wanted}] or [{num}, T, {wanted}]" if wanted else "none: model.context_channels is 0"
        raise ConfigError(f"context: got {list(shape) or 'none'}, this run takes {wants}")
    assert context is not None
    return {"context": np.broadcast_to(context, (num, *shape[-2:])).astype(np.float32)}


def cycle_labels(classes: Sequence[int], num: int) -> np.ndarray:
    """The classes in turn, labels `[num]`: a grid with as many columns shows one label a column."""
    return np.resize(np.array(classes, np.int32), num)


class LoopContext(NamedTuple):
    """By what the steps of a run are done: its step and batches, and functions that say when to stop, and that it is alive."""

    config: Experiment
    workdir: pathlib.Path
    layout: Layout
    step: Step
    batches: Iterator[Any]
    stopped: Callable[[], str | None]
    alive: Callable[[bool], None]
    profile: tuple[int, int] | None
    began: float


def train_run(
    config: Experiment,
    workdir: pathlib.Path,
    data_dir: str | None = None,
    step_timeout: float | None = None,
    profile: tuple[int, int] | None = None,
) -> str | None:
    """Trains the config in `workdir`, from its newest checkpoint if it has one; the signal that stopped it early, or None.

    A process ends where a step takes longer than `step_timeout` seconds; 0 is never, None is `processes.STEP_TIMEOUT` of one
    of several processes and never of one alone. A trace of the steps from profile[0] to profile[1] goes to `workdir`/profile.

    Raises:
        ConfigError: `workdir` cannot be written or holds a run of another config, or the data does not fit the config.
        NonFiniteError: the loss or a gradient is no number; the last good checkpoint stays.
    """
    from jaxdiff import data

    began, c = time.perf_counter(), config.data
    if config.mesh.mapping == "pmap" and distributed.is_multi_process():
        raise ConfigError("mesh.mapping pmap is for the devices of one process; of several write jit")
    places = tuple(place for place in build.FROZEN if not (c.latents and place == "autoencoder"))
    sources, frozen = source_configs(config, workdir), source_params(config, workdir, places)
    layout = build.layout(config, frozen, sources)
    with distributed.first_process_first():
        source = _source(config, workdir, data_dir)
    check_or_write_config(workdir, config)
    record_sources(config, workdir)
    state = rounds.initial_or_restored_state(config, workdir, layout, frozen, sources)
    start, mine = int(state.step), layout.rows(c.batch_size)
    aligned = math.gcd(config.steps_per_call, start)  # of a run that was begun with another number of steps a call
    config = dataclasses.replace(config, steps_per_call=aligned)
    rows = _grouped(data.batches(source, c.batch_size, seed=config.seed, flip=c.flip, start=start, rows=mine), aligned)
    step = layout.compile(build.train_step(config, layout, sources), aligned)
    log.info("%s", describe(layout, state.params, c.batch_size))
    with distributed.stop_signals() as stopped, distributed.step_watchdog(step_timeout, workdir) as alive, _last_good(workdir):
        means = LoopContext(config, workdir, layout, step, map(layout.shard, rows), stopped, alive, profile, began)
        for end in rounds.round_ends(config, start):
            state = _steps(means, rounds.start_next_round(config, layout, state), end, source)
            if config.objective == "progressive" and int(state.step) == end and not config.model.context_channels:
                _draw_round(config, workdir, end)
            if stopped() is not None:
                break
        return stopped() if int(state.step) < config.steps else None


def _source(config: Experiment, workdir: pathlib.Path, data_dir: str | None) -> Any:
    """What the config is trained on: images, or latents."""
    from jaxdiff import data
    from jaxdiff.app.runs import latent_cache

    c = config.data
    source: Any = (
        latent_cache.load_latents(c, storage.source_directories(config, workdir)["autoencoder"])
        if c.latents
        else data.load_images(c, c.split, data_dir)
    )
    if config.model.context_channels and not c.latents:
        source = data.with_context(source, c, c.split, config.model.context_channels, data_dir)
    labelled = config.objective not in ("vae", "autoencoder") and config.model.num_classes > 0
    if labelled and source.num_classes > config.model.num_classes:
        raise ConfigError(f"model.num_classes must be at least {source.num_classes} for the data set {c.name}")
    return source


def _grouped(rows: Iterator[dict[str, np.ndarray]], size: int) -> Iterator[dict[str, np.ndarray]]:
    """The batches, or of several steps together their arrays before each other, `[N, b, ...]`."""
    while size > 1:
        parts = list(itertools.islice(rows, size))
        yield {name: np.stack([part[name] for part in parts]) for name in parts[0]}
    yield from rows


@contextlib.contextmanager
def _last_good(workdir: pathlib.Path) -> Iterator[None]:
    """Says with a NonFiniteError which checkpoint is good."""
    try:
        yield
    except NonFiniteError as error:
        saved = checkpoint.steps(workdir)
        kept = f"the last good checkpoint is step {saved[-1]} in {workdir}" if saved else f"{workdir} has no checkpoint yet"
        raise NonFiniteError(f"{error}; {kept}") from error


def _steps(means: LoopContext, state: TrainState, end: int, source: Any) -> TrainState:
    """The state after the steps up to `end`, with progress bar, metrics, checkpoints and sample grids."""
    config, workdir = means.config, means.workdir
    first, left = int(state.step), state
    numbers = range(first + config.steps_per_call, end + 1, config.steps_per_call)
    pending: dict[int, Mapping[str, Array]] = {}
    rate = profiling.steps_per_second()
    bar = progress.bar(config.steps, "training", "step", patience=0, initial=first, leave=True)
    kept = round_steps(config) if config.objective == "progressive" else None
    with (
        metrics.writer(workdir, first) as (write, show),
        checkpoint.manager(workdir, config.keep, kept) as to,
        profiling.trace_steps(means.profile, pathlib.Path(workdir) / "profile") as (before, after),
        bar as shown,
    ):
        draw = _sample_grids(config, workdir, show) if config.sampling.every else None
        state, key, previous = means.layout.enter(state), jax.random.key(config.seed + 1), None
        for number in numbers:
            before(number - config.steps_per_call + 1, number)
            state, values = means.step(state, next(means.batches), key)
            jax.block_until_ready(previous)  # at most two steps are in flight
            pending[number] = previous = values
            after(number, values)
            if number == numbers[0]:
                profiling.log_first_step(values, means.began)
            shown.update(config.steps_per_call)
            ends = number >= end or means.stopped() is not None
            saves = ends or number % config.checkpoint_every == 0
            draws = bool(config.sampling.every) and number % config.sampling.every == 0 and not ends
            means.alive(saves or draws)
            if saves or number % config.log_every == 0:
                mean = mean_metrics(pending)
                shown.set_postfix(loss=f"{mean['loss']:.4f}")
                write(number, mean | rate(number))
                pending.clear()
            if saves:
                left = finalize_latents(config, means.layout.leave(state), source)
                checkpoint.save(
                    to, left, to_dict(config), vars(build.student_levels(config, number)) if uses_discrete_levels(config) else None
                )
            if draw and draws:
                draw(means.layout.leave(state), number)
            if ends:
                break
    return left


def finalize_latents(config: Experiment, state: TrainState, source: Any) -> TrainState:
    """The state to be saved: at the end of an autoencoder's training with its latents measured."""
    from jaxdiff.app.runs import reconstruction

    ends = config.objective == "autoencoder" and int(state.step) >= config.steps
    return reconstruction.measure_latents(config, source, state) if ends else state


def sample_file_name(config: Experiment, seed: int) -> str:
    """A file name that says how samples were made, such as `ddim_50_guidance_2_seed_0.png`."""
    c = config.sampling
    spacing = f"_{c.spacing}" if c.spacing != "time" else ""
    eta = f"_eta_{c.eta:g}" if c.eta else ""
    classifier = f"_by_{pathlib.Path(c.classifier).name}_{c.classifier_scale:g}" if c.classifier else ""
    return f"{c.sampler}_{c.steps}{spacing}{eta}_guidance_{c.guidance:g}{classifier}_seed_{seed}.png"


def _draw_round(config: Experiment, workdir: pathlib.Path, end: int) -> None:
    """Draws samples of the progressive student that is done at a training step."""
    if distributed.is_first():
        steps = config.distillation.steps // 2 ** (end // round_steps(config))
        sampling = dataclasses.replace(config.sampling, steps=steps, sampler="ddim")
        config = dataclasses.replace(config, sampling=sampling)
        _, params = storage.read_params(config, workdir)
        columns = min(config.model.num_classes, 10) or 10
        images = image_sampler(config, workdir=workdir)(params, cycle_labels(range(columns), config.sampling.num), config.seed)
        pictures.save_grid(pathlib.Path(workdir) / "samples" / f"steps_{steps}.png", images, columns)
    distributed.broadcast_from_first(None)


def _sample_grids(
    config: Experiment, workdir: pathlib.Path, show: Callable[[int, np.ndarray], None]
) -> Callable[[TrainState, int], None]:
    """A function that draws a grid of samples from a state at a step, writes it and shows it: on the first process.

    All must call it, since the state may be sharded over them.
    """
    generate = _batched_sampler(config, 500, sampling_inputs(config, workdir)) if distributed.is_first() else None
    columns = min(config.model.num_classes, 10) or 10
    labels = cycle_labels(range(columns), config.sampling.num)

    def draw(state: TrainState, step: int) -> None:
        params = distributed.replicate_locally(as_float32(state.ema[next(iter(config.ema))]))
        if generate:
            images = generate(params, labels, config.seed)
            pictures.save_grid(pathlib.Path(workdir) / "samples" / f"step_{step:07d}.png", images, columns)
            show(step, pictures.grid(images, columns))

    return draw


def check_or_write_config(workdir: pathlib.Path, config: Experiment) -> None:
    """Writes the config into a new run's directory, or compares it with the one that is there."""
    path = pathlib.Path(workdir) / "config.json"
    values = to_dict(config)
    if path.exists():
        found = differences(to_dict(storage.read_config(workdir)), values)
        if found:
            raise ConfigError(f"{workdir} was made by another config: {'; '.join(found[:3])}; choose another --workdir")
    if distributed.is_first():
        try:
            files.write_text(path, json.dumps(values, indent=2) + "\n")
            files.write_text(path.parent / "checkpoints" / "probe", "")
        except OSError as error:
            raise ConfigError(f"{workdir} cannot be written ({error.strerror}); choose another --workdir") from error
        (path.parent / "checkpoints" / "probe").unlink()
