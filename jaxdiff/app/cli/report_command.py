"""`jaxdiff report`: its flags, and what it does."""

import pathlib
from dataclasses import dataclass

import tyro

from jaxdiff.app.cli.arguments import check_bounds
from jaxdiff.app.cli.flags import DataDir
from jaxdiff.io import paths
from jaxdiff.io.errors import ConfigError


@dataclass(frozen=True)
class Report:
    """Write an HTML page about a run, or about several side by side; it can be viewed offline.

    Example: jaxdiff report runs/digits
    """

    runs: tyro.conf.Positional[tuple[pathlib.Path, ...]]
    """Directories of runs."""
    out: pathlib.Path | None = None
    """An .html file; by default report.html in the run, or next to the first of several runs."""
    num: int = 50
    """Samples to draw from the last checkpoint of each run, shown with their nearest training images; 0: none."""
    data_dir: DataDir = None


def report(args: Report) -> int:
    from jaxdiff.app.report import render

    if not args.runs:
        raise ConfigError("report needs a run: jaxdiff report runs/digits")
    check_bounds(args, num=0)
    out = args.out or (paths.resolved(args.runs[0]).parent if args.runs[1:] else args.runs[0]) / "report.html"
    if out.suffix != ".html":
        raise ConfigError(f"--out {out}: write a name that ends in .html")
    render.write_report(args.runs, out, args.num, args.data_dir)
    print(out)
    return 0
