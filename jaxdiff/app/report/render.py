"""The page: its parts, put into `page.html`."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

import jinja2

from jaxdiff.app.report import curves, environment, quality, settings
from jaxdiff.app.report.images import whole_image
from jaxdiff.app.report.run_record import read_runs
from jaxdiff.app.report.sections import TRIED, section
from jaxdiff.io import files, progress
from jaxdiff.io.errors import ConfigError


def write_report(workdirs: Sequence[pathlib.Path], out: pathlib.Path, num: int = 50, data_dir: str | None = None) -> None:
    """Writes one self-contained HTML page about runs to `out`, whole or not at all, and its pictures to their TensorBoards.

    `num` samples of each newest checkpoint are drawn as its config says, for the pictures of samples, of how some came out of
    noise, and of their nearest training images; 0 is none of these. What a run lacks is left out, with a line that says why.

    Raises:
        ConfigError: a directory holds no run, or one is given twice, or `out` cannot be written.
    """
    records = read_runs(workdirs)
    try:
        files.write_text(out.with_suffix(".draft"), "")  # before what takes long
        out.with_suffix(".draft").unlink()
    except OSError as error:
        raise ConfigError(f"{out} cannot be written ({error.strerror}); choose another --out") from error
    measured, found = quality.groups(records), settings.groups(records)
    with progress.bar(TRIED * len(records), "report", "part") as bar:
        parts = [section(record, measured, num, data_dir, bar.update) for record in records]
    page = _template().render(
        parts=parts,
        title=", ".join(record.name for record in records),
        curves=curves.metrics(records),
        key={record.name: curves.COLOURS[number % len(curves.COLOURS)] for number, record in enumerate(records)},
        quality=measured,
        settings={kind: settings.select(found, kind) for kind in ("differ", "set", "default")},
        environment=environment.environment(),
    )
    files.write_text(out, page)


def _template() -> jinja2.Template:
    room = jinja2.Environment(
        loader=jinja2.PackageLoader("jaxdiff.app.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    room.filters |= {"image": whole_image, "figure": quality.figure}
    room.globals |= {"names": quality.NAMES}
    return room.get_template("page.html")
