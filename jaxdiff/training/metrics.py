"""Metrics of a run: JSON lines, and what sinks make of them."""

from __future__ import annotations

import contextlib
import json
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from jaxdiff.io import files, paths, uploads
from jaxdiff.training import distributed
from jaxdiff.training.sinks import Factory, Run, event_writer, open_sinks

Write = Callable[[int, Mapping[str, float]], None]


@contextlib.contextmanager
def writer(
    workdir: pathlib.Path, start: int, made: Mapping[str, Factory], config: Mapping[str, Any]
) -> Iterator[tuple[Write, Callable[[int, np.ndarray], None], Callable[[], None]]]:
    """Three functions: for metrics and for a picture `[H, W, C]`, both at a step, and one that brings all to a bucket.

    The sinks of the factories `made` get metrics and pictures too. Lines of `metrics.jsonl` after the step `start` are dropped
    first: a resumed run writes them again. Call the third before a checkpoint, or a run that resumes from it may lack lines. Of
    several processes the first alone writes.
    """
    if not distributed.is_first():
        yield lambda step, values: None, lambda step, pixels: None, lambda: None
        return
    with uploads.uploaded_folder(paths.path(workdir)) as (folder, upload):
        path = folder / "metrics.jsonl"
        _cut(paths.path(workdir) / path.name, path, start)
        sink = open_sinks(made, Run(paths.path(workdir), folder, start, config))

        def write(step: int, values: Mapping[str, float]) -> None:
            with path.open("a") as file:
                file.write(json.dumps({"step": step, **values}) + "\n")
            sink.scalars(step, values)

        try:
            yield write, lambda step, pixels: sink.image(step, "samples", pixels), upload
        finally:
            sink.close()


def write_pictures(workdir: pathlib.Path, step: int, shown: Mapping[str, np.ndarray]) -> None:
    """Adds pictures `[H, W, C]` by their names to a run's TensorBoard, at a step."""
    with uploads.uploaded_folder(paths.path(workdir)) as (folder, _), event_writer(folder) as board:
        for name, pixels in shown.items():
            board.add_image(name, pixels, step, dataformats="HWC")


def _cut(source: pathlib.Path, target: pathlib.Path, start: int) -> None:
    if not source.exists():
        return
    lines = source.read_bytes().decode(errors="replace").splitlines(keepends=True)
    files.write_text(target, "".join(line for line in lines if line.endswith("\n") and 0 <= _step(line) <= start))


def _step(line: str) -> int:
    """The step of a line of metrics; of one that is damaged -1."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return -1
