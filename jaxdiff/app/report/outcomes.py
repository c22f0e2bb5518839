"""What a run ends with besides samples, and its key figures."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
from markupsafe import Markup

from jaxdiff.app import build
from jaxdiff.app.config import STUDENTS
from jaxdiff.app.report import quality
from jaxdiff.app.report.curves import COLOURS, Line, plot
from jaxdiff.app.report.images import grid_file
from jaxdiff.app.report.run_record import RunRecord, read_json
from jaxdiff.app.runs import finish as reports
from jaxdiff.app.runs.sources import source_configs
from jaxdiff.io.errors import UserError

FINISH: dict[str, tuple[str, Callable[..., str]]] = {  # a file that says that it has been done, and what does it
    "vae": ("reconstructions.png", reports.finish_vae),
    "autoencoder": ("reconstruction.json", reports.finish_autoencoder),
    "classifier": ("accuracy.json", reports.finish_classifier),
}
CAPTIONS = {
    "reconstructions": "held-out images, each row above a row of its reconstructions",
    "interpolations": "straight lines between the codes of two held-out images",
    "samples": "samples at the end of training",
}


class Outcome(NamedTuple):
    """A picture (a data URI) or a plot with its caption, and figures by name."""

    caption: str
    image: str = ""
    plot: Markup = Markup()
    figures: tuple[tuple[str, str], ...] = ()


def outcomes(record: RunRecord, data_dir: str | None = None) -> list[Outcome]:
    """What a run's end has written; made now where the run is trained to its end and has none.

    Raises:
        UserError: it cannot be made.
    """
    config, workdir = record.config, record.workdir
    mark, finish = FINISH.get(config.objective, ("", None))
    if finish and record.step >= config.steps and not (workdir / mark).exists():
        finish(config, workdir, data_dir=data_dir)
    names = ("samples", *CAPTIONS) if config.objective in FINISH else ("samples",)
    pictures = [(name, workdir / f"{name}.png") for name in dict.fromkeys(names)]
    endings = [Outcome(CAPTIONS[name], image=grid_file(path)) for name, path in pictures if path.is_file()]
    return [*endings, *_accuracy(workdir), *_likelihood(workdir)]


def _accuracy(workdir: pathlib.Path) -> list[Outcome]:
    rows = sorted(read_json(workdir / "accuracy.json").get("levels", []), key=lambda row: row["logsnr"])
    if not rows:
        return []
    line = Line("accuracy", COLOURS[0], [row["logsnr"] for row in rows], [row["accuracy"] for row in rows], marker="o")
    shown = tuple((f"logsnr {row['logsnr']:.1f}", f"{row['accuracy']:.1%}") for row in rows)
    return [Outcome("Held-out images named right, by how noisy they are", plot=plot([line], "logsnr", "accuracy"), figures=shown)]


def _likelihood(workdir: pathlib.Path) -> list[Outcome]:
    estimates = read_json(workdir / "likelihood.json").get("estimates", {})
    shown = tuple((name, f"{each['value']:.3f} ± {each['standard_error']:.3f} {each['unit']}") for name, each in estimates.items())
    return [Outcome("Likelihood, with its standard error", figures=shown)] if shown else []


def figures(record: RunRecord, measured: Sequence[quality.Group]) -> dict[str, str]:
    """The run in a few figures, by name."""
    c, latest = record.config, record.metrics[-1] if record.metrics else {}
    shape = " x ".join(map(str, c.data.image_shape))
    found = {"trains": c.objective, "data": f"{c.data.name}, {shape}"}
    found["training"] = f"step {record.step:,} of {c.steps:,}" if record.step else "no checkpoint yet"
    found |= {"images seen": f"{record.step * c.data.batch_size:,}", "parameters": _size(record)}
    if "loss" in latest:
        found["last loss"] = f"{latest['loss']:.4g}"
    if c.objective in ("diffusion", *STUDENTS):
        found["sampled by"] = quality.describe_sampling(vars(c.sampling))
        found["network calls"] = str(quality.calls_of(c, vars(c.sampling)))
    found |= _best(record, measured)
    rebuilt = read_json(record.workdir / "reconstruction.json")
    if "psnr" in rebuilt:
        found |= {"PSNR": f"{rebuilt['psnr']:.2f} dB", "compression": f"{rebuilt['ratio']:.3g} times fewer numbers"}
    if "codebook_usage" in rebuilt:
        found["codes used"] = f"{rebuilt['codebook_usage']:.1%}"
    return {name: value for name, value in found.items() if value}


def _best(record: RunRecord, measured: Sequence[quality.Group]) -> dict[str, str]:
    """The run's lowest distance and the calls that it takes: its FID, or in the measurement that has most of its samplers."""
    for name in ("fid", "frechet"):
        rows = [[row for row in group.rows if row.run == record.name and name in row.measures] for group in measured]
        if mine := max(rows, key=len, default=[]):
            best = min(mine, key=lambda row: row.measures[name].value)
            calls = f"{best.calls} call{'s' if best.calls > 1 else ''}"
            return {f"best {quality.NAMES[name]}": f"{best.measures[name].value:.2f} with {calls}"}
    return {}


def _size(record: RunRecord) -> str:
    try:
        sources = source_configs(record.config, record.workdir, ("autoencoder",))
        shapes: Any = build.state_shapes(record.config, sources).params
    except UserError:
        return ""
    number = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    return f"{number / 1e6:.3g} million" if number >= 1e5 else f"{number:,}"
