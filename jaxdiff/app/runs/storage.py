"""A run's directory: its config, the params and levels of its checkpoints, and where the runs are that it starts from."""

import json
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.app import build
from jaxdiff.app.config import STUDENTS, Experiment, differences, distillation, read, to_dict, with_article
from jaxdiff.io import count, files, paths
from jaxdiff.io.errors import ConfigError
from jaxdiff.process import Level
from jaxdiff.training import as_float32, checkpoint, distributed


def read_config(workdir: pathlib.Path, objective: str = "") -> Experiment:
    """The config of a run, which must have trained that objective if one is given; a student counts as diffusion."""
    config = read(workdir)
    if objective not in ("", "diffusion" if config.objective in STUDENTS else config.objective):
        hint = " (--classifier takes the classifier)" if "classifier" in (objective, config.objective) else ""
        raise ConfigError(f"{workdir} is {with_article(config.objective)} run, here {with_article(objective)} run is wanted{hint}")
    return config


def check_or_write_config(workdir: pathlib.Path, config: Experiment) -> None:
    """Writes the config into a run's directory, where the one that is there must be the same."""
    check_config(workdir, config)
    if distributed.is_first():
        with files.writing_to(workdir, "--workdir"):
            write_config(workdir, config)
            files.probe_directory(paths.path(workdir) / "checkpoints")


def check_config(workdir: pathlib.Path, config: Experiment) -> None:
    """Raises a ConfigError where a run's directory holds the run of another config."""
    there = (paths.path(workdir) / "config.json").exists()
    if there and (differs := differences(to_dict(read_config(workdir)), to_dict(config))):
        raise ConfigError(f"{workdir} was made by another config: {'; '.join(differs[:3])}; choose another --workdir")


def write_config(workdir: pathlib.Path, config: Experiment) -> None:
    """Writes the config of a run, whatever it was before."""
    files.write_text(paths.path(workdir) / "config.json", json.dumps(to_dict(config), indent=2) + "\n")


def read_params(config: Experiment, workdir: pathlib.Path, ema: str | None = None) -> tuple[int, Any]:
    """Step and params of an EMA of a run, the first unless given; of the progressive student that config.sampling asks for."""
    name, places = ema_name(config, workdir, ema), source_directories(config, workdir, ("autoencoder",))
    shapes = build.state_shapes(config, {place: read_config(directory, place) for place, directory in places.items()})
    like = with_sharding(shapes.ema[name], jax.sharding.SingleDeviceSharding(jax.local_devices()[0]))
    step, params = checkpoint.restore_ema(workdir, name, like, _end_of_round(config, workdir))
    return step, as_float32(params)


def ema_name(config: Experiment, workdir: pathlib.Path, ema: str | None) -> str:
    """The name of an EMA of a run, which must have it; of the first unless given."""
    name = next(iter(config.ema)) if ema is None else ema
    if name not in config.ema:
        raise ConfigError(f"{workdir} has no ema {name!r}; write one of {', '.join(config.ema)}")
    return name


def read_levels(config: Experiment, workdir: pathlib.Path) -> Level | None:
    """The levels `[N + 1]` on which the student of `read_params` was trained, and must be sampled; None where it has no list."""
    if not distillation.uses_discrete_levels(config):
        return None
    step, saved = checkpoint.read_levels(workdir, _end_of_round(config, workdir))
    trained = Level(*(jnp.asarray(saved[name], jnp.float32) for name in ("alpha", "sigma")))
    mine = build.student_levels(config, step)
    num = trained.sigma.size - 1
    same = mine.sigma.shape == trained.sigma.shape and np.allclose(mine.sigma, trained.sigma, atol=1e-5)
    if not same or num % config.sampling.steps:
        logsnr = np.asarray(trained[:-1].logsnr)
        known = f"{count(num, 'step')} of levels from logsnr {logsnr[0]:.2f} to {logsnr[-1]:.2f}"
        how = f"sample it on these, by the config that it was trained with and --steps that divide {num}"
        raise ConfigError(f"{workdir} was at step {step} trained on {known}; {how}")
    return trained


def fingerprint(workdir: pathlib.Path) -> str:
    """Eight hexadecimal digits that identify the params of a run's first EMA."""
    return checkpoint.fingerprint(workdir, next(iter(read_config(workdir).ema)))


def source_names(config: Experiment) -> dict[str, str]:
    """What a config starts from and is guided by, by place: the names of runs, recipes or files of weights."""
    names = {**vars(config.sources), "classifier": config.sampling.classifier}
    return {place: name for place, name in names.items() if name}


def source_directories(config: Experiment, workdir: pathlib.Path | None, places: Sequence[str] = ()) -> dict[str, pathlib.Path]:
    """The directories of the runs that a config names, by place, only of those `places` if given; a file of weights is none.

    One that is not where it was is looked for beside the config's own run, `workdir`, and inside it.
    """
    named = {place: name for place, name in source_names(config).items() if not name.endswith(".npz")}
    found = {place: paths.path(name) for place, name in named.items() if not places or place in places}
    if workdir is None:
        return found
    folders = paths.path(workdir).parent, paths.path(workdir)
    return {place: next((each for each in _places(path, folders) if each.exists()), path) for place, path in found.items()}


def _places(path: pathlib.Path, folders: Sequence[pathlib.Path]) -> list[pathlib.Path]:
    return [path, *(folder / path.name for folder in folders)]


def with_sharding(shapes: Any, sharding: Any) -> Any:
    """The shapes with a sharding each, or one for all."""
    each = jax.tree.map(lambda _: sharding, shapes) if isinstance(sharding, jax.sharding.Sharding) else sharding
    return jax.tree.map(lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where), shapes, each)


def _end_of_round(config: Experiment, workdir: pathlib.Path) -> int | None:
    """The last step of the progressive student that the config's sampling asks for; None of other runs: their newest."""
    if config.objective != "progressive":
        return None
    length, saved = distillation.round_steps(config), checkpoint.steps(workdir)
    if distillation.num_halvings(config) * length not in saved:
        known = [num for number, num in enumerate(distillation.sampling_steps(config), 1) if number * length in saved]
        students = f"no student of {count(config.sampling.steps, 'step')} yet, but of {', '.join(map(str, known)) or 'none'}"
        raise ConfigError(f"{workdir} has {students}; train it on, or choose --steps")
    return distillation.num_halvings(config) * length
