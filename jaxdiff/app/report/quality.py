"""How good samples are for how many network calls: what `evaluate`, the end of a run and ladders have measured."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from markupsafe import Markup

from jaxdiff.app.config import Experiment, network_calls
from jaxdiff.app.report.curves import COLOURS, Line, plot
from jaxdiff.app.report.run_record import RunRecord, read_json
from jaxdiff.app.runs import storage
from jaxdiff.io.errors import UserError

NAMES = {
    **{"fid": "FID", "kid": "KID", "precision": "precision", "recall": "recall", "inception_score": "inception score"},
    **{"label_agreement": "label agreement", "frechet": "Frechet distance"},
}
SHARES = ("precision", "recall", "label_agreement")
DRAWN = ("fid", "frechet", "kid")  # the first of these is drawn over the calls


class Measure(NamedTuple):
    """A value, and the ends of its interval where it has one."""

    value: float
    low: float | None = None
    high: float | None = None


class Row(NamedTuple):
    """A way of sampling a run: network calls a sample, training steps, and measures by name."""

    run: str
    how: str
    calls: int
    step: int | None
    measures: dict[str, Measure]

    @property
    def method(self) -> str:
        """How, without the number of steps."""
        return ", ".join(word for word in self.how.split(", ") if not word.endswith((" step", " steps")))


class Group(NamedTuple):
    """Rows that may be compared: measured in one way, `of`; with the same measures of held-out images."""

    title: str
    of: str
    rows: list[Row]
    held_out: dict[str, Measure]

    @property
    def columns(self) -> list[str]:
        """The measures that any row has."""
        known = {name: None for row in self.rows for name in row.measures}
        return sorted(known, key=lambda name: list(NAMES).index(name) if name in NAMES else len(NAMES))

    @property
    def chart(self) -> Markup | None:
        """Calls against a distance, a line a method; None where nothing changes along it."""
        measure = next((name for name in DRAWN if name in self.columns), None)
        rows = [row for row in self.rows if measure in row.measures]
        if measure is None or len({row.calls for row in rows}) < 2:
            return None
        lines = []
        for name, colour in self.key.items():
            points = sorted((row.calls, row.measures[measure]) for row in rows if self._method(row) == name)
            x, y = [calls for calls, _ in points], [found.value for _, found in points]
            bars = [(found.low, found.high) for _, found in points if found.low is not None and found.high is not None]
            low, high = zip(*bars, strict=True) if len(bars) == len(points) else ((), ())
            lines += [Line(name, colour, x, y, low, high, "o")] * bool(points)
        real = self.held_out.get(measure)
        return plot(lines, "network calls a sample", NAMES[measure], real.value if real else None, log_across=True)

    @property
    def key(self) -> dict[str, str]:
        """Colours of the chart's lines, by method."""
        names = dict.fromkeys(self._method(row) for row in self.rows)
        return {name: COLOURS[number % len(COLOURS)] for number, name in enumerate(names)}

    @property
    def step(self) -> int | None:
        """The training step of all rows; None where they differ."""
        return self.rows[0].step if len({row.step for row in self.rows}) == 1 else None

    def _method(self, row: Row) -> str:
        return row.method if len({each.run for each in self.rows}) == 1 else f"{row.run}: {row.method}"


def groups(records: Sequence[RunRecord]) -> list[Group]:
    """What is known of the runs' samples, each kind of measurement a group; rows by run, then by calls."""
    found: dict[str, Group] = {}
    for kind in (_evaluations, _reports, _ladders):
        for group in (group for record in records for group in kind(record)):
            same = found.setdefault(json.dumps([group.title, group.of]), group._replace(rows=[]))
            same.rows.extend(group.rows)
    order = [record.name for record in records]
    return [
        group._replace(rows=sorted(group.rows, key=lambda row: (order.index(row.run), row.method, row.calls)))
        for group in found.values()
    ]


def figure(value: float, name: str) -> str:
    """A measure of that name as people write it."""
    return f"{value:.1%}" if name in SHARES else f"{value:.4f}" if name == "kid" else f"{value:.2f}"


def calls_of(config: Experiment, sampling: Mapping[str, Any]) -> int:
    """Network calls for a sample, doubled by guidance, but not for a student that has learned it."""
    known = {name: sampling[name] for name in ("sampler", "steps", "guidance") if name in sampling}
    return network_calls(dataclasses.replace(config, sampling=dataclasses.replace(config.sampling, **known)))


def describe_sampling(sampling: Mapping[str, Any]) -> str:
    """A sampler's settings in words."""
    words = [f"{sampling['sampler']}, {sampling['steps']} steps" if sampling["steps"] > 1 else f"{sampling['sampler']}, 1 step"]
    words += [f"{sampling['spacing']} spacing"] * (sampling.get("spacing", "time") != "time")
    words += [f"eta {sampling.get('eta', 0):g}"] * bool(sampling.get("eta"))
    words += [f"guidance {sampling.get('guidance', 1):g}"] * (sampling.get("guidance", 1) != 1)
    words += [f"classifier scale {sampling.get('classifier_scale', 1):g}"] * bool(sampling.get("classifier"))
    return ", ".join(words)


def _evaluations(record: RunRecord) -> Iterator[Group]:
    for path in sorted((record.workdir / "evaluations").glob("*.json")):
        found = read_json(path)
        if not {"sampling", "metrics", "spec"} <= set(found):
            continue
        spec = {name: value for name, value in found["spec"].items() if value not in (None, "")}
        of = "with " + ", ".join(f"{name} {value}" for name, value in spec.items())
        cost = found.get("calls") or calls_of(record.config, found["sampling"])
        row = Row(record.name, describe_sampling(found["sampling"]), cost, found.get("step"), _measures(found["metrics"]))
        yield Group("Evaluations", of, [row], _measures(found.get("held_out", {})))


def _reports(record: RunRecord) -> Iterator[Group]:
    """What runs end with: the judge is trained on the data set."""
    for path in (record.workdir / "samples.json", *sorted((record.workdir / "samples").glob("*.json"))):
        found = read_json(path)
        report = found.get("report")
        if not isinstance(report, dict) or "sampling" not in found:
            continue
        cost = calls_of(record.config, found["sampling"])
        yield _judged("Judged by a classifier", record, found["sampling"], cost, found.get("step"), report)


def _ladders(record: RunRecord) -> Iterator[Group]:
    """The rows of this run, as it is now, in ladders beside it."""
    for path in sorted({*record.workdir.glob("ladder.json"), *record.workdir.resolve().parent.glob("*/ladder.json")}):
        rows = [row for row in read_json(path).get("rows", []) if row.get("settings", {}).get("run") == _fingerprint(record)]
        for row in rows:
            yield _judged(f"Ladder {path.parent.name}", record, row["settings"], row["calls"], record.step, row)


def _judged(
    title: str, record: RunRecord, sampling: Mapping[str, Any], cost: int, step: int | None, found: Mapping[str, Any]
) -> Group:
    """One row by a classifier that was trained on the run's data."""
    measures = {"label_agreement": found.get("agreement"), "frechet": found.get("frechet")}
    real = {"label_agreement": found.get("accuracy"), "frechet": found.get("frechet_real")}
    of = f"by a classifier of {record.config.data.name}; Frechet distances in its features, of {found.get('num_real')} images"
    return Group(title, of, [Row(record.name, describe_sampling(sampling), cost, step, _measures(measures))], _measures(real))


def _fingerprint(record: RunRecord) -> str:
    try:
        return storage.fingerprint(record.workdir)
    except UserError:
        return ""


def _measures(found: Mapping[str, Any]) -> dict[str, Measure]:
    """Numbers, or mappings of value, low and high."""
    wide = {name: value if isinstance(value, Mapping) else {"value": value} for name, value in found.items()}
    return {
        name: Measure(value["value"], value.get("low"), value.get("high"))
        for name, value in wide.items()
        if isinstance(value.get("value"), int | float)
    }
