"""What the page shows of each run: each picture is tried, and what cannot be had is said."""

from __future__ import annotations

import logging
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxdiff import data
from jaxdiff.app.config import STUDENTS
from jaxdiff.app.report import neighbours, outcomes, quality, strips
from jaxdiff.app.report.images import grid_file, pixels
from jaxdiff.app.report.run_record import RunRecord
from jaxdiff.io import pictures
from jaxdiff.io.errors import UserError
from jaxdiff.training import metrics

log = logging.getLogger(__name__)

GRIDS = 6  # of samples over training, at most
TRIED = 4  # what a run is tried for: what it ends with, samples, their ways, their nearest images
DENOISE = ("diffusion", *STUDENTS)


class Part(NamedTuple):
    """A run: key figures, what it ends with, pictures as (caption, data URI), what is drawn of it, and what had to be left out."""

    record: RunRecord
    figures: dict[str, str]
    outcomes: list[outcomes.Outcome]
    grids: list[tuple[str, str]]
    samples: tuple[str, str] | None
    strips: strips.Strips | None
    neighbours: neighbours.Neighbours | None
    missing: list[str]


def section(record: RunRecord, measured: Sequence[quality.Group], num: int, data_dir: str | None, done: Callable[[], Any]) -> Part:
    """The part of a run; `done` is called TRIED times. Its pictures go to its TensorBoard too."""
    missing: list[str] = []

    def tried(what: str, make: Callable[[], Any]) -> Any:
        try:
            return make()
        except UserError as error:
            log.warning("%s of %s left out: %s", what, record.name, error)
            missing.append(f"{what}: {error}")
            return None
        finally:
            done()

    objective = record.config.objective
    draws = num > 0 and record.step > 0 and objective in (*DENOISE, "vae")
    ends = tried("results", lambda: outcomes.outcomes(record, data_dir)) or []
    step, images = tried("samples", lambda: strips.samples(record, num, data_dir) if draws else None) or (0, None)
    ways = tried("denoising", lambda: strips.denoising_strips(record, data_dir) if step and objective in DENOISE else None)
    near = tried("nearest training images", lambda: _neighbours(record, images, data_dir) if images is not None else None)
    samples = None
    if images is not None:
        grid = pictures.grid(images, min(record.config.model.num_classes, 10) or 10)
        how = quality.describe_sampling(vars(record.config.sampling)) if objective in DENOISE else "decoded from the prior"
        samples = f"drawn for this page from step {step:,}: {how}", pixels(grid)
        _to_tensorboard(record, grid, ways, near)
    figures = outcomes.figures(record, measured)
    return Part(record, figures, ends, list(_grids(record.workdir / "samples")), samples, ways, near, missing)


def _neighbours(record: RunRecord, samples: np.ndarray, data_dir: str | None) -> neighbours.Neighbours:
    c = record.config.data
    train, test = (data.load_images(c, split, data_dir) for split in (c.split, c.held_out))
    return neighbours.compare(samples, train, test, c.flip)


def _grids(folder: pathlib.Path) -> Iterator[tuple[str, str]]:
    """Captions and pictures of what training drew: some grids over its steps, and those at the ends of rounds."""
    steps, rounds = _numbered(folder, "step_"), _numbered(folder, "steps_")
    numbers = sorted(steps)
    for place in np.linspace(0, len(numbers) - 1, min(GRIDS, len(numbers))).round().astype(int):
        yield f"training step {numbers[place]:,}", grid_file(steps[numbers[place]])
    for number in sorted(rounds, reverse=True):
        yield f"student of {number} step{'s' if number > 1 else ''}", grid_file(rounds[number])


def _numbered(folder: pathlib.Path, prefix: str) -> dict[int, pathlib.Path]:
    named = {path.stem.removeprefix(prefix): path for path in folder.glob(f"{prefix}*.png")}
    return {int(number): path for number, path in named.items() if number.isdecimal()}


def _to_tensorboard(record: RunRecord, grid: np.ndarray, ways: strips.Strips | None, near: neighbours.Neighbours | None) -> None:
    shown = {"report/samples": grid}
    if ways is not None:
        shown["report/denoising"] = pictures.grid(np.concatenate(ways.rows), columns=len(ways.after))
    if near is not None:
        rows = np.concatenate([near.samples[: len(near.images), None], near.images], axis=1)
        shown["report/nearest_training_images"] = pictures.grid(np.concatenate(rows), columns=rows.shape[1])
    try:
        metrics.write_pictures(record.workdir, record.step, shown)
    except OSError as error:  # a run that cannot be written to can be read
        log.warning("pictures were not added to the TensorBoard of %s: %s", record.name, error)
