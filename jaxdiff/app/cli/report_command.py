"""`jaxdiff report`: its flags, and what it does."""

from __future__ import annotations

import pathlib
from dataclasses import dataclass

import tyro

from jaxdiff.io.errors import ConfigError


@dataclass(frozen=True)
class Report:
    """Write one HTML page about a run, or about several side by side; it needs no network and no server.

    Example: jaxdiff report runs/digits
    """

    runs: tyro.conf.Positional[tuple[pathlib.Path, ...]]
    """The runs' directories."""
    out: pathlib.Path | None = None
    """An .html file; report.html in the run, or of several runs beside the first, if not given."""
    num: int = 50
    """Samples to draw from each newest checkpoint, for pictures of them and of their nearest training images; 0: none."""
    data_dir: str | None = None
    """tensorflow-datasets' directory; its own default if not given."""


def report(args: Report) -> int:
    """`jaxdiff report`: the exit status."""
    if not args.runs:
        raise ConfigError("report needs a run: jaxdiff report runs/digits")
    if args.num < 0:
        raise ConfigError(f"--num must be at least 0, got {args.num}")
    alone = len(args.runs) == 1
    out = args.out or (args.runs[0] if alone else args.runs[0].resolve().parent) / "report.html"
    if out.suffix != ".html":
        raise ConfigError(f"--out {out}: write a name that ends in .html")
    from jaxdiff.app import report as page

    page.write_report(args.runs, out, args.num, args.data_dir)
    print(out)
    return 0
