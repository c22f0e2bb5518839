"""Trained runs as functions: their denoiser, sampler and codec, and images drawn in batches."""

import dataclasses
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.tree_util import Partial

from jaxdiff.app import build
from jaxdiff.app.config import Experiment, validated
from jaxdiff.app.runs import edits, prompts, storage
from jaxdiff.app.runs.sources import sampling_inputs
from jaxdiff.io import paths, progress
from jaxdiff.io.errors import ConfigError, NonFiniteError
from jaxdiff.process import Level
from jaxdiff.samplers import Sampler
from jaxdiff.training import mesh, spread

WORDS = 8  # of a prompt, in a file's name


class Trained(NamedTuple):
    """A diffusion run or a student: its denoiser of x, which are images or latents, and the maps from one to the other.

    Its denoiser is given labels `[B]`, where the label num_classes is the null label; or a mapping that may hold a `label`, a
    guidance `scale` `[B]` in place of the run's, and tokens as `tokens(prompts, negative)` returns them.

    Its functions hold their params as `jax.tree_util.Partial` does: passed to a compiled function as an argument, their params
    are arguments too; closed over, they are constants, which those of large networks should not be.
    """

    step: int
    shape: tuple[int, ...]  # (H, W, C) of x
    sampler: Sampler
    levels: Level  # [N + 1], along which the run samples
    denoiser: Partial  # given -> Denoiser, guided as the run samples; of a flow map it may be told s, or jumps to clean
    encode: Partial  # images -> x, the mean of the latents; of a run in pixels the images as they are
    decode: Partial  # x -> images, which may reach beyond [-1, 1]
    tokens: Callable[..., dict[str, Any]] | None = None  # (prompts, negative="") -> given; None of a run without text
    draw: Callable[..., np.ndarray] | None = None  # (prompts, negative="", seed=0) -> images, as `jaxdiff sample` draws them


def load_run(
    workdir: pathlib.Path | str,
    ema: str | None = None,
    *,
    size: tuple[int, int] | None = None,
    lora: str = "",
    **sampling: Any,
) -> Trained:
    """The run in `workdir`, which may be in a bucket, at its newest checkpoint, by the named EMA, the first unless given.

    It samples as its config says, except for those fields of `config.Sampling` that are given, such as `guidance=1.0`; images of
    another size (height, width), and with LoRA files merged in (`edits.with_lora`), if these are given.

    Raises:
        ConfigError: no diffusion run, or a setting that it does not take; or its denoiser needs more than x and labels.
    """
    workdir = paths.path(workdir)
    config = storage.read_config(workdir, "diffusion")
    config = validated(dataclasses.replace(config, sampling=dataclasses.replace(config.sampling, **sampling)), where=str(workdir))
    has_text = build.has_text(config)
    if config.sampling.sampler == "ddpm_learned":
        raise ConfigError(f"{workdir} is sampled by ddpm_learned, which wants more than a denoiser; give sampler='ddpm'")
    if config.sources.base or (config.model.context_channels and not has_text):
        wants = "the stage below it" if config.sources.base else "context vectors"
        raise ConfigError(f"{workdir} denoises given {wants} too; draw from it by jaxdiff sample {workdir}")
    sources, frozen = sampling_inputs(config, workdir)
    step, params = storage.read_params(config, workdir, ema)
    params, frozen = edits.with_lora(config, sources, params, frozen, lora)
    config, trained = edits.sized(config, sources, size), storage.read_levels(config, workdir)
    params, frozen = build.rounded(config, sources, params, frozen)

    def denoiser(params: Any, frozen: Mapping[str, Any], given: Mapping[str, Any] | Array) -> Any:
        given = dict(given) if isinstance(given, Mapping) else {"label": jnp.asarray(given, jnp.int32)}
        given.setdefault("label", jnp.full(len(next(iter(given.values()))), config.model.num_classes))
        given = build.encoded(config, sources, frozen, given)
        return build.cascade_stages(config, params, given, sources, frozen, trained)[-1].called({})

    encode = decode = Partial(lambda x: x)
    if "autoencoder" in sources:
        networks = build.codec(sources["autoencoder"])
        encode = Partial(lambda params, x0: networks.encode(params, x0).mean, frozen["autoencoder"])
        decode = Partial(networks.decode, frozen["autoencoder"])
    stage = build.cascade_stages(config, params, {}, sources, frozen, trained)[-1]
    whole = Trained(step, stage.shape, stage.sampler, stage.levels, Partial(denoiser, params, frozen), encode, decode)
    if not has_text:
        return whole
    tokens, generate = partial(prompts.prompted, config, workdir), generator(config, Inputs(sources, frozen, trained))

    def draw(texts: Sequence[str], negative: str = "", seed: int = 0) -> np.ndarray:
        return generate(params, cycle_labels([config.model.num_classes], len(texts)), seed, tokens(texts, negative))

    return whole._replace(tokens=tokens, draw=draw)


def image_sampler(
    config: Experiment, batch_size: int | None = None, workdir: pathlib.Path | None = None, training: bool = False
) -> Callable[..., np.ndarray]:
    """A function `(params, labels [N], seed, given) -> images [N, H, W, C]`, which all processes must call.

    Given are rows of what `build.image_generator` takes beside labels: tokens (see `prompts.prompted`), a `scale`, an `image` and a
    `mask`; and `context`, of a config that attends to vectors of its data set, `[N, T, D]`, or `[T, D]` for all. A VAE does not
    read labels.

    Image i depends on the seed, on i and on what it is given: the noise of each has a key of its own. All devices work, each on
    at most `batch_size` images at once, by default `sampling.batch_size`. Bits do not depend on the number of devices and
    processes; between two batch sizes images differ by rounding.

    With the run's `workdir` the levels are those of its checkpoint (in `training` still the config's finest), and the
    autoencoder must be the one that the run was trained with.
    """
    trained = None if workdir is None or training else storage.read_levels(config, workdir)
    return generator(config, Inputs(*sampling_inputs(config, workdir), trained), batch_size)


class Inputs(NamedTuple):
    """What sampling a config needs beside its own params: configs and params of its sources, and the levels of a student."""

    sources: build.Sources
    frozen: Mapping[str, Any]
    trained: Level | None


def generator(
    config: Experiment,
    inputs: Inputs,
    batch_size: int | None = None,
    strength: float = 1.0,
    preview: Callable[[np.ndarray, bool], None] | None = None,
) -> Callable[..., np.ndarray]:
    """The function of `image_sampler` with these inputs; from an image that is given it takes the last `strength` of the steps.

    `preview` is given the images so far after each batch, and whether they are all, in place of a progress bar.
    """
    sources, frozen, trained = inputs
    devices = spread.local_mesh()
    compiled = spread.over_devices(devices, build.image_generator(config, sources, trained, strength))

    def generate(params: Any, labels: np.ndarray, seed: int, given: Mapping[str, Any] | None = None) -> np.ndarray:
        num, key = len(labels), jax.random.key(seed)
        given = {"label": np.asarray(labels, np.int32), **_checked(config, given or {}, num)}
        if config.sampling.guidance not in (0, 1):  # of which nothing is compiled anew
            given["scale"] = np.full(num, config.sampling.guidance, np.float32)
        placed = jax.device_put(build.rounded(config, sources, params, frozen), mesh.replicated(devices))
        parts = []
        share = spread.share(num, batch_size or config.sampling.batch_size, devices.size)
        for index in share if preview else progress.track(share, "sampling", "batch"):
            part = {"index": index} | jax.tree.map(lambda each: each[index % num], given)  # noqa: B023
            parts.append(np.asarray(compiled(placed[0], key, spread.put_rows(devices, part), placed[1])))
            if preview:
                preview(np.concatenate(parts)[:num], len(parts) == len(share))
        images = spread.gathered(np.stack(parts))[:num]
        if not np.isfinite(images).all():
            raise NonFiniteError("the samples hold NaN or infinite values; try more --steps or another --sampler")
        return images

    return generate


def _checked(config: Experiment, given: Mapping[str, Any], num: int) -> dict[str, Any]:
    """What is given, with context vectors for each of the images; a config with text must be given tokens."""
    wanted, context = config.model.context_channels, given.get("context")
    if build.has_text(config):
        if "text" not in given:
            raise ConfigError("this run draws what a text says: give it a prompt")
        return dict(given)
    if not wanted and context is None:
        return dict(given)
    shape = () if context is None else context.shape
    if not wanted or shape[-1:] != (wanted,) or len(shape) not in (2, 3) or (len(shape) == 3 and shape[0] != num):
        wants = f"vectors [T, {wanted}] or [{num}, T, {wanted}]" if wanted else "none: model.context_channels is 0"
        raise ConfigError(f"context: got {list(shape) or 'none'}, this run takes {wants}")
    assert context is not None
    return {**given, "context": np.broadcast_to(context, (num, *shape[-2:])).astype(np.float32)}


def cycle_labels(classes: Sequence[int], num: int) -> np.ndarray:
    """The classes in turn, labels `[num]`: a grid with as many columns shows one label a column."""
    return np.resize(np.array(classes, np.int32), num)


def sample_file_name(config: Experiment, seed: int, said: str = "") -> str:
    """A file name that says how samples were made, such as `ddim_50_guidance_2_seed_0.png`, after some words of what was said."""
    from jaxdiff import evaluate

    how = evaluate.describe_sampling(vars(config.sampling)).replace(" spacing", "")
    words = re.findall(r"\w+", said)[:WORDS]
    return "_".join([*words, how.replace(", ", "_").replace(" ", "_"), f"seed_{seed}.png"])
