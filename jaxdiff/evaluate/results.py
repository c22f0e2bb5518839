"""Results of evaluations: what they were measured by, their files, and their table."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jaxdiff.evaluate.intervals import Interval
from jaxdiff.io import count, files
from jaxdiff.io.errors import ConfigError

FOLDER = "evaluations"  # of a run
TITLES = {  # in the order of a report
    "fid": "Frechet distance (FID)",
    "kid": "kernel distance (KID)",
    "precision": "precision",
    "recall": "recall",
    "inception_score": "inception score",
    "clip_score": "CLIP score",
}
HEADS = {
    "label_agreement": "label agreement, %",
    "fid": "FID",
    "kid": "KID",
    "precision": "precision",
    "recall": "recall",
    "inception_score": "inception score",
    "clip_score": "CLIP score",
}


@dataclass(frozen=True)
class Spec:
    """What figures depend on beside the samples: those of two specs do not compare.

    Attributes:
        features: the network and the digest of its weights.
        resize: what is done to images before.
        dtype: what the network computes in.
        num: images of a set, and as many real ones for precision and recall. Label agreement, precision and CLIP
            score are of all samples.
        reference: the real images.
    """

    features: str
    resize: str
    dtype: str
    num: int
    reference: str


@dataclass(frozen=True)
class Result:
    """Measures of samples by name, those of held-out real images in the same way, and what they were measured by."""

    spec: Spec
    metrics: Mapping[str, Interval]
    held_out: Mapping[str, Interval]
    samples: int

    def __str__(self) -> str:
        lines = []
        if "label_agreement" in self.metrics:
            real, found = self.held_out["label_agreement"], self.metrics["label_agreement"]
            lines += [f"classifier: {real.value:.1%} of held-out real images named right"]
            lines += [
                f"label agreement: {found.value:.1%} ({found.low:.1%} to {found.high:.1%}) of {count(self.samples, 'sample')}"
            ]
        for name, title in TITLES.items():
            if name in self.metrics:
                found, real = self.metrics[name], self.held_out[name]
                one = f"{found.value:.4g} ({found.low:.4g} to {found.high:.4g})"
                lines.append(f"{title}: {one}; held-out real images: {real.value:.4g}")
        return "\n".join(
            [*lines, f"of {count(self.spec.num, 'image')} a set, by {self.spec.features}, against {self.spec.reference}"]
        )


@dataclass(frozen=True)
class Record:
    """The result of a run's samples at a step, and how they were sampled, with so many network calls each."""

    step: int
    sampling: Mapping[str, Any]
    calls: int
    seed: int
    ema: str
    result: Result


def describe_sampling(sampling: Mapping[str, Any]) -> str:
    """How samples were made, in a few words such as `ddim 50, guidance 2`, from the fields of a config's `sampling`."""
    c = sampling
    words = [f"{c['sampler']} {c['steps']}"]
    words += [f"{c['spacing']} spacing"] if c["spacing"] != "time" else []
    words += [f"eta {c['eta']:g}"] if c["eta"] else []
    words += [f"guidance {c['guidance']:g}"]
    words += [f"by {pathlib.Path(c['classifier']).name} {c['classifier_scale']:g}"] if c["classifier"] else []
    return ", ".join(words)


def write_record(path: pathlib.Path, evaluation: Record) -> None:
    """Writes an evaluation as JSON, in place of what is there."""
    found = {field.name: getattr(evaluation, field.name) for field in dataclasses.fields(Record) if field.name != "result"}
    result = evaluation.result
    found |= {"samples": result.samples, "spec": dataclasses.asdict(result.spec)}
    for name, values in (("metrics", result.metrics), ("held_out", result.held_out)):
        found[name] = {each: interval._asdict() for each, interval in values.items()}
    files.write_text(path, json.dumps(found, indent=2) + "\n")


def read_record(path: pathlib.Path) -> Record:
    """The evaluation that `write` wrote.

    Raises:
        ConfigError: the file holds none.
    """
    try:
        found = json.loads(path.read_text())
        metrics, held_out = ({n: Interval(**each) for n, each in found.pop(name).items()} for name in ("metrics", "held_out"))
        result = Result(Spec(**found.pop("spec")), metrics, held_out, found.pop("samples"))
        return Record(**found, result=result)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path} holds no evaluation; move it away, and run: jaxdiff evaluate {path.parents[1]}") from error


def results_of_run(workdir: pathlib.Path) -> list[Record]:
    """What a run's directory holds.

    Raises:
        ConfigError: nothing.
    """
    found = [read_record(path) for path in sorted((workdir / FOLDER).glob("*.json"))]
    if not found:
        raise ConfigError(f"{workdir} has no evaluations; run: jaxdiff evaluate {workdir}")
    return sorted(found, key=lambda each: -each.calls)


def check_same(specs: Mapping[str, Spec]) -> None:
    """Whether figures of all of them compare.

    Args:
        specs: by the name of what was measured.

    Raises:
        ConfigError: two differ; it names the field.
    """
    (first, wanted), *others = specs.items()
    for name, spec in others:
        for field in dataclasses.fields(Spec):
            mine, its = getattr(wanted, field.name), getattr(spec, field.name)
            if mine != its:
                raise ConfigError(
                    f"{name} and {first} do not compare: {field.name} is {its!r} of the one, {mine!r} of the other; "
                    "evaluate both in the same way"
                )


def results_table(rows: Sequence[tuple[str, Record]]) -> str:
    """Evaluations by the names of their runs as a table in Markdown, each measure with its interval, held-out images last.

    Raises:
        ConfigError: they do not compare.
    """
    check_same({f"{name} ({describe_sampling(each.sampling)})": each.result.spec for name, each in rows})
    results = [each.result for _, each in rows]
    names = [name for name in HEADS if any(name in result.metrics for result in results)]
    lines = [f"| run | sampling | network calls | {' | '.join(HEADS[name] for name in names)} |", "|---" * (len(names) + 3) + "|"]
    for name, each in rows:
        lines.append(f"| {name} | {describe_sampling(each.sampling)} | {each.calls} | {_cells(each.result.metrics, names)} |")
    real = {name: interval for result in results for name, interval in result.held_out.items()}
    lines.append(f"| real held-out images | | | {_cells(real, names)} |")
    spec = results[0].spec
    by = f"features of {spec.features}; resize {spec.resize}; {spec.dtype}"
    return "\n".join([*lines, "", f"{count(spec.num, 'image')} a set, against {spec.reference}. By {by}."])


def _cells(metrics: Mapping[str, Interval], names: Sequence[str]) -> str:
    return " | ".join(_cell(name, metrics[name]) if name in metrics else "" for name in names)


def _cell(name: str, found: Interval) -> str:
    scale, how = {"kid": (1, ".3g"), "label_agreement": (100, ".1f"), "fid": (1, ".2f"), "clip_score": (1, ".2f")}.get(
        name, (1, ".3f")
    )
    value, low, high = (format(scale * each, how) for each in found)  # of KID the scale is that of the features, cubed
    return f"{value} ({low}, {high})"
