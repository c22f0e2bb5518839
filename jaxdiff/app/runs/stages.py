"""The stages of a recipe: the recipes that it names as its sources, each a run of its own beside the recipe's."""

from __future__ import annotations

import dataclasses
import logging
import pathlib
from typing import NamedTuple

from jaxdiff.app.config import Experiment, differences, load, to_dict, validated
from jaxdiff.app.runs import storage
from jaxdiff.io.errors import ConfigError
from jaxdiff.training import checkpoint

log = logging.getLogger(__name__)


class Stage(NamedTuple):
    """A recipe that another starts from, with the run where it is trained."""

    recipe: pathlib.Path
    workdir: pathlib.Path
    config: Experiment

    @property
    def command(self) -> str:
        """What trains it."""
        return f"jaxdiff train {self.recipe} --workdir {self.workdir}"


def resolve_sources(config: Experiment, workdir: pathlib.Path) -> tuple[Experiment, list[Stage]]:
    """The config with runs in the place of the recipes that its sources name, and these stages, in the order of training.

    The run of `configs/mnist_kl.py` is `mnist_kl` beside `workdir`.

    Raises:
        ConfigError: such a recipe is missing or wrong, or starts from itself.
    """
    return _resolved(config, pathlib.Path(workdir), ())


def unfinished(before: list[Stage]) -> list[Stage]:
    """Those stages whose run has not reached the last step of its own config."""
    return [stage for stage in before if _progress(stage.workdir) is not None]


def describe(left: list[Stage], workdir: pathlib.Path) -> str:
    """One line that says which runs are missing, and how to make them."""
    states = ", ".join(f"{stage.workdir} ({_progress(stage.workdir)})" for stage in left)
    return (
        f"{workdir} starts from {states}; add --with-stages to train in order, or run: {'; '.join(each.command for each in left)}"
    )


def _resolved(config: Experiment, workdir: pathlib.Path, above: tuple[str, ...]) -> tuple[Experiment, list[Stage]]:
    stages: list[Stage] = []
    sources = dataclasses.asdict(config.sources)
    for place, name in sources.items():
        if not name.endswith(".py"):
            continue
        if name in above:
            raise ConfigError(f"sources.{place}: {name} starts from itself ({' -> '.join(above)})")
        directory = workdir.parent / pathlib.Path(name).stem
        source, before = _resolved(load(pathlib.Path(name)), directory, (*above, name))
        stages += [stage for stage in (*before, Stage(pathlib.Path(name), directory, source)) if stage not in stages]
        _compare(source, directory, name)
        sources[place] = str(directory)
    if any(stage.workdir == workdir for stage in stages):
        raise ConfigError(f"--workdir {workdir} is where a stage of this recipe is trained; choose another name beside it")
    return validated(dataclasses.replace(config, sources=type(config.sources)(**sources))), stages


def _compare(config: Experiment, workdir: pathlib.Path, name: str) -> None:
    """Says where a run that is there was trained otherwise than the recipe of its name."""
    if (workdir / "config.json").is_file():
        found = differences(to_dict(storage.read_config(workdir)), to_dict(config))
        if found:
            log.warning("%s is used as it is, though it differs from %s: %s", workdir, name, "; ".join(found[:3]))


def _progress(workdir: pathlib.Path) -> str | None:
    """How far a run is, in words; None where it is trained to its end."""
    if not (workdir / "config.json").is_file():
        return "not there yet"
    steps, wanted = checkpoint.steps(workdir), storage.read_config(workdir).steps
    if steps and steps[-1] >= wanted:
        return None
    return f"step {steps[-1] if steps else 0} of {wanted}"
