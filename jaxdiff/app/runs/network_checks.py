"""Checks that any network of a run must pass, whatever it was trained on: published weights before they are used."""

import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxdiff.app import build
from jaxdiff.app.config import Experiment, guidance_is_input
from jaxdiff.app.runs import storage
from jaxdiff.app.runs.sources import sampling_inputs
from jaxdiff.io import count
from jaxdiff.process import Level

ROWS, CONTEXTS = 2, 77
TOLERANCE = 1e-4  # of float32, relative to the largest value; of bfloat16 it is a hundred times that


class Check(NamedTuple):
    """One property, in words, and whether it holds."""

    text: str
    passed: bool


def check_network(workdir: pathlib.Path, ema: str | None = None, seed: int = 0) -> list[Check]:
    """Whether the network of a diffusion run or a student is finite at the levels along which it samples, treats rows of a batch
    apart from each other, and has the same derivative forwards and backwards.

    Raises:
        ConfigError: there is no such run.
    """
    config = storage.read_config(workdir, "diffusion")
    sources, frozen = sampling_inputs(config, workdir)
    params = build.adapted(config, frozen, storage.read_params(config, workdir, ema)[1])
    levels = build.sampling_levels(config, params, storage.read_levels(config, workdir))[:-1]
    x, tangent, other = jax.random.normal(jax.random.key(seed), (3, ROWS, *build.space(config, sources)))
    given = _given(config, x)

    @jax.jit
    def denoised(params: Any, x: Array, level: Level) -> Array:
        x = jnp.hypot(level.alpha, level.sigma) * x  # of the size of a noised example
        return build.conditional_denoiser(config, params, given)(x, level)

    @jax.jit
    def derivatives(params: Any, level: Level) -> tuple[Array, Array]:
        forwards = jax.jvp(lambda x: denoised(params, x, level), (x,), (tangent,))[1]
        backwards = jax.vjp(lambda x: denoised(params, x, level), x)[1](other)[0]
        return jnp.vdot(forwards, other), jnp.vdot(backwards, tangent)

    tolerance = TOLERANCE * (100 if config.model.dtype == "bfloat16" else 1)
    middle = levels[levels.sigma.size // 2]
    outputs = [np.asarray(denoised(params, x, levels[number])) for number in range(levels.sigma.size)]
    broken = [number for number, output in enumerate(outputs) if not np.isfinite(output).all()]
    at = "" if not broken else f", but at logsnr {float(levels[broken[0]].logsnr):.2f}"
    whole, apart = (denoised(params, each, middle) for each in (x, x.at[1].set(other[1])))
    moved = float(jnp.max(jnp.abs(whole[0] - apart[0])) / jnp.max(jnp.abs(whole[0])))
    forwards, backwards = (float(each) for each in derivatives(params, middle))
    apart_by = abs(forwards - backwards) / max(abs(forwards), abs(backwards), 1e-30)
    return [
        Check(f"finite at {count(len(outputs), 'level')}{at}", not broken),
        Check(f"a row moves by {moved:.1e} where another one changes", moved <= tolerance),
        Check(f"derivatives forwards and backwards differ by {apart_by:.1e}", apart_by <= 10 * tolerance),
    ]


def _given(config: Experiment, x: Array) -> Mapping[str, Array]:
    """Conditions of some kind: the first classes, vectors drawn at random."""
    given: dict[str, Any] = {"label": jnp.arange(len(x)) % max(config.model.num_classes, 1)}
    if config.model.context_channels:
        given["context"] = jax.random.normal(jax.random.key(1), (len(x), CONTEXTS, config.model.context_channels))
    if guidance_is_input(config):
        given["guidance"] = jnp.full(len(x), config.sampling.guidance)
    if config.cascade.factor > 1:
        given |= {"spatial": jnp.zeros_like(x), "augmentation": jnp.zeros(len(x))}
    return given
