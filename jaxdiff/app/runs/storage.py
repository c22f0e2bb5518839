"""A run's directory: its config, the params and levels of its checkpoints, and where the runs are that it starts from."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.app import build
from jaxdiff.app.config import (
    STUDENTS,
    Experiment,
    from_dict,
    num_halvings,
    round_steps,
    sampling_steps,
    uses_discrete_levels,
    with_article,
)
from jaxdiff.io.errors import ConfigError
from jaxdiff.process import Level
from jaxdiff.training import as_float32, checkpoint


def read_config(workdir: pathlib.Path, objective: str | None = None) -> Experiment:
    """The config that made a run, which must have trained that objective if one is given; a student counts as diffusion.

    Raises:
        ConfigError: no run in `workdir`, or one of another objective.
    """
    path = pathlib.Path(workdir) / "config.json"
    if not path.is_file():
        raise ConfigError(f"no run in {workdir}; train one: jaxdiff train CONFIG --workdir {workdir}")
    try:
        values = json.loads(path.read_text())
    except ValueError as error:
        raise ConfigError(f"{path} is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path} must hold a config")
    config = from_dict(values, where=str(path))
    if objective not in (None, "diffusion" if config.objective in STUDENTS else config.objective):
        hint = " (--classifier takes the classifier)" if "classifier" in (objective, config.objective) else ""
        raise ConfigError(
            f"{workdir} is {with_article(config.objective)} run, here {with_article(str(objective))} run is wanted{hint}"
        )
    return config


def read_params(config: Experiment, workdir: pathlib.Path, ema: str | None = None) -> tuple[int, Any]:
    """Step and params of the named EMA (the first unless given) of a run; of the progressive student that config.sampling asks for.

    Raises:
        ConfigError: the run has no such EMA, or no such student yet.
    """
    name = ema_name(config, workdir, ema)
    single = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    directories = source_directories(config, workdir)
    sources = {place: read_config(directories[place], place) for place in ("autoencoder",) if place in directories}
    like = with_sharding(build.state_shapes(config, sources).ema[name], single)
    step, ema = checkpoint.restore_ema(workdir, name, like, _end_of_round(config, workdir))
    return step, as_float32(ema)


def ema_name(config: Experiment, workdir: pathlib.Path, ema: str | None) -> str:
    """The name of the EMA of a run, the first unless given.

    Raises:
        ConfigError: the run has no such EMA.
    """
    name = next(iter(config.ema)) if ema is None else ema
    if name not in config.ema:
        raise ConfigError(f"{workdir} has no ema {name!r}; write one of {', '.join(config.ema)}")
    return name


def read_levels(config: Experiment, workdir: pathlib.Path) -> Level | None:
    """The levels `[N + 1]` that the student whose params `read_params` reads was trained on; None where it has no list.

    Raises:
        ConfigError: the config's levels are none of them.
    """
    if not uses_discrete_levels(config):
        return None
    step, saved = checkpoint.read_levels(workdir, _end_of_round(config, workdir))
    trained = Level(*(jnp.asarray(saved[name], jnp.float32) for name in ("alpha", "sigma")))
    mine = build.student_levels(config, step)
    num = trained.sigma.size - 1
    same = mine.sigma.shape == trained.sigma.shape and np.allclose(mine.sigma, trained.sigma, atol=1e-5)
    if not same or num % config.sampling.steps:
        logsnr = np.asarray(trained[:-1].logsnr)
        raise ConfigError(
            f"{workdir} was at step {step} trained on {num} steps of levels from logsnr {logsnr[0]:.2f} to {logsnr[-1]:.2f}; "
            f"sample it on these, by the config that it was trained with and --steps that divide {num}"
        )
    return trained


def fingerprint(workdir: pathlib.Path) -> str:
    """What tells a run's averaged params from all others: eight hexadecimal digits."""
    return checkpoint.fingerprint(workdir, next(iter(read_config(workdir).ema)))


def source_names(config: Experiment) -> dict[str, str]:
    """What a config starts from and is guided by, as it names them, by place: runs, recipes or files of weights."""
    c = config.sources
    names = {"autoencoder": c.autoencoder, "base": c.base, "features": c.features, "teacher": c.teacher}
    names["classifier"] = config.sampling.classifier
    return {place: name for place, name in names.items() if name}


def source_directories(config: Experiment, workdir: pathlib.Path | None = None) -> dict[str, pathlib.Path]:
    """The directories of the runs that a config names, by place; a file of weights is none.

    One that is not where it was is looked for beside the config's own run, `workdir`.
    """
    named = {place: pathlib.Path(name) for place, name in source_names(config).items() if not name.endswith(".npz")}
    if workdir is None:
        return named
    beside = {place: pathlib.Path(workdir).parent / path.name for place, path in named.items()}
    return {p: beside[p] if not path.exists() and beside[p].exists() else path for p, path in named.items()}


def with_sharding(shapes: Any, sharding: Any) -> Any:
    """The shapes with a sharding each, or one for all."""

    def place(leaf: Any, where: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)

    if isinstance(sharding, jax.sharding.Sharding):
        return jax.tree.map(lambda leaf: place(leaf, sharding), shapes)
    return jax.tree.map(place, shapes, sharding)


def _end_of_round(config: Experiment, workdir: pathlib.Path) -> int | None:
    """The step at which the progressive student is done that the config's sampling asks for; None: the newest of any run."""
    if config.objective != "progressive":
        return None
    length, saved = round_steps(config), checkpoint.steps(workdir)
    if num_halvings(config) * length not in saved:
        known = [num for number, num in enumerate(sampling_steps(config), 1) if number * length in saved]
        raise ConfigError(
            f"{workdir} has no student of {config.sampling.steps} steps yet, but of {', '.join(map(str, known)) or 'none'}; "
            "train it on, or choose --steps"
        )
    return num_halvings(config) * length
