"""`jaxdiff train`: its flags, and what it does."""

from __future__ import annotations

import pathlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import tyro

from jaxdiff.app.config import Experiment, validated
from jaxdiff.io.errors import ConfigError

if TYPE_CHECKING:
    from jaxdiff.app.runs import stages


@dataclass(frozen=True)
class Processes:
    """One process of several that train one run. Those that SLURM or a TPU pod starts find each other."""

    coordinator: str | None = None
    """HOST:PORT of process 0, for all of several that nothing else joins."""
    num_processes: int | None = None
    """How many there are."""
    process_id: int | None = None
    """Which this is, from 0."""
    step_timeout: float | None = None
    """Seconds that a step may take; 0: no limit; 45 of several processes if not given."""


@dataclass(frozen=True)
class Train:
    """Train a recipe; the same command goes on with the run that is in workdir.

    Example: jaxdiff train configs/digits.py --steps 500
    """

    config: tyro.conf.Positional[pathlib.Path]
    """A recipe: a Python file that defines `config`."""
    workdir: pathlib.Path
    """Where the run lives."""
    experiment: Annotated[Experiment, tyro.conf.arg(name="")]
    data_dir: str | None = None
    """tensorflow-datasets' directory; its own if not given."""
    with_stages: bool = False
    """Train first the recipes that this one starts from, as far as needed."""
    profile: str = ""
    """FIRST:LAST, such as 10:20: trace these steps, in workdir/profile."""
    processes: Annotated[Processes, tyro.conf.arg(name="")] = Processes()


def train(args: Train) -> int:
    """`jaxdiff train`: the exit status."""
    from jaxdiff.app.runs import stages
    from jaxdiff.training import distributed

    config, before = stages.resolve_sources(validated(args.experiment, where="jaxdiff train"), args.workdir)
    distributed.initialize(args.processes.coordinator, args.processes.num_processes, args.processes.process_id)
    left = unfinished(before)
    if left and not args.with_stages:
        raise ConfigError(stages.describe(left, args.workdir))
    for stage in left:
        print_once(f"stage {stage.workdir}: {stage.command}")
        if (status := _train(stage.config, stage.workdir, args)) is not None:
            return status
    return _train(config, args.workdir, args) or 0


def _train(config: Experiment, workdir: pathlib.Path, args: Train) -> int | None:
    """The exit status of a run that was stopped by a signal, or None: it is trained and has its pictures and reports."""
    from jaxdiff.app.runs import train as run
    from jaxdiff.training import distributed, profiling

    if stopped := run.train_run(config, workdir, args.data_dir, args.processes.step_timeout, profiling.parse_steps(args.profile)):
        return report_stop(stopped, workdir)
    if distributed.is_first():
        print(_report(config, workdir, args.data_dir))
    return None


def _report(config: Experiment, workdir: pathlib.Path, data_dir: str | None) -> str:
    """Makes the pictures and reports of a trained run; what to print."""
    from jaxdiff.app.runs import finish

    if config.objective == "classifier":
        return finish.finish_classifier(config, workdir, data_dir)
    if config.objective == "vae":
        return finish.finish_vae(config, workdir, data_dir)
    if config.objective == "autoencoder":
        return finish.finish_autoencoder(config, workdir, data_dir)
    return finish.finish(config, workdir, workdir / "samples.png", range(max(config.model.num_classes, 1)), data_dir)


def unfinished(before: list[stages.Stage]) -> list[stages.Stage]:
    """The stages whose runs are not finished, of several processes as the first sees it."""
    from jaxdiff.app.runs import stages
    from jaxdiff.training import distributed

    names = distributed.broadcast_from_first([str(stage.workdir) for stage in stages.unfinished(before)])
    return [stage for stage in before if str(stage.workdir) in names]


def report_stop(name: str, workdir: pathlib.Path) -> int:
    """Says that a signal stopped a run; the exit status."""
    from jaxdiff.training import checkpoint

    print_once(f"{name}: saved step {checkpoint.steps(workdir)[-1]} of {workdir}; the same command goes on from there")
    return 130 if name == "SIGINT" else 0


def print_once(line: str) -> None:
    """Prints a line; of several processes the first alone does."""
    from jaxdiff.training import distributed

    if distributed.is_first():
        print(line)
