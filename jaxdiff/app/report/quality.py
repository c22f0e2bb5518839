"""What a run ends with, in figures and pictures, and how good its samples are for how many network calls."""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from markupsafe import Markup

from jaxdiff import evaluate
from jaxdiff.app import build
from jaxdiff.app.config import DENOISERS, network_calls
from jaxdiff.app.report.curves import COLOURS, Line, colours, plot, png
from jaxdiff.app.report.run_record import RunRecord
from jaxdiff.app.runs import storage
from jaxdiff.app.runs.finish import finish_run
from jaxdiff.app.runs.sources import source_configs
from jaxdiff.evaluate import Interval
from jaxdiff.io import count, files, paths
from jaxdiff.io.errors import ConfigError, UserError

NAMES = {
    **{"fid": "FID", "kid": "KID", "precision": "precision", "recall": "recall", "inception_score": "inception score"},
    **{"clip_score": "CLIP score", "label_agreement": "label agreement", "frechet": "Frechet distance"},
}
SHARES = ("precision", "recall", "label_agreement")
DRAWN = ("fid", "frechet", "kid")  # the first of these is drawn over the calls
WRITTEN = {"vae": "reconstructions.png", "autoencoder": "reconstruction.json", "classifier": "accuracy.json"}  # at the end
CAPTIONS = {
    "samples": "samples at the end of training",
    "reconstructions": "held-out images, each row above a row of its reconstructions",
    "interpolations": "straight lines between the codes of two held-out images",
}


class Row(NamedTuple):
    """A way of sampling a run: network calls a sample, training step, and measures by name; ladders know no intervals."""

    run: str
    sampling: Mapping[str, Any]
    calls: int
    step: int
    measures: Mapping[str, Interval]

    @property
    def how(self) -> str:
        """How samples were made, in words."""
        return evaluate.describe_sampling(self.sampling)

    @property
    def method(self) -> str:
        """How, without the number of steps."""
        return self.how.replace(f" {self.sampling['steps']}", "", 1)


class Group(NamedTuple):
    """Rows that may be compared: measured in one way, `of`; with the same measures of held-out images."""

    title: str
    of: str
    rows: list[Row]
    held_out: Mapping[str, Interval]

    @property
    def columns(self) -> list[str]:
        """The measures that any row has."""
        return [name for name in NAMES if any(name in row.measures for row in self.rows)]

    @property
    def chart(self) -> Markup | None:
        """Calls against a distance, a line a method; None where all rows take as many calls."""
        measure = next((name for name in DRAWN if name in self.columns), "")
        rows = [row for row in self.rows if measure in row.measures]
        if len({row.calls for row in rows}) < 2:
            return None
        lines = []
        for name, colour in self.key.items():
            if points := sorted((row.calls, *row.measures[measure]) for row in rows if self._method(row) == name):
                lines.append(Line(name, colour, *zip(*points, strict=True), marker="o"))
        level = self.held_out[measure].value if measure in self.held_out else None
        return plot(lines, "network calls a sample", NAMES[measure], level, log_across=True)

    @property
    def key(self) -> dict[str, str]:
        """Colours of the chart's lines, by method."""
        return colours(self._method(row) for row in self.rows)

    @property
    def step(self) -> int | None:
        """The training step of all rows; None where they differ."""
        return self.rows[0].step if len({row.step for row in self.rows}) == 1 else None

    def _method(self, row: Row) -> str:
        return row.method if len({each.run for each in self.rows}) == 1 else f"{row.run}: {row.method}"


def groups(records: Sequence[RunRecord]) -> list[Group]:
    """What is known of the runs' samples, each kind of measurement a group; rows by run, then by calls."""
    merged: dict[tuple[str, str], Group] = {}
    for group in (group for kind in (_evaluations, _ladders) for record in records for group in kind(record)):
        merged.setdefault((group.title, group.of), group._replace(rows=[])).rows.extend(group.rows)
    order = [record.name for record in records]
    for group in merged.values():
        group.rows.sort(key=lambda row: (order.index(row.run), row.method, row.calls))
    return list(merged.values())


def format_measure(value: float, name: str) -> str:
    """A measure of that name as people write it."""
    return f"{value:.1%}" if name in SHARES else f"{value:.4f}" if name == "kid" else f"{value:.2f}"


def _evaluations(record: RunRecord) -> Iterator[Group]:
    for path in sorted((record.workdir / evaluate.FOLDER).glob("*.json")):
        with contextlib.suppress(ConfigError):
            saved = evaluate.read_record(path)
            spec = {name: value for name, value in dataclasses.asdict(saved.result.spec).items() if value}
            of = "with " + ", ".join(f"{name} {value}" for name, value in spec.items())
            row = Row(record.name, saved.sampling, saved.calls, saved.step, saved.result.metrics)
            yield Group("Evaluations", of, [row], saved.result.held_out)


def _ladders(record: RunRecord) -> Iterator[Group]:
    """The rows of this run, as it is now, in ladders beside it."""
    with contextlib.suppress(UserError):
        run = storage.fingerprint(record.workdir)
        for path in sorted(paths.resolved(record.workdir).parent.glob("*/ladder.json")):
            for row in (row for row in files.read_json(path).get("rows", []) if row["settings"]["run"] == run):
                of = f"by a classifier of {record.config.data.name}; Frechet distances in its features, of {row['num_real']} images"
                measures = {"label_agreement": _exact(row["agreement"]), "frechet": _exact(row["frechet"])}
                held_out = {"label_agreement": _exact(row["accuracy"]), "frechet": _exact(row["frechet_real"])}
                measured = Row(record.name, row["settings"], row["calls"], record.step, measures)
                yield Group(f"Ladder {path.parent.name}", of, [measured], held_out)


def _exact(value: float) -> Interval:
    return Interval(value, value, value)


class Outcome(NamedTuple):
    """A picture (a data URI) or a plot with its caption, and figures by name."""

    caption: str
    image: str = ""
    plot: Markup = Markup()
    figures: tuple[tuple[str, str], ...] = ()


def outcomes(record: RunRecord, data_dir: str | None = None) -> list[Outcome]:
    """What the end of a run has written; made now where the run is finished and has none."""
    config, workdir = record.config, record.workdir
    if config.objective in WRITTEN and record.step >= config.steps and not (workdir / WRITTEN[config.objective]).exists():
        finish_run(config, workdir, data_dir)
    paths = {name: path for name in CAPTIONS if (path := workdir / f"{name}.png").is_file()}
    ends = [Outcome(CAPTIONS[name], image=png(path.read_bytes())) for name, path in paths.items()]
    if rows := sorted(files.read_json(workdir / "accuracy.json").get("levels", []), key=lambda row: row["logsnr"]):
        x, y = [row["logsnr"] for row in rows], [row["accuracy"] for row in rows]
        curve = plot([Line("accuracy", COLOURS[0], x, y, marker="o")], "logsnr", "accuracy")
        shown = tuple((f"logsnr {logsnr:.1f}", f"{accuracy:.1%}") for logsnr, accuracy in zip(x, y, strict=True))
        ends.append(Outcome("Accuracy on held-out images, by how noisy they are", plot=curve, figures=shown))
    if estimates := files.read_json(workdir / "likelihood.json").get("estimates", {}):
        text = "{value:.3f} ± {standard_error:.3f} {unit}"
        shown = tuple((name, text.format(**each)) for name, each in estimates.items())
        ends.append(Outcome("Likelihood, with its standard error", figures=shown))
    return ends


def key_figures(record: RunRecord, measured: Sequence[Group]) -> dict[str, str]:
    """The run in a few figures, by name."""
    c, latest = record.config, record.metrics[-1] if record.metrics else {}
    shown = {"trains": c.objective, "data": f"{c.data.name}, {' x '.join(map(str, c.data.image_shape))}"}
    shown["training"] = f"step {record.step:,} of {c.steps:,}" if record.step else "no checkpoint yet"
    shown |= {"images seen": f"{record.step * c.data.batch_size:,}", "parameters": _size(record)}
    if "loss" in latest:
        shown["last loss"] = f"{latest['loss']:.4g}"
    if c.objective in DENOISERS:
        shown |= {"sampled by": evaluate.describe_sampling(vars(c.sampling)), "network calls": str(network_calls(c))}
    shown |= _best(record, measured)
    rebuilt = files.read_json(record.workdir / "reconstruction.json")
    if "psnr" in rebuilt:
        shown |= {"PSNR": f"{rebuilt['psnr']:.2f} dB", "compression": f"{rebuilt['ratio']:.3g} times fewer numbers"}
    if "codebook_usage" in rebuilt:
        shown["codes used"] = f"{rebuilt['codebook_usage']:.1%}"
    return {name: value for name, value in shown.items() if value}


def _best(record: RunRecord, measured: Sequence[Group]) -> dict[str, str]:
    """The run's lowest distance and the calls that it takes: its FID, or in the measurement that has most of its samplers."""
    for name in ("fid", "frechet"):
        rows = [[row for row in group.rows if row.run == record.name and name in row.measures] for group in measured]
        if mine := max(rows, key=len, default=[]):
            best = min(mine, key=lambda row: row.measures[name].value)
            return {f"best {NAMES[name]}": f"{best.measures[name].value:.2f} with {count(best.calls, 'call')}"}
    return {}


def _size(record: RunRecord) -> str:
    try:
        sources = source_configs(record.config, record.workdir, ("autoencoder",))
        shapes: Any = build.state_shapes(record.config, sources).params
    except UserError:
        return ""
    number = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    return f"{number / 1e6:.3g} million" if number >= 1e5 else f"{number:,}"
