"""Curves as SVG that stands in a page and takes the page's colours, and pictures as data URIs."""

import base64
import io
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup
from PIL import Image

from jaxdiff.app.report.run_record import RunRecord

COLOURS = ("#3b7dd8", "#e0792b", "#2e9d63", "#b558b8", "#c9453e", "#8b7a1c")  # visible on white and on black
COLOURS += ("#2d9aa8", "#7a6ad8", "#7d858d", "#d4508f", "#6a9a1f", "#a0643c")
INK = "#010203"  # stands for the page's own colour of text
SIZE = (4.3, 2.7)  # inches; on a phone text keeps its size
MOST = 400  # points of a line; of more, neighbours are averaged
SPAN = 10.0  # highest over lowest value from which an axis is logarithmic
FIRST = ("loss", "psnr", "accuracy")  # then the others by name


class Line(NamedTuple):
    """A line: its name, colour, points, ends of their error bars if they have any, and a marker."""

    name: str
    colour: str
    x: Sequence[float] | np.ndarray
    y: Sequence[float] | np.ndarray
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    marker: str = ""


def colours(names: Iterable[str]) -> dict[str, str]:
    """A colour for each name, as long as there are any; then they begin again."""
    return {name: COLOURS[number % len(COLOURS)] for number, name in enumerate(dict.fromkeys(names))}


def metrics(records: Sequence[RunRecord]) -> dict[str, Markup]:
    """A plot of each metric over the steps, with a line a run."""
    names = {name for record in records for row in record.metrics for name in row} - {"step"}
    key, plots = colours(record.name for record in records), {}
    for name in sorted(names, key=lambda name: (FIRST.index(name) if name in FIRST else len(FIRST), name)):
        lines = [Line(record.name, key[record.name], *_points(record.metrics, name)) for record in records]
        if drawn := [line for line in lines if len(line.x)]:
            plots[name] = plot(drawn, "step", name.replace("_", " "))
    return plots


def _points(rows: Sequence[Mapping[str, float]], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and finite values of a metric; of a long run means of neighbours."""
    points = [(row["step"], row[name]) for row in rows if isinstance(row.get(name), int | float) and math.isfinite(row[name])]
    parts = np.array_split(np.array(points, np.float64), min(MOST, len(points))) if points else []
    means = np.array([part.mean(axis=0) for part in parts]).reshape(-1, 2)
    return means[:, 0], means[:, 1]


def plot(lines: Sequence[Line], across: str, up: str, level: float | None = None, log_across: bool = False) -> Markup:
    """The lines as SVG, with a dashed level if given; logarithmic where values are far apart."""
    import matplotlib as mpl
    import matplotlib.figure as figures

    style: Any = {"svg.fonttype": "none", "svg.hashsalt": up, "font.family": "sans-serif", "font.size": 9.0}
    ink = dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK)
    with mpl.rc_context(style | ink | {"axes.spines.top": False, "axes.spines.right": False}):
        figure = figures.Figure(figsize=SIZE, layout="constrained")
        axes = figure.subplots()
        for line in lines:
            marker = line.marker or ("o" if len(line.x) < 3 else "")
            axes.plot(line.x, line.y, color=line.colour, label=line.name, marker=marker, markersize=4, linewidth=1.6)
            if len(line.low):
                axes.vlines(line.x, line.low, line.high, color=line.colour, linewidth=1)
        if level is not None:
            axes.axhline(level, color=INK, linewidth=1, linestyle=(0, (4, 3)))
        _scale(axes, [*([] if level is None else [level]), *(each for line in lines for each in (*line.y, *line.low, *line.high))])
        if log_across:
            ticks = sorted({each for line in lines for each in line.x})
            axes.set_xscale("log", base=2)
            axes.set_xticks(ticks, [f"{each:g}" for each in ticks])
            axes.xaxis.minorticks_off()
        axes.set_xlabel(across)
        axes.set_title(up, fontsize=10, loc="left", parse_math=False)
        axes.grid(color=INK, alpha=0.12, linewidth=0.6)
        return inline(figure, name=f"{across} {up}")


def _scale(axes: Any, values: Sequence[float]) -> None:
    """A logarithmic axis with numbers as people write them, where values are far apart."""
    from matplotlib import ticker

    if min(values) > 0 and max(values) / min(values) >= SPAN:
        axes.set_yscale("log")
        subs = (1, 2, 5) if max(values) / min(values) < SPAN**3 else (1,)
        axes.yaxis.set_major_locator(ticker.LogLocator(subs=subs))
        axes.yaxis.set_major_formatter(lambda value, place: f"{value:g}")
        axes.yaxis.set_minor_locator(ticker.NullLocator())


def inline(figure: Any, name: str) -> Markup:
    """A figure as an SVG element: transparent, in the page's colour of text, with ids of its own."""
    text = io.StringIO()
    figure.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]
    prefix = re.sub(r"\W+", "_", name)
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{prefix}-", svg)
    svg = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", svg)  # HTML knows what svg is
    svg = re.sub(r"<metadata>.*?</metadata>|<style[^>]*>.*?</style>", "", svg, flags=re.DOTALL)  # which would style the page
    label = f'role="img" aria-label="{Markup.escape(name)}"'
    svg = re.sub(r'<svg([^>]*?) width="[^"]*"', lambda match: f"<svg{match[1]} {label}", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    return Markup(svg.replace(INK, "currentColor"))


def png(data: bytes) -> str:
    """A PNG file as a data URI."""
    return "data:image/png;base64," + base64.b64encode(data).decode()


def pixels(picture: np.ndarray) -> str:
    """A uint8 picture `[H, W, C]` as a data URI."""
    buffer = io.BytesIO()
    Image.fromarray(picture.squeeze(-1) if picture.shape[-1] == 1 else picture).save(buffer, format="PNG", optimize=True)
    return png(buffer.getvalue())
