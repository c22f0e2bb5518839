"""Runs whose params are an average of another run's params, reconstructed from its snapshots."""

import dataclasses
import json
import pathlib

import jax.numpy as jnp
import numpy as np

from jaxdiff.app import build
from jaxdiff.app.config import Experiment, to_dict, uses_discrete_levels
from jaxdiff.app.runs import prompts, sources, storage
from jaxdiff.io import count, files, paths, progress
from jaxdiff.io.errors import ConfigError
from jaxdiff.training import TrainState, checkpoint, power_ema, snapshots
from jaxdiff.training.power_ema import Profile

MOST = 0.05  # distance, of the weights over steps that snapshots make, from those that are wanted
COPIED = (prompts.TOKENIZER, sources.RECORD)


def reconstruct(run: pathlib.Path, length: float, workdir: pathlib.Path) -> str:
    """Makes a run whose params are the average of that length over the steps of `run` up to its last snapshot; says what was made.

    Raises:
        ConfigError: `run` has no snapshots, its snapshots cannot make that length, or `workdir` is there already.
    """
    run, workdir = paths.path(run), paths.path(workdir)
    config = storage.read_config(run)
    weights, distance, step = _weights(run, config, length)
    if workdir.exists():
        raise ConfigError(f"{workdir} exists already and stays as it is; remove it, or choose another --workdir")
    places = storage.source_directories(config, run, ("autoencoder",))
    like = build.state_shapes(config, {place: storage.read_config(folder, place) for place, folder in places.items()}).params
    with progress.waiting("adding up snapshots"):
        params = snapshots.combined(run, weights, like)
    averaged = _config(config, run)
    with files.writing_to(workdir, "--workdir"):
        storage.write_config(workdir, averaged)
    for name in COPIED:
        if (run / name).is_file():
            files.write_text(workdir / name, (run / name).read_text())
    record = {"run": str(run), "length": length, "step": step, "distance": distance}
    record["weights"] = [[step, name, weight] for (step, name), weight in weights.items()]
    files.write_text(workdir / "average.json", json.dumps(record, indent=2) + "\n")
    state = TrainState(jnp.asarray(step, jnp.int32), {}, {next(iter(averaged.ema)): params}, ())
    levels = vars(build.student_levels(config, step)) if uses_discrete_levels(config) else None
    with checkpoint.manager(workdir) as to:
        checkpoint.save(to, state, to_dict(averaged), levels)
    made = f"the average of length {length:g} at step {step} of {run}, from {count(len(weights), 'average')} in its snapshots"
    return f"{workdir}: {made}, its weights over steps within {distance:.2g} of those wanted"


def _weights(run: pathlib.Path, config: Experiment, length: float) -> tuple[dict[tuple[int, str], float], float, int]:
    """The weight of each average in each snapshot of a run, how far they are from those wanted, and the last step."""
    if not config.power_ema:
        raise ConfigError(f"{run} was trained without snapshots; train it anew with --power-ema 0.05 0.1")
    saved = snapshots.steps(run)
    if not saved:
        every = config.snapshot_every or config.checkpoint_every
        raise ConfigError(f"{run} has no snapshots yet; train it on, they come every {count(every, 'step')} and at the end")
    names = [(step, power_ema.name_of(each)) for step in saved for each in config.power_ema]
    known = [Profile(step, power_ema.gamma_of(each)) for step in saved for each in config.power_ema]

    def fit(length: float) -> tuple[np.ndarray, float]:
        return power_ema.solve(Profile(saved[-1], power_ema.gamma_of(length)), known)

    weights, distance = fit(length)
    if distance > MOST:
        within = [each for each in np.arange(1, 57) / 200 if fit(each)[1] <= MOST]
        how = f"write one between {within[0]:g} and {within[-1]:g}" if within else "train it with more snapshots"
        raise ConfigError(f"--length {length:g} cannot be made of the {count(len(saved), 'snapshot')} of {run}; {how}")
    return dict(zip(names, weights.tolist(), strict=True)), distance, saved[-1]


def _config(config: Experiment, run: pathlib.Path) -> Experiment:
    """The config of a run's average, which has one EMA alone, and names the run's sources where they are now."""
    first = next(iter(config.ema))
    found = {place: str(folder) for place, folder in storage.source_directories(config, run).items()}
    names = {place: name for place, name in found.items() if place in vars(config.sources)}
    return dataclasses.replace(
        config,
        ema={first: config.ema[first]},
        power_ema=(),
        snapshot_every=0,
        distillation=dataclasses.replace(config.distillation, target_ema=""),
        sources=dataclasses.replace(config.sources, **names),
        sampling=dataclasses.replace(config.sampling, classifier=found.get("classifier", "")),
    )
