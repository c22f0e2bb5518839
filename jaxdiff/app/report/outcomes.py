"""What a run ends with besides samples, and its key figures."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
from markupsafe import Markup

from jaxdiff import evaluate
from jaxdiff.app import build
from jaxdiff.app.config import STUDENTS, network_calls
from jaxdiff.app.report import quality
from jaxdiff.app.report.curves import COLOURS, Line, plot, png
from jaxdiff.app.report.run_record import RunRecord, read_json
from jaxdiff.app.runs.finish import finish_run
from jaxdiff.app.runs.sources import source_configs
from jaxdiff.io.errors import UserError

WRITTEN = {"vae": "reconstructions.png", "autoencoder": "reconstruction.json", "classifier": "accuracy.json"}  # at the end
CAPTIONS = {
    "samples": "samples at the end of training",
    "reconstructions": "held-out images, each row above a row of its reconstructions",
    "interpolations": "straight lines between the codes of two held-out images",
}


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
    if rows := sorted(read_json(workdir / "accuracy.json").get("levels", []), key=lambda row: row["logsnr"]):
        x, y = [row["logsnr"] for row in rows], [row["accuracy"] for row in rows]
        curve = plot([Line("accuracy", COLOURS[0], x, y, marker="o")], "logsnr", "accuracy")
        shown = tuple((f"logsnr {logsnr:.1f}", f"{accuracy:.1%}") for logsnr, accuracy in zip(x, y, strict=True))
        ends.append(Outcome("Accuracy on held-out images, by how noisy they are", plot=curve, figures=shown))
    if estimates := read_json(workdir / "likelihood.json").get("estimates", {}):
        text = "{value:.3f} ± {standard_error:.3f} {unit}"
        shown = tuple((name, text.format(**each)) for name, each in estimates.items())
        ends.append(Outcome("Likelihood, with its standard error", figures=shown))
    return ends


def figures(record: RunRecord, measured: Sequence[quality.Group]) -> dict[str, str]:
    """The run in a few figures, by name."""
    c, latest = record.config, record.metrics[-1] if record.metrics else {}
    shown = {"trains": c.objective, "data": f"{c.data.name}, {' x '.join(map(str, c.data.image_shape))}"}
    shown["training"] = f"step {record.step:,} of {c.steps:,}" if record.step else "no checkpoint yet"
    shown |= {"images seen": f"{record.step * c.data.batch_size:,}", "parameters": _size(record)}
    if "loss" in latest:
        shown["last loss"] = f"{latest['loss']:.4g}"
    if c.objective in ("diffusion", *STUDENTS):
        shown |= {"sampled by": evaluate.describe_sampling(vars(c.sampling)), "network calls": str(network_calls(c))}
    shown |= _best(record, measured)
    rebuilt = read_json(record.workdir / "reconstruction.json")
    if "psnr" in rebuilt:
        shown |= {"PSNR": f"{rebuilt['psnr']:.2f} dB", "compression": f"{rebuilt['ratio']:.3g} times fewer numbers"}
    if "codebook_usage" in rebuilt:
        shown["codes used"] = f"{rebuilt['codebook_usage']:.1%}"
    return {name: value for name, value in shown.items() if value}


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
