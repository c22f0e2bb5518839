"""The page: each part of it is tried for each run, and put into `page.html`; what cannot be made is named there."""

import collections
import contextlib
import datetime
import importlib.metadata
import logging
import pathlib
import platform
import subprocess
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jinja2
import numpy as np

import jaxdiff
from jaxdiff import data, evaluate
from jaxdiff.app import build
from jaxdiff.app.config import DENOISERS
from jaxdiff.app.report import curves, neighbours, quality
from jaxdiff.app.report.run_record import RunRecord, read_runs, settings
from jaxdiff.app.runs import finish, storage
from jaxdiff.app.runs.sources import sampling_inputs
from jaxdiff.io import count, files, pictures, progress
from jaxdiff.io.errors import UserError
from jaxdiff.training import metrics

log = logging.getLogger(__name__)

GRIDS = 6  # of samples over training, at most
STRIPS = 4  # samples that are shown on their way
COLUMNS = 9  # pictures of each, at most
TRIED = 4  # parts of a run: outcomes, samples, denoising strips, nearest images
LIBRARIES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "tensorflow-datasets", "numpy")


class Strips(NamedTuple):
    """Noisy images of a few samples, and the denoiser's x0 of each, `[K, B, H, W, C]`, after these numbers of sampler steps.

    The last of them are all steps: there both are the samples.
    """

    noisy: np.ndarray
    clean: np.ndarray
    after: list[int]

    @property
    def rows(self) -> np.ndarray:
        """All as rows `[2 B, K, H, W, C]`: noisy and clean of the first sample, noisy and clean of the second, ..."""
        pairs = np.stack([self.noisy, self.clean], axis=1)  # [K, 2, B, ...]
        return pairs.transpose(2, 1, 0, 3, 4, 5).reshape(-1, len(pairs), *pairs.shape[3:])


def write_report(workdirs: Sequence[pathlib.Path], out: pathlib.Path, num: int = 50, data_dir: str | None = None) -> None:
    """Writes one self-contained HTML page about runs to `out`, whole or not at all, and its pictures to their TensorBoards.

    `num` samples of each newest checkpoint are drawn as its config says, for the pictures of samples, of how some came out of
    noise, and of their nearest training images; 0 is none of these. What a run lacks is left out, with a line that says why.
    """
    records = read_runs(workdirs)
    files.check_writable(out, "--out")
    measured = quality.groups(records)
    with progress.bar(TRIED * len(records), "report", "part") as bar:
        parts = [_part(record, measured, num, data_dir, bar.update) for record in records]
    loader = jinja2.PackageLoader("jaxdiff.app.report", ".")
    strict: Any = {"autoescape": True, "undefined": jinja2.StrictUndefined}
    template = jinja2.Environment(loader=loader, trim_blocks=True, lstrip_blocks=True, **strict)
    template.filters |= {"image": lambda image: curves.pixels(pictures.to_uint8(image)), "figure": quality.format_measure}
    page = template.get_template("page.html").render(
        parts=parts,
        title=", ".join(record.name for record in records),
        curves=curves.metrics(records),
        key=curves.colours(record.name for record in records),
        quality=measured,
        names=quality.NAMES,
        settings=settings(records),
        environment=environment(),
    )
    files.write_text(out, page)


def _part(
    record: RunRecord, measured: Sequence[quality.Group], num: int, data_dir: str | None, done: Callable[[], Any]
) -> dict[str, Any]:
    """What `page.html` shows of a run; `done` is called TRIED times. Its pictures go to its TensorBoard too."""
    missing: list[str] = []

    def tried(what: str, wanted: bool, make: Callable[[], Any]) -> Any:
        try:
            return make() if wanted else None
        except UserError as error:
            log.warning("%s of %s left out: %s", what, record.name, error)
            missing.append(f"{what}: {error}")
        finally:
            done()

    def compare() -> neighbours.Neighbours:
        train, test = (data.load_images(c.data, split, data_dir) for split in (c.data.split, c.data.held_out))
        return neighbours.compare(np.asarray(images), train, test, c.data.flip)

    c, denoises = record.config, record.config.objective in DENOISERS
    ends = tried("results", True, lambda: quality.outcomes(record, data_dir)) or []
    draws = num > 0 and record.step > 0 and (denoises or c.objective == "vae")
    step, images = tried("samples", draws, lambda: finish.draw_samples(c, record.workdir, num, data_dir)[:2]) or (0, None)
    ways = tried("denoising", step > 0 and denoises, lambda: denoising_strips(record, data_dir))
    near = tried("nearest training images", images is not None, compare)
    samples = None
    if images is not None:
        grid = pictures.grid(images, min(c.model.num_classes, 10) or 10)
        how = evaluate.describe_sampling(vars(c.sampling)) if denoises else "decoded from the prior"
        samples = f"drawn for this page from step {step:,}: {how}", curves.pixels(grid)
        _to_tensorboard(record, grid, ways, near)
    grids, figures = list(_grids(record.workdir / "samples")), quality.key_figures(record, measured)
    shown = {"record": record, "figures": figures, "outcomes": ends, "grids": grids, "samples": samples}
    return shown | {"strips": ways, "neighbours": near, "missing": missing}


def denoising_strips(record: RunRecord, data_dir: str | None = None, num: int = STRIPS) -> Strips:
    """The way from noise to the first `num` samples that `finish.draw_samples` gives."""
    config, workdir = record.config, record.workdir
    sources, frozen = sampling_inputs(config, workdir)
    trained, (_, params) = storage.read_levels(config, workdir), storage.read_params(config, workdir)
    given = {"index": np.arange(num), **finish.conditions(config, record.workdir, num, data_dir)}
    walk = jax.jit(build.denoising_trajectory(config, sources, trained, COLUMNS))
    noisy, clean = walk(params, jax.random.key(config.seed), given, frozen)
    return Strips(np.asarray(noisy), np.asarray(clean), build.evenly_spaced_steps(config.sampling.steps, COLUMNS))


def _grids(folder: pathlib.Path) -> Iterator[tuple[str, str]]:
    """Captions and pictures of what training drew: some grids over its steps, and those at the ends of rounds."""
    steps, rounds = _numbered(folder, "step_"), _numbered(folder, "steps_")
    numbers = sorted(steps)
    for place in np.linspace(0, len(numbers) - 1, min(GRIDS, len(numbers))).round().astype(int):
        yield f"training step {numbers[place]:,}", curves.png(steps[numbers[place]].read_bytes())
    for number in sorted(rounds, reverse=True):
        yield f"student of {count(number, 'step')}", curves.png(rounds[number].read_bytes())


def _numbered(folder: pathlib.Path, prefix: str) -> dict[int, pathlib.Path]:
    named = {path.stem.removeprefix(prefix): path for path in folder.glob(f"{prefix}*.png")}
    return {int(number): path for number, path in named.items() if number.isdecimal()}


def _to_tensorboard(record: RunRecord, grid: np.ndarray, ways: Strips | None, near: neighbours.Neighbours | None) -> None:
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


def environment() -> dict[str, str]:
    """Versions, devices and time, by name; without what is unknown."""
    devices = collections.Counter(device.device_kind for device in jax.devices())
    shown = {
        "made": datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        "devices": f"{', '.join(f'{number} x {kind}' for kind, number in devices.items())} ({jax.default_backend()} backend)",
        "jaxdiff": jaxdiff.__version__,
        "jaxdiff's git commit": _commit(),
        "Python": platform.python_version(),
    }
    for name in LIBRARIES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            shown[name] = importlib.metadata.version(name)
    shown["system"] = f"{platform.system()} {platform.release()}, {platform.machine()}"
    return {name: value for name, value in shown.items() if value}


def _commit() -> str:
    """The commit of the repository that the package is run from; empty where it is none."""
    package = pathlib.Path(jaxdiff.__file__).parents[1]
    if not (package / ".git").exists():
        return ""
    git = ["git", "-C", str(package), "describe", "--always", "--exclude=*", "--abbrev=12", "--dirty= with changes"]
    try:
        return subprocess.run(git, capture_output=True, text=True, timeout=10).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""
