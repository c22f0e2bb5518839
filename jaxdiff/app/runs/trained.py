"""Trained runs as functions: their denoiser, sampler and codec, and images drawn in batches."""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.tree_util import Partial

from jaxdiff.app import build
from jaxdiff.app.config import Experiment, validated
from jaxdiff.app.runs import storage
from jaxdiff.app.runs.sources import sampling_inputs
from jaxdiff.denoiser import Denoiser
from jaxdiff.io import paths, progress
from jaxdiff.io.errors import ConfigError, NonFiniteError
from jaxdiff.process import Level
from jaxdiff.samplers import Sampler
from jaxdiff.training import mesh, spread


class Trained(NamedTuple):
    """A diffusion run or a student: its denoiser of x, which are images or latents, and the maps from one to the other.

    Its functions hold their params as `jax.tree_util.Partial` does: passed to a compiled function as an argument, their params
    are arguments too; closed over, they are constants, which those of large networks should not be.
    """

    step: int
    shape: tuple[int, ...]  # (H, W, C) of x
    sampler: Sampler
    levels: Level  # [N + 1], along which the run samples
    denoiser: Partial  # label [B] -> Denoiser, guided as the run samples; the label num_classes is the null label
    encode: Partial  # images -> x, the mean of the latents; of a run in pixels the images as they are
    decode: Partial  # x -> images, which may reach beyond [-1, 1]


def load_run(workdir: pathlib.Path | str, ema: str | None = None, **sampling: Any) -> Trained:
    """The run in `workdir`, which may be in a bucket, at its newest checkpoint, by the named EMA, the first unless given.

    It samples as its config says, except for those fields of `config.Sampling` that are given, such as `guidance=1.0`.

    Raises:
        ConfigError: no diffusion run, or a setting that it does not take; or its denoiser needs more than x and labels.
    """
    workdir = paths.path(workdir)
    config = storage.read_config(workdir, "diffusion")
    config = validated(dataclasses.replace(config, sampling=dataclasses.replace(config.sampling, **sampling)), where=str(workdir))
    if config.sources.base or config.model.context_channels:
        wants = "the stage below it" if config.sources.base else "context vectors"
        raise ConfigError(f"{workdir} denoises given {wants} too; draw from it by jaxdiff sample {workdir}")
    sources, frozen = sampling_inputs(config, workdir)
    step, params = storage.read_params(config, workdir, ema)
    trained = storage.read_levels(config, workdir)

    def denoiser(params: Any, frozen: Mapping[str, Any], label: Array) -> Denoiser:
        given = {"label": jnp.asarray(label, jnp.int32)}
        return build.cascade_stages(config, params, given, sources, frozen, trained)[-1].denoiser({})

    encode = decode = Partial(lambda x: x)
    if "autoencoder" in sources:
        networks = build.codec(sources["autoencoder"])
        encode = Partial(lambda params, x0: networks.encode(params, x0).mean, frozen["autoencoder"])
        decode = Partial(networks.decode, frozen["autoencoder"])
    stage = build.cascade_stages(config, params, {}, sources, frozen, trained)[-1]
    return Trained(step, stage.shape, stage.sampler, stage.levels, Partial(denoiser, params, frozen), encode, decode)


def image_sampler(
    config: Experiment, batch_size: int | None = None, workdir: pathlib.Path | None = None, training: bool = False
) -> Callable[..., np.ndarray]:
    """A function `(params, labels [N], seed, context) -> images [N, H, W, C]`, which all processes must call.

    The context, of a config that has any, is vectors `[N, T, D]`, or `[T, D]` for all. A VAE does not read labels.

    Image i depends on the seed, on i and on what it is given: the noise of each has a key of its own. All devices work, each on
    at most `batch_size` images at once, by default `sampling.batch_size`. Bits do not depend on the number of devices and
    processes; between two batch sizes images differ by rounding.

    With the run's `workdir` the levels are those of its checkpoint (in `training` still the config's finest), and the
    autoencoder must be the one that the run was trained with.
    """
    sources, frozen = sampling_inputs(config, workdir)
    trained = None if workdir is None or training else storage.read_levels(config, workdir)
    devices = spread.local_mesh()
    compiled = spread.over_devices(devices, build.image_generator(config, sources, trained))

    def generate(params: Any, labels: np.ndarray, seed: int, context: np.ndarray | None = None) -> np.ndarray:
        num, key = len(labels), jax.random.key(seed)
        given = {"label": np.asarray(labels, np.int32)} | _contexts(config, context, num)
        inputs, parts = jax.device_put((params, frozen), mesh.replicated(devices)), []
        share = spread.share(num, batch_size or config.sampling.batch_size, devices.size)
        for index in progress.track(share, "sampling", "batch"):
            part = {"index": index} | {name: each[index % num] for name, each in given.items()}
            parts.append(np.asarray(compiled(inputs[0], key, spread.put_rows(devices, part), inputs[1])))
        images = spread.gathered(np.stack(parts))[:num]
        if not np.isfinite(images).all():
            raise NonFiniteError("the samples hold NaN or infinite values; try more --steps or another --sampler")
        return images

    return generate


def _contexts(config: Experiment, context: np.ndarray | None, num: int) -> dict[str, np.ndarray]:
    wanted = config.model.context_channels
    if not wanted and context is None:
        return {}
    shape = () if context is None else context.shape
    if not wanted or shape[-1:] != (wanted,) or len(shape) not in (2, 3) or (len(shape) == 3 and shape[0] != num):
        wants = f"vectors [T, {wanted}] or [{num}, T, {wanted}]" if wanted else "none: model.context_channels is 0"
        raise ConfigError(f"context: got {list(shape) or 'none'}, this run takes {wants}")
    assert context is not None
    return {"context": np.broadcast_to(context, (num, *shape[-2:])).astype(np.float32)}


def cycle_labels(classes: Sequence[int], num: int) -> np.ndarray:
    """The classes in turn, labels `[num]`: a grid with as many columns shows one label a column."""
    return np.resize(np.array(classes, np.int32), num)


def sample_file_name(config: Experiment, seed: int) -> str:
    """A file name that says how samples were made, such as `ddim_50_guidance_2_seed_0.png`."""
    from jaxdiff import evaluate

    how = evaluate.describe_sampling(vars(config.sampling)).replace(" spacing", "")
    return f"{how.replace(', ', '_').replace(' ', '_')}_seed_{seed}.png"
