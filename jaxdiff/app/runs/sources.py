"""The runs that a run starts from (an autoencoder, a teacher, a cascade's base, a classifier), read and checked."""

from __future__ import annotations

import json
import logging
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxdiff.app import build
from jaxdiff.app.config import Experiment
from jaxdiff.app.runs.storage import fingerprint, read_config, read_params, source_directories
from jaxdiff.io import files
from jaxdiff.io.errors import ConfigError
from jaxdiff.models import perceptual
from jaxdiff.training import checkpoint, distributed

log = logging.getLogger(__name__)

RECORD = "sources.json"  # in a run's directory: the fingerprints of what it was trained on


def sampling_sources(config: Experiment) -> tuple[str, ...]:
    """The places of the runs that sampling needs: of a teacher only the student that adapts it."""
    return ("autoencoder", "base", "classifier", *(["teacher"] if config.distillation.lora_rank else []))


class SamplingInputs(NamedTuple):
    """What sampling a run reads beside its own params: the configs and the params of other runs, by place."""

    sources: dict[str, Experiment]
    frozen: dict[str, Any]


def sampling_inputs(config: Experiment, workdir: pathlib.Path | None = None) -> SamplingInputs:
    """The runs that sampling a config, of the run in `workdir`, needs.

    Raises:
        ConfigError: as `source_configs` and `source_params`.
    """
    places = sampling_sources(config)
    return SamplingInputs(source_configs(config, workdir, places), source_params(config, workdir, places))


def source_configs(
    config: Experiment, workdir: pathlib.Path | None = None, places: tuple[str, ...] | None = None
) -> dict[str, Experiment]:
    """The configs of the runs that a config, of the run in `workdir`, starts from, and under `base.` those of its base.

    Of those `places` alone if given.

    Raises:
        ConfigError: a run is missing, of another kind than its place, or does not fit the config.
    """
    wanted = {"autoencoder": "autoencoder", "base": "diffusion", "teacher": "diffusion"}
    configs: dict[str, Experiment] = {}
    for place, directory in source_directories(config, workdir).items():
        if places is not None and place not in places:
            continue
        source = configs[place] = read_config(directory, wanted.get(place, "classifier"))
        build.check_source(place, config, source, str(directory))
        if place == "teacher":
            _check_same_latents(config, workdir, directory)
            if (saved := checkpoint.steps(directory)) and saved[-1] < source.steps:
                log.warning("the teacher %s is at step %d of %d", directory, saved[-1], source.steps)
        elif place == "base":
            configs |= {
                f"base.{name}": below for name, below in source_configs(source, directory, sampling_sources(source)).items()
            }
    return configs


def source_params(config: Experiment, workdir: pathlib.Path | None = None, places: tuple[str, ...] | None = None) -> dict[str, Any]:
    """The params of the runs that a config starts from, by place; of those `places` alone if given.

    Raises:
        ConfigError: the run in `workdir` was trained on another autoencoder than is there now.
    """
    where = source_directories(config, workdir)
    if workdir is not None:
        _check(pathlib.Path(workdir), where, places)
    params: dict[str, Any] = {}
    for place, directory in where.items():
        if places is not None and place not in places:
            continue
        source = read_config(directory)
        step, params[place] = read_params(source, directory)
        if place == "autoencoder":
            check_measured(source, params[place], step, directory)
        if place == "base":
            params |= {f"base.{name}": value for name, value in source_params(source, directory, sampling_sources(source)).items()}
    if config.sources.features.endswith(".npz") and (places is None or "features" in places):
        params["features"] = perceptual.load(config.sources.features)
    return params


def record_sources(config: Experiment, workdir: pathlib.Path) -> None:
    """Writes down the fingerprints of the runs that a run is trained on, or compares them with those that are there.

    Raises:
        ConfigError: they differ.
    """
    where, path = source_directories(config, workdir), pathlib.Path(workdir) / RECORD
    _check(pathlib.Path(workdir), where)
    trained_on = [place for place in build.FROZEN if place in where]
    if trained_on and not path.exists() and checkpoint.steps(workdir):
        place = trained_on[0]
        raise ConfigError(f"{workdir} was begun without sources.{place}; leave it out, or choose another --workdir")
    if trained_on and distributed.is_first():
        prints = {place: {"run": str(where[place]), "fingerprint": fingerprint(where[place])} for place in trained_on}
        files.write_text(path, json.dumps(prints, indent=2) + "\n")


def check_measured(config: Experiment, params: Any, step: int, workdir: pathlib.Path) -> None:
    """Whether an autoencoder's latents have been measured, as they are at the end of its training.

    Raises:
        ConfigError: its `params` are not of the last step, or hold the mean 0 and the standard deviation 1 that they began with.
    """
    fresh = np.all(np.asarray(params["latent"]["shift"]) == 0) and np.all(np.asarray(params["latent"]["scale"]) == 1)
    if step < config.steps or fresh:
        how = "train it on, by its recipe with more --steps" if fresh else "train it on"
        raise ConfigError(
            f"the autoencoder {workdir} is at step {step} of {config.steps}; its latents are measured at the end: {how}"
        )


def _check_same_latents(config: Experiment, workdir: pathlib.Path | None, teacher: pathlib.Path) -> None:
    """Whether the teacher was trained in the latents of the student's autoencoder."""
    known, mine = _record(teacher).get("autoencoder"), source_directories(config, workdir).get("autoencoder")
    if known and mine and known["fingerprint"] != fingerprint(mine):
        raise ConfigError(f"sources.autoencoder {mine} is not that of the teacher {teacher}, {known['run']}; name that one")


def _record(workdir: pathlib.Path) -> dict[str, Any]:
    path = workdir / RECORD
    try:
        recorded = json.loads(path.read_text()) if path.is_file() else {}
        return {place: {name: str(each[name]) for name in ("run", "fingerprint")} for place, each in recorded.items()}
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        how = "bring it back, or remove it and sample without knowing that the sources are the same"
        raise ConfigError(f"{path} no longer says what {workdir} was trained on: {how}") from error


def _check(workdir: pathlib.Path, where: Mapping[str, pathlib.Path], places: tuple[str, ...] | None = None) -> None:
    for place, before in _record(workdir).items():
        if places is not None and place not in places:
            continue
        now = fingerprint(where[place]) if place in where else "none"
        if now != before["fingerprint"]:
            raise ConfigError(
                f"{workdir} was trained with the {place} {before['run']} as it was then ({before['fingerprint']}), "
                f"{where.get(place, 'nothing')} is another ({now}); name that one (--sources.{place}) or choose another --workdir"
            )
