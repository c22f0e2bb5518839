"""The ladder: students beside their teachers at the same numbers of network calls, in one table and one figure."""

import dataclasses
import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from jaxdiff.app.config import (
    STUDENTS,
    Experiment,
    Ladder,
    distillation,
    load,
    training_calls,
    uses_discrete_levels,
    validated,
)
from jaxdiff.app.runs import finish, storage
from jaxdiff.app.runs.sources import Stage, resolve_sources
from jaxdiff.evaluate import Evaluator
from jaxdiff.io import count, files, pictures, progress
from jaxdiff.io.errors import ConfigError
from jaxdiff.training import distributed

MARKERS = "sD^vP*X<>"
COLOURS = 9  # of students, before their markers change
MEASURES = ("fid", "label_agreement")
MEASURED = 3  # the version of the measurement: rows of another one do not compare, and are measured again


class Rung(NamedTuple):
    """A run, sampled with so many network calls; `config` says how. `cost`: network calls in its training, and before that."""

    name: str
    calls: int
    workdir: pathlib.Path
    config: Experiment
    cost: tuple[float, float]


def ladder_runs(ladder: Ladder, workdir: pathlib.Path) -> list[Stage]:
    """The runs of a ladder in the order of training: its students, of the same images, each after what it starts from."""
    runs: list[Stage] = []
    for name in ladder.students:
        path = pathlib.Path(name)
        directory = workdir.parent / path.stem
        config, before = resolve_sources(load(path), directory)
        if config.objective not in STUDENTS:
            raise ConfigError(f"students: {name} trains {config.objective}, which distils nothing; name recipes of {STUDENTS}")
        if not config.model.num_classes or config.model.context_channels:
            raise ConfigError(f"students: {name} has no labels, or context vectors; a ladder judges samples by their labels alone")
        runs += [stage for stage in (*before, Stage(path, directory, config)) if stage not in runs]
    images = {(stage.config.data.name, stage.config.data.image_shape) for stage in runs}
    if len(images) > 1:
        raise ConfigError(f"students: all must be of the same images, got {sorted(images)}")
    return runs


def ladder_rungs(ladder: Ladder, runs: Sequence[Stage]) -> Iterator[Rung]:
    """What is sampled: every teacher by each baseline, then every student, each with all numbers of calls that it can make.

    By the configs of the runs themselves where they exist, else by the recipes.
    """
    there = [(stage.workdir / "config.json").is_file() for stage in runs]
    runs = [run._replace(config=storage.read_config(run.workdir)) if old else run for run, old in zip(runs, there, strict=True)]
    names = {str(pathlib.Path(name)) for name in ladder.students}
    costs = {run.workdir: _training_cost(run, runs) for run in runs}
    for stage in runs:
        if stage.config.objective == "diffusion":
            yield from _baselines(ladder, stage, costs[stage.workdir])
    for stage in runs:
        if str(stage.recipe) in names:
            low, high = stage.config.distillation.guidance
            for guidance in [each for each in ladder.guidance if low <= each <= high] or [low]:
                for calls in ladder.calls:
                    if not uses_discrete_levels(stage.config) or calls in distillation.sampling_steps(stage.config):
                        yield _rung(stage, "", calls, costs[stage.workdir], steps=calls, guidance=guidance)


def _training_cost(run: Stage, runs: Sequence[Stage]) -> tuple[float, float]:
    """Network calls in the training of a run, and in that of the runs that it starts from."""
    by_place = {run.workdir: run for run in runs}
    sources = (run.config.sources.teacher, run.config.sources.init)
    before = [by_place[pathlib.Path(each)] for each in sources if each and pathlib.Path(each) in by_place]
    own = training_calls(run.config, before[0].config if before else None)
    return own, sum(sum(_training_cost(each, runs)) for each in before)


def _baselines(ladder: Ladder, stage: Stage, trained: tuple[float, float]) -> Iterator[Rung]:
    for guidance in ladder.guidance:
        cost = 1 if guidance == 1 else 2
        for sampler in ladder.baselines:
            for steps in dict.fromkeys(
                distillation.steps_within(sampler, calls // cost) for calls in ladder.calls if calls % cost == 0
            ):
                calls = distillation.sampler_calls(sampler, steps) * cost
                yield _rung(stage, f" {sampler}", calls, trained, sampler=sampler, steps=steps, guidance=guidance)
        steps = ladder.reference_steps
        if steps * cost not in ladder.calls or "ddim" not in ladder.baselines:
            yield _rung(stage, " ddim", steps * cost, trained, sampler="ddim", steps=steps, guidance=guidance)


def _rung(stage: Stage, how: str, calls: int, cost: tuple[float, float], **sampling: Any) -> Rung:
    name = stage.workdir.name + how + (f", guidance {sampling['guidance']:g}" if sampling["guidance"] != 1 else "")
    config = dataclasses.replace(stage.config, sampling=dataclasses.replace(stage.config.sampling, eta=0.0, **sampling))
    return Rung(name, calls, stage.workdir, validated(config, where=name), cost)


def measure_rungs(ladder: Ladder, workdir: pathlib.Path, rungs: Sequence[Rung], data_dir: str | None) -> list[dict[str, Any]]:
    """A row for each rung: name, calls, label agreement and Frechet distance of its samples, of which a grid is drawn.

    Rows are kept in `ladder.json`; one that is there with the same run and settings is not measured again. All processes draw the
    samples and must call it; the first measures them, and has the rows.
    """
    path, rows, evaluator = workdir / "ladder.json", [], None
    known = {_identity(row): row for row in _read_rows(path)}
    for rung in progress.track(rungs, "climbing", "place"):
        row = {"name": rung.name, "calls": rung.calls, "settings": _settings(ladder, rung)}
        grid = workdir / f"{rung.name.replace(', ', '_').replace(' ', '_')}_{rung.calls}.png"
        if distributed.broadcast_from_first(_identity(row) not in known or not grid.exists()):
            evaluation = dataclasses.replace(rung.config.evaluation, epochs=ladder.epochs)
            config = dataclasses.replace(rung.config, evaluation=evaluation, seed=ladder.seed)
            if distributed.is_first():
                evaluator = evaluator or finish.run_evaluator(config, ladder.num, data_dir, names=MEASURES)
            drawn = finish.draw_samples(config, rung.workdir, ladder.num, None)
            if evaluator:
                known[_identity(row)] = row | _measure(ladder, rung, drawn, evaluator, grid)
                files.write_text(path, json.dumps({"rows": list(known.values())}, indent=2) + "\n")
        rows.append(known.get(_identity(row), row) | {"training": rung.cost})
    if distributed.is_first():
        files.write_text(path, json.dumps({"rows": rows}, indent=2) + "\n")
    return rows


def _measure(ladder: Ladder, rung: Rung, drawn: finish.Drawn, evaluator: Evaluator, grid: pathlib.Path) -> dict[str, Any]:
    """The measures of samples of a rung, of which the first are drawn."""
    pictures.save_grid(grid, drawn.samples[: ladder.shown], columns=min(rung.config.model.num_classes, 10))
    result = evaluator.measure(drawn.samples, drawn.labels)
    row = {"agreement": result.metrics["label_agreement"].value, "frechet": result.metrics["fid"].value}
    row |= {"accuracy": result.held_out["label_agreement"].value, "frechet_real": result.held_out["fid"].value}
    return row | {"num_real": evaluator.spec.num}


def _settings(ladder: Ladder, rung: Rung) -> dict[str, Any]:
    """What a row depends on."""
    c, own = rung.config, {name: getattr(ladder, name) for name in ("num", "shown", "epochs", "seed")}
    sampled = {"schedule": c.diffusion.sampling_schedule or c.diffusion.schedule, **dataclasses.asdict(c.sampling), **own}
    images = [c.data.name, c.data.split, c.data.held_out]
    return {**sampled, "measured": MEASURED, "data": images, "run": storage.fingerprint(rung.workdir)}


def _identity(row: Mapping[str, Any]) -> str:
    return json.dumps([row["name"], row["calls"], row["settings"]], sort_keys=True)


def _read_rows(path: pathlib.Path) -> list[dict[str, Any]]:
    try:
        rows = json.loads(path.read_text())["rows"] if path.is_file() else []
        return [row for row in rows if {"name", "calls", "settings"} <= set(row)]
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} holds no rows of a ladder; move it away, or choose another --workdir") from error


def markdown_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as a table in Markdown, a line a method, for each number of calls label agreement and Frechet distance.

    Before them the network calls in training, in thousands, and in that of what it starts from.
    """
    calls = sorted({row["calls"] for row in rows})
    cells = {(row["name"], row["calls"]): f"{row['agreement']:.1%}, {row['frechet']:.2f}" for row in rows}
    heads = " | ".join(count(each, "call") for each in calls)
    lines = [f"| samples named by their label, Frechet distance | calls in training | {heads} |", "|---" * (len(calls) + 2) + "|"]
    costs = {row["name"]: row["training"] for row in rows}
    for name, (own, before) in costs.items():
        cost = f"{own / 1000:,.0f} k" + (f" + {before / 1000:,.0f} k" if before else "")
        lines.append(f"| {name} | {cost} | {' | '.join(cells.get((name, each), '') for each in calls)} |")
    real, num = rows[0]["frechet_real"], rows[0]["num_real"]
    lines += ["", f"Real held-out images: {rows[0]['accuracy']:.1%}, {real:.2f}. Frechet distances are of {num} images."]
    return "\n".join(lines)


def draw_figure(rows: Sequence[Mapping[str, Any]], path: pathlib.Path) -> None:
    """Draws the rows, a line a method: network calls against Frechet distance and label agreement, baselines dashed."""
    import matplotlib.figure as figures

    figure = figures.Figure(figsize=(11, 5), layout="constrained")
    plots = figure.subplots(1, 2)
    names, calls = dict.fromkeys(row["name"] for row in rows), sorted({row["calls"] for row in rows})
    baselines = [name for name in names if " " in name.split(",")[0]]
    styles: dict[str, Any] = {}
    for number, name in enumerate(name for name in names if name not in baselines):  # C7 is the grey of the baselines
        colour = number % COLOURS
        marker = "os^D"[number // COLOURS % 4]
        styles[name] = {"color": f"C{colour + (colour >= 7)}", "linewidth": 2.5, "marker": marker}
    for number, name in enumerate(baselines):
        styles[name] = {"color": "grey", "linestyle": "--", "marker": MARKERS[number % len(MARKERS)]}
    for axes, measure, label in zip(plots, ("frechet", "agreement"), ("Frechet distance", "named by their label"), strict=True):
        for name, style in styles.items():
            points = sorted((row["calls"], row[measure]) for row in rows if row["name"] == name)
            axes.plot(*zip(*points, strict=True), label=name, **style)
        axes.set_xscale("log", base=2)
        axes.set_xticks(calls, [str(each) for each in calls])
        axes.set(xlabel="network calls for a sample", ylabel=label)
        axes.grid(alpha=0.3)
    plots[0].set_yscale("log")
    plots[0].axhline(rows[0]["frechet_real"], color="black", linewidth=1, label="held-out images")
    figure.legend(*plots[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize="small")
    with files.atomic_write(path) as draft:
        figure.savefig(draft, format="png", dpi=110)
