"""A cache of latents: the images of a data set encoded once by a frozen autoencoder, for training diffusion in its latents.

It keeps the moments of each posterior, so that every epoch samples afresh.
"""

from __future__ import annotations

import pathlib
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import grain
import jax
import numpy as np

from jaxdiff import data
from jaxdiff.app import build
from jaxdiff.app.config import Data
from jaxdiff.app.runs import storage
from jaxdiff.app.runs.sources import check_measured
from jaxdiff.data import latents as files
from jaxdiff.data.latents import MIRRORED, Moments, Origin, Rows
from jaxdiff.io import progress
from jaxdiff.io.errors import ConfigError, DataError, NonFiniteError
from jaxdiff.training.mesh import batch_sharding, make_mesh, replicated

CHUNK = 256  # examples read at once into memory


class Cached(NamedTuple):
    """What was written where: the examples of each split, and the bytes of all files."""

    directory: pathlib.Path
    num_examples: dict[str, int]
    num_bytes: int

    def __str__(self) -> str:
        sizes = ", ".join(f"{split} {num}" for split, num in self.num_examples.items())
        return f"latents ({sizes}; {self.num_bytes / 1e6:.1f} MB): {self.directory}"


def write_latents(
    run: pathlib.Path,
    out: pathlib.Path,
    splits: Sequence[str] = ("train",),
    *,
    data_dir: str | None = None,
    batch_size: int = 256,
    flip: bool = False,
) -> Cached:
    """Encodes splits of the data set of an autoencoder's run, in order, and writes their moments to `out`; what was written.

    Args:
        run: the autoencoder's directory, whose averaged params encode.
        out: a directory that does not exist yet.
        splits: names of splits, without slices.
        data_dir: tensorflow-datasets' directory of the images.
        batch_size: images encoded at once, over all devices of this process, which may make it a little larger.
        flip: encode the mirrored images too, for training with `data.flip`.

    Raises:
        ConfigError: `run` is no autoencoder's, `out` exists, or a split is a slice.
        CheckpointError: the autoencoder's params cannot be read.
        DataError: the images cannot be read, or the latents not written.
        NonFiniteError: a latent is no number.
    """
    run, out = pathlib.Path(run), pathlib.Path(out)
    config = storage.read_config(run, "autoencoder")
    if batch_size < 1:
        raise ConfigError(f"--batch-size must be at least 1, got {batch_size}")
    for split in splits:
        if not re.fullmatch(r"\w+", split):
            raise ConfigError(
                f"--split {split}: latents are kept of whole splits, such as train; training may take a slice of them"
            )
    files.check_free(out)
    c = config.data
    origin = Origin(storage.fingerprint(run), str(run), c.name, c.image_shape, c.fit, c.reduce, flip)
    step, params = storage.read_params(config, run)
    check_measured(config, params, step, run)
    encode, devices = _encoder(build.codec(config), params)
    size = -(-batch_size // devices) * devices
    sources = {split: data.load_images(c, split, data_dir) for split in splits}
    parts = {
        name + MIRRORED * mirrored: _encoded(encode, source, mirrored, size, name)
        for name, source in sources.items()
        for mirrored in range(1 + flip)
    }
    files.write_latents(out, parts, next(iter(sources.values())).num_classes, origin)
    num_bytes = sum(path.stat().st_size for path in out.iterdir())
    return Cached(out, {name: sources[name.removesuffix(MIRRORED)].num_examples for name in parts}, num_bytes)


def load_latents(c: Data, run: pathlib.Path) -> Moments:
    """The latents that a config's data names, for training in the latents of the autoencoder `run`.

    Raises:
        ConfigError: as `check` does.
        DataError: as `read` does.
    """
    check_latents(c, run)
    return read_latents(pathlib.Path(c.latents), c.split, c.flip)


def check_latents(c: Data, run: pathlib.Path) -> None:
    """Whether the latents that a config's data names are those of its images under the autoencoder `run`.

    Raises:
        ConfigError: they are no latents, or of another autoencoder, of other images, or without the mirrored ones.
    """
    directory = pathlib.Path(c.latents)
    _, origin = files.open_latents(directory)
    anew = f"write them anew: jaxdiff latents {run} --out DIR, and set data.latents to it"
    now = storage.fingerprint(run)
    if origin.fingerprint != now:
        made = f"{origin.run} as it was then ({origin.fingerprint})"
        raise ConfigError(f"latents {directory} are of the autoencoder {made}, {run} is another ({now}); {anew}")
    for name in ("name", "image_shape", "fit", "reduce"):
        kept, wanted = getattr(origin, name), getattr(c, name)
        if kept != wanted:
            raise ConfigError(f"data.{name} is {wanted}, of the latents {directory} it is {kept}; set the same, or no data.latents")
    if c.flip and not origin.flip:
        raise ConfigError(f"data.flip wants mirrored images, which latents {directory} do not hold; {anew} with --flip")


def read_latents(directory: pathlib.Path, split: str, flip: bool = False) -> Moments:
    """The moments of a split, small ones held in memory; with `flip` those of mirrored images after them.

    Raises:
        ConfigError: the directory holds no latents.
        DataError: no such split, no mirrored images, or a damaged file.
    """
    stored = files.load_moments(directory, split, flip)
    length = stored.num_examples * (1 + flip)
    if length == 0:
        raise DataError(f"latents {directory}, split {split!r}: holds no example")
    if length * _num_bytes(stored.rows(np.zeros(1, np.int64))) > data.IN_MEMORY:
        return stored
    starts = progress.track(range(0, length, CHUNK), f"reading latents {split}", "batch")
    parts = [stored.rows(np.arange(start, min(start + CHUNK, length))) for start in starts]
    held = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return stored._replace(rows=lambda indices: {name: values[indices] for name, values in held.items()})


def _encoder(networks: build.Codec, params: Any) -> tuple[Callable[[np.ndarray], Any], int]:
    """The compiled encoder of images, over the devices of this process, and their number, which must divide the images'."""
    mesh = make_mesh(devices=jax.local_devices())
    everywhere, rows = replicated(mesh), batch_sharding(mesh)
    compiled = jax.jit(networks.encode, in_shardings=(everywhere, rows), out_shardings=rows)
    placed = jax.device_put(params, everywhere)
    return lambda images: compiled(placed, images), mesh.size


def _encoded(encode: Callable[[np.ndarray], Any], source: data.Images, mirrored: int, size: int, name: str) -> Iterator[Rows]:
    """Moments and labels of all images in order, in batches of one size but for the last, which is cut."""
    num = source.num_examples

    def images(start: int) -> Rows:
        return source.rows(np.minimum(np.arange(start, start + size), num - 1) + mirrored * num)

    starts = range(0, num, size)
    stream = grain.MapDataset.range(0, num, size).map(images)
    batches = stream.to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=4))
    desc = f"encoding {name}" + ", mirrored" * mirrored
    for start, rows in zip(starts, progress.track(batches, desc, "batch", len(starts)), strict=True):
        mean, std = jax.device_get(encode(rows["image"]))
        if not (np.isfinite(mean).all() and np.isfinite(std).all()):
            raise NonFiniteError("the latents hold values that are no numbers; train the autoencoder anew")
        kept = min(size, num - start)
        yield {"mean": mean[:kept], "std": std[:kept], "label": rows["label"][:kept]}


def _num_bytes(rows: Rows) -> int:
    return sum(values.nbytes for values in rows.values())
