"""A cache of latents: the moments of each image's posterior, encoded once, so that every epoch of training samples afresh."""

import itertools
import pathlib
import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import grain
import jax
import numpy as np

from jaxdiff import data
from jaxdiff.app import build
from jaxdiff.app.config import Data
from jaxdiff.app.runs import finish, prompts, storage
from jaxdiff.app.runs.sources import check_measured
from jaxdiff.data import latents as files
from jaxdiff.data.latents import MIRRORED, Moments, Origin, Rows
from jaxdiff.io import locks, paths, progress
from jaxdiff.io.errors import ConfigError, DataError, NonFiniteError
from jaxdiff.training.mesh import batch_sharding, make_mesh, replicated

CHUNK = 256  # examples read at once into memory


class Cached(NamedTuple):
    """What was written where: the number of examples of each split, and the bytes of all files."""

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
    """Encodes splits of the data set of an autoencoder's `run`, in order, and writes their moments to the new directory `out`.

    With `flip` the mirrored images too, for `data.flip`. The devices of this process may make the batches a little larger. `run`
    may be of a diffusion network that works on latents and reads captions (sources.autoencoder, sources.text): then the states of
    captions are written too.

    Raises:
        ConfigError: `run` has no autoencoder, `out` exists, or a split is a slice.
        CheckpointError: the autoencoder's params cannot be read.
        DataError: the images cannot be read, or the latents not written.
        NonFiniteError: a latent is NaN or infinite.
    """
    run, out = paths.path(run), paths.path(out)
    config = storage.read_config(run)
    c, owner = config.data, run
    if reads := config.objective == "diffusion" and bool(config.sources.autoencoder and config.sources.text):
        owner = storage.source_directories(config, run)["autoencoder"]
    networks = storage.read_config(owner, "autoencoder")
    if batch_size < 1:
        raise ConfigError(f"--batch-size must be at least 1, got {batch_size}")
    if sliced := [split for split in splits if not re.fullmatch(r"\w+", split)]:
        which = f"--split {sliced[0]}: latents are kept of whole splits, such as train"
        raise ConfigError(f"{which}; training may take a slice of them")
    files.check_free(out)
    step, params = storage.read_params(networks, owner)
    check_measured(networks, params, step, owner)
    mesh = make_mesh(devices=jax.local_devices())
    size, rows = -(-batch_size // mesh.size) * mesh.size, batch_sharding(mesh)
    codec, (sources, frozen) = build.codec(networks), prompts.encoders(config, run) if reads else ({}, {})

    def moments(params: Any, frozen: Any, batch: Any) -> dict[str, Any]:
        mean, std = codec.encode(params, batch["image"])
        return {"mean": mean, "std": std, **(build.states(config, sources, frozen, batch) if reads else {})}

    whole = replicated(mesh)
    compiled = jax.jit(moments, in_shardings=(whole, whole, rows), out_shardings=rows)
    encode = partial(compiled, *jax.device_put((params, frozen), whole))
    load = partial(finish.load_images, config, run) if reads else partial(data.load_images, c)
    images = {split: load(split, data_dir) for split in splits}
    both = itertools.product(images, range(1 + flip))
    parts = {name + MIRRORED * mirrored: _encoded(encode, images[name], mirrored, size, name) for name, mirrored in both}
    read_by = prompts.fingerprints(config, run) if reads else ()
    origin = Origin(storage.fingerprint(owner), str(owner), c.name, c.image_shape, c.fit, c.reduce, flip, read_by)
    with locks.hold(out.with_name(f".{out.name}.writer"), str(out)):
        num_bytes = files.write_latents(out, parts, next(iter(images.values())).num_classes, origin)
    num_examples = {name: images[name.removesuffix(MIRRORED)].num_examples for name in parts}
    return Cached(out, num_examples, num_bytes)


def load_latents(c: Data, run: pathlib.Path, texts: tuple[str, ...] = ()) -> Moments:
    """The latents that a config's data names, which must be those of its images, encoded by the autoencoder `run`.

    `texts` are the fingerprints of the encoders of its captions, if it reads them.
    """
    directory, now = paths.path(c.latents), storage.fingerprint(run)
    _, origin = files.open_latents(directory)
    anew = f"write them anew: jaxdiff latents {run} --out DIR, and set data.latents to it"
    if origin.fingerprint != now:
        made = f"{origin.run} as it was then ({origin.fingerprint})"
        raise ConfigError(f"latents {directory} are of the autoencoder {made}, {run} is another ({now}); {anew}")
    if texts and origin.texts != texts:
        kept = "of other text encoders" if origin.texts else "without captions"
        raise ConfigError(
            f"latents {directory} are {kept}; write them anew: jaxdiff latents RUN, of the run that reads the captions"
        )
    for name in ("name", "image_shape", "fit", "reduce"):
        kept, wanted = getattr(origin, name), getattr(c, name)
        if kept != wanted:
            raise ConfigError(f"data.{name} is {wanted}, of the latents {directory} it is {kept}; set the same, or no data.latents")
    if c.flip and not origin.flip:
        raise ConfigError(f"data.flip wants mirrored images, which latents {directory} do not hold; {anew} with --flip")
    return read_latents(directory, c.split, c.flip)


def read_latents(directory: pathlib.Path, split: str, flip: bool = False) -> Moments:
    """The moments of a split, in memory where they are small; with `flip` those of mirrored images after them."""
    stored = files.load_moments(directory, split, flip)
    length = stored.num_examples * (1 + flip)
    if length == 0:
        raise DataError(f"latents {directory}, split {split!r}: holds no example")
    if length * sum(values.nbytes for values in stored.rows(np.zeros(1, np.int64)).values()) > data.IN_MEMORY:
        return stored
    starts = progress.track(range(0, length, CHUNK), f"reading latents {split}", "batch")
    parts = [stored.rows(np.arange(start, min(start + CHUNK, length))) for start in starts]
    held = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return stored._replace(rows=lambda indices: {name: values[indices] for name, values in held.items()}, in_memory=True)


def _encoded(encode: Callable[[Rows], Any], source: data.Images, mirrored: int, size: int, name: str) -> Iterator[Rows]:
    """Moments and labels of all images in order, in batches of one size except the last, which is cut."""
    num = source.num_examples
    stream = grain.MapDataset.range(0, num, size)
    stream = stream.map(lambda start: source.rows(np.minimum(np.arange(start, start + size), num - 1) + mirrored * num))
    batches = stream.to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=4))
    track = progress.track(batches, f"encoding {name}" + ", mirrored" * mirrored, "batch", len(stream))
    for start, rows in zip(range(0, num, size), track, strict=True):
        made = jax.device_get(encode({**rows, "image": data.normalize(rows["image"])}))
        if not all(np.isfinite(values).all() for values in made.values()):
            raise NonFiniteError("the latents hold NaN or infinite values; train the autoencoder anew")
        length = min(size, num - start)
        yield {name: values[:length] for name, values in {**made, "label": rows["label"]}.items()}
