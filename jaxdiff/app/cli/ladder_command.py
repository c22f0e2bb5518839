"""`jaxdiff ladder`: its flags, and what it does."""

import dataclasses
import pathlib
from dataclasses import dataclass, field
from typing import Annotated

import tyro

from jaxdiff.app.cli.arguments import check_bounds
from jaxdiff.app.cli.flags import DataDir
from jaxdiff.app.cli.train_command import Processes, print_once, report_stop
from jaxdiff.app.config import load_ladder
from jaxdiff.io import files
from jaxdiff.io.errors import ConfigError
from jaxdiff.training import distributed, run_lock, sinks


@dataclass(frozen=True)
class Ladder:
    """Train the students of a ladder and their teachers, sample each with few network calls, and compare them.

    Rerunning the command resumes it. Writes table.md, ladder.png, ladder.json and a grid of samples for each row.

    Example: jaxdiff ladder digits_ladder
    """

    config: tyro.conf.Positional[pathlib.Path]
    """A file that defines `ladder`, or the name of a recipe."""
    workdir: pathlib.Path | None = None
    """Where to write; by default runs/CONFIG. The runs are next to it."""
    seed: int | None = None
    """Seed of the samples; by default the file's."""
    data_dir: DataDir = None
    log: str = "tensorboard"
    """Where metrics and samples of the runs go, as for train."""
    processes: Annotated[Processes, tyro.conf.arg(name="")] = field(default_factory=Processes)


def ladder(args: Ladder) -> int:
    from jaxdiff import evaluate
    from jaxdiff.app.runs import ladder as ladders
    from jaxdiff.app.runs import sources
    from jaxdiff.app.runs import train as run

    check_bounds(args)
    log_to = sinks.factories(args.log)
    config = load_ladder(args.config)
    config = config if args.seed is None else dataclasses.replace(config, seed=args.seed)
    workdir = args.workdir or pathlib.Path("runs") / args.config.stem
    trained = ladders.ladder_runs(config, workdir)
    if not list(ladders.ladder_rungs(config, trained)):
        raise ConfigError(f"{args.config}: no student or baseline takes {config.calls} calls; choose others")
    distributed.initialize(args.processes.coordinator, args.processes.num_processes, args.processes.process_id)
    left = sources.unfinished(trained)
    if left and distributed.is_first():
        evaluate.check_measures(trained[-1].config.data, config.num, ladders.MEASURES, args.data_dir)
    with run_lock.hold(workdir):
        for stage in left:
            print_once(f"rung {stage.workdir}: {stage.command}")
            with run_lock.hold(stage.workdir):
                if stopped := run.train_run(stage.config, stage.workdir, args.data_dir, args.processes.step_timeout, log_to=log_to):
                    return report_stop(stopped, stage.workdir)
        rows = ladders.measure_rungs(config, workdir, list(ladders.ladder_rungs(config, trained)), args.data_dir)
        if not distributed.is_first():
            return 0
        text = ladders.markdown_table(rows)
        files.write_text(workdir / "table.md", text + "\n")
        ladders.draw_figure(rows, workdir / "ladder.png")
    print(f"{text}\n{workdir / 'table.md'}, {workdir / 'ladder.png'}, and a grid of samples for each row")
    return 0
