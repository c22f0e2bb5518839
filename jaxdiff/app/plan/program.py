"""The real step, or sampler, of a config, lowered for TPUs that are only described; run as a child process by `planned`."""

import hashlib
import importlib.metadata
import itertools
import json
import pathlib
import pickle
import resource
import signal
import sys
import time
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.app import build
from jaxdiff.app.config import Experiment, load, with_article
from jaxdiff.app.plan import Job
from jaxdiff.app.plan.chips import device_descriptions
from jaxdiff.app.runs import storage
from jaxdiff.app.runs.sources import sampling_sources
from jaxdiff.io.errors import ConfigError, UserError
from jaxdiff.training import spread

CONTEXTS = 77  # vectors an example where a network attends to some: as many as CLIP's; the data set says how many there are
FORMAT = "1"  # of the cache of compiled programs
VGG16_WIDTHS = (3, 64, 64, 128, 128, 256, 256, 256, *(512,) * 6)  # of the params that `perceptual.load` reads
LPIPS_WIDTHS = (64, 128, 256, 512, 512)


def main(path: pathlib.Path) -> int:
    """Lowers and compiles the program of the pickled `Job` at a path; writes program.json beside it, or error.txt."""
    job: Job = pickle.loads(path.read_bytes())
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # libtpu aborts on a topology that does not exist
    signal.alarm(int(job.limit_s) + 60)  # should the parent die first
    started, lowered = time.monotonic(), _training if job.what == "train" else _sampling
    try:
        step, arguments, mesh = lowered(job.config, device_descriptions(job.where))
        program = step.trace(*arguments).lower(lowering_platforms=("tpu",))
    except (UserError, ValueError) as error:
        (path.parent / "error.txt").write_text(str(error))
        return 1
    assumed = f"{CONTEXTS} context vectors an example are assumed; the data set says how many there are"
    notes = [assumed] if job.config.model.context_channels and not build.has_text(job.config) else []
    version = importlib.metadata.version("libtpu")
    identity = "\n".join((FORMAT, program.as_text(), job.where.name, str(job.where.slices), version, str(job.full)))
    about = {"mesh": dict(mesh.shape), "slices": [getattr(device, "slice_index", None) or 0 for device in mesh.devices.flat]}
    about |= {"notes": notes, "key": hashlib.sha256(identity.encode()).hexdigest()}
    about |= {"lowering_s": time.monotonic() - started, "libtpu": version}
    (path.parent / "program.json").write_text(json.dumps(about))
    if not (job.cache / f"{about['key']}.gz").exists():
        program.compile()
    return 0


def _training(config: Experiment, devices: list[Any]) -> tuple[Any, tuple, jax.sharding.Mesh]:
    """The step that `train_run` runs, shapes of its arguments, and its mesh."""
    if config.mesh.mapping == "pmap":
        raise ConfigError("mesh.mapping pmap cannot be compiled for devices that are not there; plan with jit, its twin")
    places = build.frozen_places(config)
    sources, frozen = source_shapes(config, (*places, "autoencoder", "base", *build.TEXTS))
    texts = {place: frozen[place] for place in build.TEXTS if place in frozen}
    frozen = {place: shapes for place, shapes in frozen.items() if place in places}
    if config.data.latents and config.sources.text:
        tokens = jax.tree.map(lambda row: jax.ShapeDtypeStruct(row.shape, row.dtype), build.nulls(config, sources))
        frozen["null"] = jax.eval_shape(partial(build.null_states, config, sources), texts, tokens)
    layout = build.layout(config, frozen, sources, devices)
    state = replace(build.state_shapes(config, sources), frozen=frozen)
    batch = _batch(config, sources, config.data.batch_size)
    step = layout.compile(build.train_step(config, layout, sources))
    return step, (state, batch, jax.eval_shape(jax.random.key, 0)), layout.sharding.step.mesh


def _sampling(config: Experiment, devices: list[Any]) -> tuple[Any, tuple, jax.sharding.Mesh]:
    """What `jaxdiff sample` runs on all devices at once, each with `sampling.batch_size` images, by the same program."""
    if config.objective in ("classifier", "autoencoder"):
        raise ConfigError(f"--what sample: {with_article(config.objective)} draws no samples; plan its training")
    sources, frozen = source_shapes(config, sampling_sources(config))
    prompted = replace(config, data=replace(config.data, latents=""))
    batch = _batch(prompted, sources, config.sampling.batch_size * len(devices))
    given = {name: each for name, each in batch.items() if name not in ("image", "mean", "std")}
    if config.sampling.guidance not in (0, 1):
        given["scale"] = jax.ShapeDtypeStruct(batch["index"].shape, jnp.float32)
    if build.has_text(config):
        given["null"] = {name: batch[name] for name in build.text_configs(config, sources)}
    mesh = jax.sharding.Mesh(np.asarray(devices), ("data",))
    step = spread.over_devices(mesh, build.image_generator(config, sources))  # cost.memory_by_kind knows the names of its arguments
    params, key = build.state_shapes(config, sources).params, jax.eval_shape(jax.random.key, 0)
    params, frozen = jax.eval_shape(partial(build.rounded, config, sources), params, frozen)
    return step, (params, key, given, frozen), mesh


def _batch(config: Experiment, sources: dict[str, Experiment], size: int) -> dict[str, Any]:
    """Shapes of a batch, as `data.batches` or a cache of latents gives it."""
    rows: dict[str, tuple[int, ...]] = {"image": config.data.image_shape}
    tokens: dict[str, tuple[int, ...]] = {}
    if config.data.latents:
        rows = dict.fromkeys(("mean", "std"), build.codec(sources["autoencoder"]).latent_shape(config.data.image_shape))
    if config.data.latents and config.sources.text:
        length = max(text.length for text in build.text_configs(config, sources).values())
        rows["context"] = (length, config.model.context_channels)
        rows |= {"pooled": (config.published.pooled_channels,)} if config.published.pooled_channels else {}
    elif build.has_text(config):
        tokens = {name: (text.length,) for name, text in build.text_configs(config, sources).items()}
    elif config.model.context_channels:
        rows["context"] = (CONTEXTS, config.model.context_channels)
    dtypes: dict[str, Any] = {"image": jnp.uint8, **dict.fromkeys(tokens, jnp.int32)}
    rows |= tokens
    batch = {name: jax.ShapeDtypeStruct((size, *shape), dtypes.get(name, jnp.float32)) for name, shape in rows.items()}
    return batch | {name: jax.ShapeDtypeStruct((size,), jnp.int32) for name in ("label", "index")}


def source_shapes(config: Experiment, places: tuple[str, ...]) -> tuple[dict[str, Experiment], dict[str, Any]]:
    """Configs of what a config starts from, recipes or runs, and shapes of their params; as `runs.sources` reads them."""
    sources: dict[str, Experiment] = {}
    frozen: dict[str, Any] = {}
    for place, name in storage.source_names(config).items():
        if place not in places:
            continue
        if name.endswith(".npz"):
            shape = partial(jax.ShapeDtypeStruct, dtype=jnp.float32)
            layers = [{"kernel": shape((3, 3, *pair)), "bias": shape(pair[1:])} for pair in itertools.pairwise(VGG16_WIDTHS)]
            frozen[place] = {"convolutions": layers, "weights": [shape((width,)) for width in LPIPS_WIDTHS]}
            continue
        path = pathlib.Path(name)
        source = sources[place] = load(path) if path.suffix == ".py" else storage.read_config(path)
        its, below = source_shapes(source, sampling_sources(source))
        frozen[place] = build.state_shapes(source, its).params
        if place == "base":
            sources |= {f"base.{each}": value for each, value in its.items()}
            frozen |= {f"base.{each}": value for each, value in below.items()}
    return sources, frozen


if __name__ == "__main__":
    sys.exit(main(pathlib.Path(sys.argv[1])))
