"""`jaxdiff train`: its flags, and what it does."""

import pathlib
from dataclasses import dataclass
from typing import Annotated

import tyro

from jaxdiff.app.cli.flags import DataDir
from jaxdiff.app.config import Experiment, validated
from jaxdiff.io import paths
from jaxdiff.io.errors import ConfigError
from jaxdiff.training import distributed, profiling, run_lock, sinks


@dataclass(frozen=True)
class Processes:
    """How one of several processes that train a run joins the others; under SLURM and on TPU pods none of it is needed."""

    coordinator: str | None = None
    """HOST:PORT of process 0, without SLURM or a TPU pod."""
    num_processes: int | None = None
    """Number of processes."""
    process_id: int | None = None
    """Index of this process, from 0."""
    step_timeout: float | None = None
    """Time limit of a step in seconds; 0: none; by default 45 with several processes."""


@dataclass(frozen=True)
class Train:
    """Train a recipe, or resume its run in workdir from the last checkpoint.

    Example: jaxdiff train digits --steps 500
    """

    config: tyro.conf.Positional[pathlib.Path]
    """A file with `config`, a recipe's name, or a run."""
    workdir: pathlib.Path
    """Directory of the run, on a disk or gs://; by default by the recipe."""
    experiment: Annotated[Experiment, tyro.conf.arg(name="")]
    data_dir: DataDir = None
    with_stages: bool = False
    """First train the recipes that this one depends on."""
    profile: str = ""
    """FIRST:LAST, such as 10:20: steps to profile."""
    log: str = "tensorboard"
    """Sinks of metrics and samples, separated by commas: tensorboard, wandb, FILE.py:NAME."""
    processes: Annotated[Processes, tyro.conf.arg(name="")] = Processes()


def train(args: Train) -> int:
    from jaxdiff.app.runs import finish, imported, sources
    from jaxdiff.app.runs import train as run

    start = args.experiment
    if paths.path(args.config).is_dir() and not (start.sources.init or start.sources.teacher):
        what = f"{args.config} is a run of {start.objective}, from whose params none other starts"
        raise ConfigError(f"{what}; train the recipe of such a run")
    if repository := start.published.repository:
        raise ConfigError(f"{args.config} is imported, not trained: jaxdiff import {repository} --workdir {args.workdir}")
    config, before = sources.resolve_sources(validated(args.experiment, where="jaxdiff train"), args.workdir)
    distributed.initialize(args.processes.coordinator, args.processes.num_processes, args.processes.process_id)
    left, traced, log_to = sources.unfinished(before), profiling.parse_steps(args.profile), sinks.factories(args.log)
    if left and not args.with_stages:
        raise ConfigError(sources.describe(left, args.workdir))
    for stage in [*left, sources.Stage(args.config, args.workdir, config)]:
        if stage.workdir != args.workdir:
            print_once(f"stage {stage.workdir}: {stage.command}")
        if repository := stage.config.published.repository:
            print_once(imported.import_weights(repository, stage.workdir, imported.Wanted()))
            continue
        with run_lock.hold(stage.workdir):
            if stopped := run.train_run(stage.config, stage.workdir, args.data_dir, args.processes.step_timeout, traced, log_to):
                return report_stop(stopped, stage.workdir)
            print_once(finish.finish_run(stage.config, stage.workdir, args.data_dir))
    return 0


def report_stop(name: str, workdir: pathlib.Path) -> int:
    """Prints that a signal stopped a run; returns the exit status."""
    from jaxdiff.training import checkpoint

    print_once(f"{name}: saved step {checkpoint.steps(workdir)[-1]} of {workdir}; rerunning the same command resumes from there")
    return 130 if name == "SIGINT" else 0


def print_once(line: str) -> None:
    """Prints a line, on the first process alone."""
    if distributed.is_first():
        print(line)
