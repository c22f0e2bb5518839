"""Where a run's scalars and images go besides metrics.jsonl: TensorBoard, Weights & Biases, or a sink of the user's own."""

from __future__ import annotations

import importlib.util
import logging
import os
import pathlib
import secrets
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from jaxdiff.io import files
from jaxdiff.io.errors import ConfigError, first_line
from jaxdiff.io.user_files import run_file

if TYPE_CHECKING:
    from tensorboardX import SummaryWriter

log = logging.getLogger(__name__)


class Run(NamedTuple):
    """What a sink is opened for."""

    workdir: pathlib.Path
    folder: pathlib.Path
    """On the disk; what is written here ends up in `workdir`, which may be in a bucket."""
    start: int
    """The step that training goes on from."""
    config: Mapping[str, Any]


class Sink(NamedTuple):
    """Three functions, or an object with these methods; an error in one of them stops the sink, never the training."""

    scalars: Callable[[int, Mapping[str, float]], None]
    """Takes a step, and values by their names."""
    image: Callable[[int, str, np.ndarray], None]
    """Takes a step, a name, and pixels uint8 `[H, W, C]`."""
    close: Callable[[], None]


Factory = Callable[[Run], Sink]


def event_writer(folder: pathlib.Path, purge_step: int | None = None) -> SummaryWriter:
    """Writes a new event file of TensorBoard in `folder / "tensorboard"`; from `purge_step` on it replaces those before it."""
    from tensorboardX import SummaryWriter

    suffix = f".{time.time_ns()}"  # its own names tell files apart by the second
    return SummaryWriter(str(folder / "tensorboard"), purge_step=purge_step, filename_suffix=suffix)


def tensorboard(run: Run) -> Sink:
    """Event files in the run's folder `tensorboard`; steps that are taken again after a resume replace the first ones."""
    board = event_writer(run.folder, run.start + 1)

    def scalars(step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            board.add_scalar(name, value, step)
        board.flush()

    return Sink(scalars, lambda step, name, pixels: board.add_image(name, pixels, step, dataformats="HWC"), board.close)


def wandb(run: Run) -> Sink:
    """A run of Weights & Biases in the project WANDB_PROJECT, or `jaxdiff`; a resumed run goes on under its id, in wandb_id.txt."""
    import wandb as client

    path = run.workdir / "wandb_id.txt"
    if not path.exists():
        files.write_text(path, secrets.token_hex(4))
    project, quiet = os.environ.get("WANDB_PROJECT", "jaxdiff"), client.Settings(silent=True, console="off")
    how: dict[str, Any] = {"id": path.read_text().strip(), "resume": "allow", "dir": run.folder, "settings": quiet}
    tracked = client.init(project=project, name=run.workdir.name, config=dict(run.config), **how)
    tracked.define_metric("*", step_metric="step")  # its own count of steps can only grow, a resumed run's goes back

    def image(step: int, name: str, pixels: np.ndarray) -> None:
        tracked.log({name: client.Image(pixels), "step": step})

    return Sink(lambda step, values: tracked.log({**values, "step": step}), image, tracked.finish)


BUILT_IN: dict[str, Factory] = {"tensorboard": tensorboard, "wandb": wandb}


def factories(names: str) -> dict[str, Factory]:
    """The factories of sinks in a list separated by commas: of `tensorboard`, `wandb` and FILE.py:NAME.

    Raises:
        ConfigError: there is no such sink, or what it needs is not installed.
    """
    return {name: _factory(name) for part in names.split(",") if (name := part.strip())}


def _factory(name: str) -> Factory:
    path, _, function = name.rpartition(":")
    if path:
        defined = run_file(path, "my_sink")
        if function not in defined:
            raise ConfigError(f"--log {name}: there is no {function}")
        return defined[function]
    if name not in BUILT_IN:
        raise ConfigError(f"--log: no sink {name!r}; write {', '.join(BUILT_IN)} or path/to/file.py:my_sink, separated by commas")
    if name == "wandb" and importlib.util.find_spec("wandb") is None:
        raise ConfigError('--log wandb: Weights & Biases is not installed; run: pip install "jaxdiff[wandb]"')
    return BUILT_IN[name]


def open_sinks(made: Mapping[str, Factory], run: Run) -> Sink:
    """One sink that passes all on to those of the factories. One that fails is left out from then on, with a warning."""
    sinks: dict[str, Sink] = {}

    def attempt(name: str, action: Callable[..., Any], *args: Any) -> Any:
        try:
            return action(*args)
        except Exception as error:  # of a network, a disk, the user's own code: training goes on
            log.warning("--log %s failed, and gets nothing from now on: %s: %s", name, type(error).__name__, first_line(error))
            sinks.pop(name, None)

    def scalars(step: int, values: Mapping[str, float]) -> None:
        for name, sink in list(sinks.items()):
            attempt(name, sink.scalars, step, values)

    def image(step: int, title: str, pixels: np.ndarray) -> None:
        for name, sink in list(sinks.items()):
            attempt(name, sink.image, step, title, pixels)

    def close() -> None:
        for name, sink in list(sinks.items()):
            attempt(name, sink.close)

    for name, factory in made.items():
        if (sink := attempt(name, factory, run)) is not None:
            sinks[name] = sink
    return Sink(scalars, image, close)
