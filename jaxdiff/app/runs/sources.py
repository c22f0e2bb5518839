"""The runs that a run starts from (autoencoder, teacher, a cascade's base, classifiers): found, checked, read, trained in order."""

import dataclasses
import json
import logging
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxdiff.app import build
from jaxdiff.app.config import Experiment, differences, load, to_dict, validated
from jaxdiff.app.runs.storage import fingerprint, read_config, read_params, source_directories
from jaxdiff.io import files, paths
from jaxdiff.io.errors import ConfigError
from jaxdiff.models import perceptual
from jaxdiff.training import checkpoint, distributed

log = logging.getLogger(__name__)

TRAINED = {
    "autoencoder": "autoencoder",
    "text": "text",
    "text_2": "text",
    "base": "diffusion",
    "teacher": "diffusion",
    "init": "diffusion",
}  # by place: the run's objective
INHERITED = ("autoencoder", *build.TEXTS)  # places whose runs a student or a run that begins with another's params shares with it
PUBLISHED = "source.json"  # in the directory of a run of published weights: where they came from
RECORD = "sources.json"  # in a run's directory: the fingerprints of what it was trained on


class Stage(NamedTuple):
    """A recipe that another starts from, with the run where it is trained."""

    recipe: pathlib.Path
    workdir: pathlib.Path
    config: Experiment

    @property
    def command(self) -> str:
        """The command that trains it, or imports it."""
        if repository := self.config.published.repository:
            return f"jaxdiff import {repository} --workdir {self.workdir}"
        return f"jaxdiff train {self.recipe} --workdir {self.workdir}"


def resolve_sources(config: Experiment, workdir: pathlib.Path, above: tuple[str, ...] = ()) -> tuple[Experiment, list[Stage]]:
    """The config with runs in the place of the recipes that its sources name, and these stages, in the order of training.

    The run of `configs/mnist_kl.py` is `mnist_kl` beside `workdir`; `above` are the recipes that start from this one.
    """
    stages: list[Stage] = []
    config = inherited(config, workdir)
    names = dataclasses.asdict(config.sources)
    for place, name in names.items():
        if name and paths.resolved(paths.path(name)) == paths.resolved(paths.path(workdir)):
            raise ConfigError(f"--workdir {workdir} is the run of sources.{place}, and stays as it is; choose another")
        if not name.endswith(".py"):
            continue
        if name in above:
            raise ConfigError(f"sources.{place}: {name} starts from itself ({' -> '.join(above)})")
        recipe, directory = pathlib.Path(name), paths.path(workdir).parent / pathlib.Path(name).stem
        source, before = load(recipe), []
        if not source.published.repository:  # an import brings its sources
            source, before = resolve_sources(source, directory, (*above, name))
        stages += [stage for stage in (*before, Stage(recipe, directory, source)) if stage not in stages]
        names[place] = str(directory)
        if (directory / "config.json").is_file() and (differs := differences(to_dict(read_config(directory)), to_dict(source))):
            log.warning("%s is used as it is, though it differs from %s: %s", directory, name, "; ".join(differs[:3]))
    if any(stage.workdir == paths.path(workdir) for stage in stages):
        raise ConfigError(f"--workdir {workdir} is where a stage of this recipe is trained; choose another name beside it")
    return validated(dataclasses.replace(config, sources=type(config.sources)(**names))), stages


def inherited(config: Experiment, workdir: pathlib.Path | None = None) -> Experiment:
    """The config with the autoencoder and text encoders of the run, or recipe, that it starts from, where it names none.

    The run of a recipe is beside `workdir`.
    """
    start = config.sources.init or config.sources.teacher
    recipe, run = start.endswith(".py"), paths.path(start)
    if recipe and workdir is not None:
        run = paths.path(workdir).parent / pathlib.Path(start).stem
    if start and (run / "config.json").is_file():
        found = {place: str(path) for place, path in source_directories(read_config(run), run, INHERITED).items()}
    elif recipe:
        found = dataclasses.asdict(inherited(load(pathlib.Path(start))).sources)
    else:
        return config
    taken = {place: found.get(place, "") for place in INHERITED if not getattr(config.sources, place)}
    taken = {place: name for place, name in taken.items() if place == "autoencoder" or not config.text.layers}
    return dataclasses.replace(config, sources=dataclasses.replace(config.sources, **taken))


def unfinished(stages: Sequence[Stage]) -> list[Stage]:
    """Those stages whose run has not reached the last step of its own config, as the first process sees it."""
    names = distributed.broadcast_from_first([str(stage.workdir) for stage in stages if _progress(stage.workdir)])
    return [stage for stage in stages if str(stage.workdir) in names]


def describe(left: Sequence[Stage], workdir: pathlib.Path) -> str:
    """One line that says which runs are missing, and how to make them."""
    states = ", ".join(f"{stage.workdir} ({_progress(stage.workdir)})" for stage in left)
    commands = "; ".join(stage.command for stage in left)
    return f"{workdir} starts from {states}; add --with-stages to train in order, or run: {commands}"


def _progress(workdir: pathlib.Path) -> str | None:
    """How far a run is, in words; None where it is finished."""
    if not (workdir / "config.json").is_file():
        return "not there yet"
    steps, wanted = checkpoint.steps(workdir), read_config(workdir).steps
    return None if steps and steps[-1] >= wanted else f"step {steps[-1] if steps else 0} of {wanted}"


def sampling_sources(config: Experiment) -> tuple[str, ...]:
    """The places of the runs that sampling needs: the teacher or init only where adapters adapt its params."""
    return (
        "autoencoder",
        "text",
        "text_2",
        "base",
        "classifier",
        *([build.adapted_place(config)] if config.distillation.lora_rank else []),
    )


def sampling_inputs(config: Experiment, workdir: pathlib.Path | None = None) -> tuple[dict[str, Experiment], dict[str, Any]]:
    """The configs and the params, by place, of the runs that sampling a config, of the run in `workdir`, needs."""
    places = sampling_sources(config)
    return source_configs(config, workdir, places), source_params(config, workdir, places)


def source_configs(config: Experiment, workdir: pathlib.Path | None = None, places: Sequence[str] = ()) -> dict[str, Experiment]:
    """The configs of the runs that a config, of the run in `workdir`, starts from, and under `base.` those of its base.

    Only of those `places` if given. Each must be of the kind of its place, and fit the config.
    """
    configs: dict[str, Experiment] = {}
    for place, directory in source_directories(config, workdir, places).items():
        source = configs[place] = read_config(directory, TRAINED.get(place, "classifier"))
        build.check_source(place, config, source, str(directory))
        if place in ("teacher", "init"):
            _check_same_latents(config, workdir, directory)
            if (saved := checkpoint.steps(directory)) and saved[-1] < source.steps:
                log.warning("the %s %s is at step %d of %d", place, directory, saved[-1], source.steps)
        if place == "base":
            below = source_configs(source, directory, sampling_sources(source))
            configs |= {f"base.{name}": each for name, each in below.items()}
    build.check_texts(config, configs)
    return configs


def source_params(config: Experiment, workdir: pathlib.Path | None = None, places: Sequence[str] = ()) -> dict[str, Any]:
    """The params of the runs that a config starts from, by place, as the run in `workdir` knows them; only of those `places`."""
    directories = source_directories(config, workdir, places)
    if workdir is not None:
        _check_recorded(workdir, directories, places)
    params: dict[str, Any] = {}
    for place, directory in directories.items():
        source = read_config(directory)
        step, params[place] = read_params(source, directory)
        if place == "autoencoder":
            check_measured(source, params[place], step, directory)
        if place == "base":
            params |= {f"base.{name}": value for name, value in source_params(source, directory, sampling_sources(source)).items()}
    if config.sources.features.endswith(".npz") and (not places or "features" in places):
        params["features"] = perceptual.load(config.sources.features)
    return params


def record_sources(config: Experiment, workdir: pathlib.Path) -> None:
    """Writes down the fingerprints of the runs that a run is trained on; those that are there must be the same."""
    directories, path = source_directories(config, workdir), paths.path(workdir) / RECORD
    _check_recorded(workdir, directories)
    trained_on = [place for place in build.FROZEN if place in directories]
    if trained_on and not path.exists() and checkpoint.steps(workdir):
        raise ConfigError(f"{workdir} was begun without sources.{trained_on[0]}; leave it out, or choose another --workdir")
    if trained_on and distributed.is_first():
        prints = {name: {"run": str(directories[name]), "fingerprint": fingerprint(directories[name])} for name in trained_on}
        files.write_text(path, json.dumps(prints, indent=2) + "\n")


def check_measured(config: Experiment, params: Any, step: int, workdir: pathlib.Path) -> None:
    """Raises a ConfigError unless an autoencoder's params are of the last step, which measures mean and scale of its latents."""
    unmeasured = np.all(np.asarray(params["latent"]["shift"]) == 0) and np.all(np.asarray(params["latent"]["scale"]) == 1)
    fresh = unmeasured and not (paths.path(workdir) / PUBLISHED).is_file()
    if step < config.steps or fresh:
        how = "train it on, by its recipe with more --steps" if fresh else "train it on"
        state = f"the autoencoder {workdir} is at step {step} of {config.steps}"
        raise ConfigError(f"{state}; its latents are measured at the end: {how}")


def _check_same_latents(config: Experiment, workdir: pathlib.Path | None, teacher: pathlib.Path) -> None:
    """Whether the teacher was trained in the latents of the student's autoencoder."""
    known, mine = _recorded(teacher).get("autoencoder"), source_directories(config, workdir).get("autoencoder")
    if known and mine and known["fingerprint"] != fingerprint(mine):
        raise ConfigError(f"sources.autoencoder {mine} is not that of the teacher {teacher}, {known['run']}; name that one")


def _recorded(workdir: pathlib.Path) -> dict[str, Any]:
    path = paths.path(workdir) / RECORD
    try:
        recorded = json.loads(path.read_text()) if path.is_file() else {}
        return {place: {name: str(each[name]) for name in ("run", "fingerprint")} for place, each in recorded.items()}
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        how = "bring it back, or remove it and sample without knowing that the sources are the same"
        raise ConfigError(f"{path} no longer says what {workdir} was trained on: {how}") from error


def _check_recorded(workdir: pathlib.Path, directories: Mapping[str, pathlib.Path], places: Sequence[str] = ()) -> None:
    for place, before in _recorded(workdir).items():
        now = fingerprint(directories[place]) if place in directories else "none"
        if (not places or place in places) and now != before["fingerprint"]:
            then = f"{workdir} was trained with the {place} {before['run']} as it was then ({before['fingerprint']})"
            how = f"name that one (--sources.{place}) or choose another --workdir"
            raise ConfigError(f"{then}, {directories.get(place, 'nothing')} is another ({now}); {how}")
