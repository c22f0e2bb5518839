"""A trained run as functions of arrays: what samplers, guidance, editing and pictures of your own take of it."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array
from jax.tree_util import Partial

from jaxdiff.app import build
from jaxdiff.app.config import validated
from jaxdiff.app.runs import storage
from jaxdiff.app.runs.sources import sampling_inputs
from jaxdiff.denoiser import Denoiser
from jaxdiff.io.errors import ConfigError
from jaxdiff.process import Level
from jaxdiff.samplers import Sampler


class Trained(NamedTuple):
    """A diffusion run or a student: its denoiser of x, which are images or latents, and the way from one to the other.

    Its functions hold their params as `jax.tree_util.Partial` does: where a compiled function is given one as an argument,
    the params are arguments too; where it closes over one, they are constants, which those of large networks should not be.
    """

    step: int
    shape: tuple[int, ...]  # (H, W, C) of x
    sampler: Sampler
    levels: Level  # [N + 1], along which the run samples
    denoiser: Partial  # label [B] -> Denoiser, as guided as the run samples; the label num_classes is none at all
    encode: Partial  # images -> x, the mean of the latents; of a run in pixels the images as they are
    decode: Partial  # x -> images, which may reach beyond [-1, 1]


def load_run(workdir: pathlib.Path | str, ema: str | None = None, **sampling: Any) -> Trained:
    """The run in `workdir` at its newest checkpoint, by the named EMA, the first unless given.

    It samples as its config says, but for those fields of `config.Sampling` that are given, such as `guidance=1.0`.

    Raises:
        ConfigError: no diffusion run, or a setting that it does not take; or one that is no function of x and labels alone.
    """
    workdir = pathlib.Path(workdir)
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
