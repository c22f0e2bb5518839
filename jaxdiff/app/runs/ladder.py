"""The ladder: students beside their teachers at the same numbers of network calls, in one table and one figure."""

from __future__ import annotations

import dataclasses
import functools
import json
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from jaxdiff.app.config import (
    STUDENTS,
    Experiment,
    Ladder,
    load,
    sampler_calls,
    sampling_steps,
    steps_within,
    uses_discrete_levels,
    validated,
)
from jaxdiff.app.runs import finish, stages, storage, train
from jaxdiff.io import files, pictures, progress
from jaxdiff.io.errors import ConfigError

MARKERS = "sD^vP*X<>"
MEASURED = 2  # how places are measured: rows of another number do not compare, and are measured again


class Rung(NamedTuple):
    """A run, sampled with so many network calls; `config` says how."""

    name: str
    calls: int
    workdir: pathlib.Path
    config: Experiment


def ladder_runs(ladder: Ladder, workdir: pathlib.Path) -> list[stages.Stage]:
    """The runs of a ladder in the order of training: its students, each after what it starts from.

    Raises:
        ConfigError: a recipe is missing or wrong, distils nothing, or is of other images than the others.
    """
    found: list[stages.Stage] = []
    for name in ladder.students:
        path = pathlib.Path(name)
        directory = workdir.parent / path.stem
        config, before = stages.resolve_sources(load(path), directory)
        if config.objective not in STUDENTS:
            raise ConfigError(f"students: {name} trains {config.objective}, which distils nothing; name recipes of {STUDENTS}")
        found += [stage for stage in (*before, stages.Stage(path, directory, config)) if stage not in found]
        if not config.model.num_classes or config.model.context_channels:
            raise ConfigError(f"students: {name} has no labels, or context vectors; a ladder judges samples by their labels alone")
    images = {(stage.config.data.name, stage.config.data.image_shape) for stage in found}
    if len(images) > 1:
        raise ConfigError(f"students: all must be of the same images, got {sorted(images)}")
    return found


def ladder_rungs(ladder: Ladder, trained: Sequence[stages.Stage]) -> Iterator[Rung]:
    """What is sampled: every teacher by each baseline, then every student, each with all numbers of calls that it can make.

    As the runs' own configs say where they are there, else the recipes.
    """
    trained = [stage._replace(config=_config(stage)) for stage in trained]
    names = {str(pathlib.Path(name)) for name in ladder.students}
    for stage in trained:
        if stage.config.objective == "diffusion":
            yield from _baselines(ladder, stage)
    for stage in trained:
        if str(stage.recipe) in names:
            low, high = stage.config.distillation.guidance
            for guidance in [each for each in ladder.guidance if low <= each <= high] or [low]:
                for calls in ladder.calls:
                    if not uses_discrete_levels(stage.config) or calls in sampling_steps(stage.config):
                        yield _rung(stage, "", calls, steps=calls, guidance=guidance)


def _config(stage: stages.Stage) -> Experiment:
    return storage.read_config(stage.workdir) if (stage.workdir / "config.json").is_file() else stage.config


def _baselines(ladder: Ladder, stage: stages.Stage) -> Iterator[Rung]:
    for guidance in ladder.guidance:
        cost = 1 if guidance == 1 else 2
        for sampler in ladder.baselines:
            for steps in dict.fromkeys(steps_within(sampler, calls // cost) for calls in ladder.calls if calls % cost == 0):
                calls = sampler_calls(sampler, steps) * cost
                yield _rung(stage, f" {sampler}", calls, sampler=sampler, steps=steps, guidance=guidance)
        steps = ladder.reference_steps
        calls = steps * cost
        if calls not in ladder.calls or "ddim" not in ladder.baselines:
            yield _rung(stage, " ddim", calls, sampler="ddim", steps=steps, guidance=guidance)


def _rung(stage: stages.Stage, how: str, calls: int, **sampling: Any) -> Rung:
    name = stage.workdir.name + how + (f", guidance {sampling['guidance']:g}" if sampling["guidance"] != 1 else "")
    config = dataclasses.replace(stage.config, sampling=dataclasses.replace(stage.config.sampling, eta=0.0, **sampling))
    return Rung(name, calls, stage.workdir, validated(config, where=name))


def measure_rungs(
    ladder: Ladder, workdir: pathlib.Path, places: Sequence[Rung], data_dir: str | None = None
) -> list[dict[str, Any]]:
    """A row for each place: name, calls, label agreement and Frechet distance of its samples, of which a grid is drawn.

    Rows are kept in `ladder.json`; one that is there with the same run and settings is not measured again.
    """
    path = workdir / "ladder.json"
    known = {_identity(row): row for row in _rows(path)}
    judge = functools.cache(lambda: _judge(ladder, places[0].config, data_dir))  # trained when the first row is missing
    rows = []
    for place in progress.track(places, "climbing", "place"):
        row = {"name": place.name, "calls": place.calls, "settings": _settings(ladder, place)}
        drawn = workdir / f"{place.name.replace(', ', '_').replace(' ', '_')}_{place.calls}.png"
        if _identity(row) not in known or not drawn.exists():
            known[_identity(row)] = row | judge()(place, drawn)
            files.write_text(path, json.dumps({"rows": list(known.values())}, indent=2) + "\n")
        rows.append(known[_identity(row)])
    files.write_text(path, json.dumps({"rows": rows}, indent=2) + "\n")
    return rows


def markdown_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as a table in Markdown, a line a method, for each number of calls label agreement and Frechet distance."""
    calls = sorted({row["calls"] for row in rows})
    found = {(row["name"], row["calls"]): f"{row['agreement']:.1%}, {row['frechet']:.2f}" for row in rows}
    heads = " | ".join(f"{each} call{'s' if each > 1 else ''}" for each in calls)
    lines = [f"| samples named by their label, Frechet distance | {heads} |"]
    lines += ["|---" * (len(calls) + 1) + "|"]
    for name in dict.fromkeys(row["name"] for row in rows):
        lines.append(f"| {name} | {' | '.join(found.get((name, each), '') for each in calls)} |")
    real, num = rows[0]["frechet_real"], rows[0]["num_real"]
    lines += ["", f"Real held-out images: {rows[0]['accuracy']:.1%}, {real:.2f}. Frechet distances are of {num} images."]
    return "\n".join(lines)


def draw_figure(rows: Sequence[Mapping[str, Any]], path: pathlib.Path) -> None:
    """Draws the rows, a line a method: network calls against Frechet distance and label agreement, baselines dashed."""
    import matplotlib.figure as figures

    figure = figures.Figure(figsize=(11, 5), layout="constrained")
    named = figure.subplots(1, 2)
    names = dict.fromkeys(row["name"] for row in rows)
    baselines = [name for name in names if " " in name.split(",")[0]]
    students = [name for name in names if name not in baselines]
    for axes, measure, label in zip(named, ("frechet", "agreement"), ("Frechet distance", "named by their label"), strict=True):
        for number, name in enumerate([*students, *baselines]):  # C7 is the grey of the baselines
            points = sorted((row["calls"], row[measure]) for row in rows if row["name"] == name)
            style = (
                {"color": f"C{number + (number >= 7)}", "linewidth": 2.5}
                if name in students
                else {"color": "grey", "linestyle": "--"}
            )
            marker = "o" if name in students else MARKERS[baselines.index(name) % len(MARKERS)]
            axes.plot(*zip(*points, strict=True), label=name, marker=marker, **style)
        axes.set_xscale("log", base=2)
        axes.set_xticks(sorted({row["calls"] for row in rows}), [str(each) for each in sorted({row["calls"] for row in rows})])
        axes.set_xlabel("network calls for a sample")
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
    named[0].set_yscale("log")
    named[0].axhline(rows[0]["frechet_real"], color="black", linewidth=1, label="held-out images")
    figure.legend(*named[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize="small")
    with files.atomic_write(path) as draft:
        figure.savefig(draft, format="png", dpi=110)


def _rows(path: pathlib.Path) -> list[dict[str, Any]]:
    """The rows of an earlier time."""
    try:
        rows = json.loads(path.read_text())["rows"] if path.is_file() else []
        return [row for row in rows if {"name", "calls", "settings"} <= set(row)]
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} holds no rows of a ladder; move it away, or choose another --workdir") from error


def _settings(ladder: Ladder, place: Rung) -> dict[str, Any]:
    """What a row depends on."""
    c, made = place.config, {name: getattr(ladder, name) for name in ("num", "shown", "epochs", "seed")}
    walked = {"schedule": c.diffusion.sampling_schedule or c.diffusion.schedule, **dataclasses.asdict(c.sampling)}
    made["measured"] = MEASURED
    return {**walked, **made, "data": [c.data.name, c.data.split, c.data.held_out], "run": storage.fingerprint(place.workdir)}


def _identity(row: Mapping[str, Any]) -> str:
    return json.dumps([row["name"], row["calls"], row["settings"]], sort_keys=True)


def _judge(ladder: Ladder, config: Experiment, data_dir: str | None) -> Callable[[Rung, pathlib.Path], dict[str, Any]]:
    """A function that samples a place, draws the first samples, and measures all by the classifier of their data set."""
    judge = finish.run_evaluator(config, ladder.num, ladder.epochs, data_dir, names=("fid", "label_agreement"))
    labels = train.cycle_labels(range(config.model.num_classes), ladder.num)

    def judged(place: Rung, drawn: pathlib.Path) -> dict[str, Any]:
        _, params = storage.read_params(place.config, place.workdir)
        samples = train.image_sampler(place.config, workdir=place.workdir)(params, labels, ladder.seed)
        pictures.save_grid(drawn, samples[: ladder.shown], columns=min(config.model.num_classes, 10))
        found = judge.measure(samples, labels)
        row = {"agreement": found.metrics["label_agreement"].value, "frechet": found.metrics["fid"].value}
        row |= {"accuracy": found.held_out["label_agreement"].value, "frechet_real": found.held_out["fid"].value}
        return row | {"num_real": judge.spec.num}

    return judged
