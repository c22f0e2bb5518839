"""What a trained autoencoder does to images: pictures of a VAE; of that of latent diffusion, measures and scale of its latents."""

from __future__ import annotations

import math
import pathlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.app import build
from jaxdiff.app.config import Experiment
from jaxdiff.data import Images, load_images, normalize
from jaxdiff.io import pictures, progress
from jaxdiff.objectives import psnr
from jaxdiff.training import TrainState, distributed

COLUMNS = 10
CHUNK = 2**17  # pixels encoded at once


def reconstructions(config: Experiment, params: Any, x0: np.ndarray) -> np.ndarray:
    """Expected images of the posterior's mean codes of x0 `[B, H, W, C]`."""
    parts = build.vae(config)
    return np.asarray(jax.jit(lambda params, x0: parts.mean(params, parts.encode(params, x0).mean))(params, x0))


def interpolations(config: Experiment, params: Any, a: np.ndarray, b: np.ndarray, num: int) -> np.ndarray:
    """Expected images on straight lines between the codes of a and b `[B, H, W, C]`, ends included, `[B * num, H, W, C]`."""
    parts = build.vae(config)

    @jax.jit
    def between(params, a, b):
        first, last = (parts.encode(params, end).mean for end in (a, b))
        share = jnp.linspace(0, 1, num).reshape(1, num, *(1 for _ in first.shape[1:]))
        codes = first[:, None] * (1 - share) + last[:, None] * share
        return parts.mean(params, codes.reshape(-1, *first.shape[1:]))

    return np.asarray(between(params, a, b))


def draw_reconstructions(config: Experiment, workdir: pathlib.Path, params: Any, data_dir: str | None = None) -> list[pathlib.Path]:
    """Writes reconstructions.png (a row of held-out images above a row of theirs) and interpolations.png."""
    test = load_images(config.data, config.data.held_out, data_dir)
    number = 2 * COLUMNS
    x0 = normalize(test.fetch(np.arange(number) % test.num_examples)[0])
    shown = {
        "reconstructions": np.concatenate(_facing(x0, reconstructions(config, params, x0))),
        "interpolations": interpolations(config, params, x0[: number // 2], x0[number // 2 :], COLUMNS),
    }
    paths = {name: pathlib.Path(workdir) / f"{name}.png" for name in shown}
    for name, grid in shown.items():
        pictures.save_grid(paths[name], grid, COLUMNS)
    return list(paths.values())


def evaluate_reconstructions(
    config: Experiment, workdir: pathlib.Path, params: Any, data_dir: str | None = None
) -> dict[str, float]:
    """PSNR on held-out images, how many times fewer numbers the latents are, and the share of a codebook that is used.

    Writes reconstructions.png (a row of held-out images above a row of theirs).
    """
    test, networks, c = load_images(config.data, config.data.held_out, data_dir), build.codec(config), config.autoencoder

    @jax.jit
    def rebuilt(params: Any, x0: jax.Array) -> tuple[jax.Array, jax.Array]:
        z = networks.encode(params, x0).mean
        index = build.nearest_codes(params, z) if c.codebook else jnp.zeros((), jnp.int32)
        return networks.decode(params, z), index

    ratios, used, shown = [], [], []
    for x0 in _chunks(test, test.num_examples):
        images, index = rebuilt(params, x0)
        ratios.append(psnr(jnp.asarray(x0), images))
        used.append(np.bincount(np.ravel(index), minlength=max(c.codebook, 1)))
        if not shown:
            some = np.arange(4 * COLUMNS) % len(x0)
            shown = _facing(x0[some], np.asarray(images)[some])
    pictures.save_grid(pathlib.Path(workdir) / "reconstructions.png", np.concatenate(shown), COLUMNS)
    height, width, channels = networks.latent_shape(config.data.image_shape)
    numbers = math.prod(config.data.image_shape) / (height * width * (1 if c.codebook else channels))
    usage = {"codebook_usage": float(np.mean(np.sum(used, axis=0) > 0))} if c.codebook else {}
    return {"psnr": float(np.mean(np.concatenate(ratios))), "num": test.num_examples, "ratio": numbers, **usage}


def measure_latents(config: Experiment, source: Images, state: TrainState) -> TrainState:
    """The state with mean and standard deviation of its latents' channels over some training images, in params and averages.

    Every process measures the same images; what the first finds counts.
    """
    networks, params = build.codec(config), distributed.replicate_locally(next(iter(state.ema.values())))
    measured = build.measure_latents(networks, params, _chunks(source, min(config.autoencoder.measured, source.num_examples)))
    found = distributed.broadcast_from_first({name: np.asarray(value).tolist() for name, value in measured.items()})

    def told(params: Any) -> Any:
        whole = {name: np.asarray(found[name], leaf.dtype) for name, leaf in params["latent"].items()}
        return {**params, "latent": distributed.shard_from_host(whole, jax.tree.map(lambda leaf: leaf.sharding, params["latent"]))}

    return replace(state, params=told(state.params), ema={name: told(params) for name, params in state.ema.items()})


def _facing(x0: np.ndarray, images: np.ndarray) -> list[np.ndarray]:
    """Rows of COLUMNS images, each above a row of theirs."""
    rows = len(x0) // COLUMNS
    return [row for pair in zip(np.split(x0, rows), np.split(images, rows), strict=True) for row in pair]


def _chunks(source: Images, num: int) -> Iterator[np.ndarray]:
    size = max(1, CHUNK // math.prod(source.fetch(np.zeros(1, np.int64))[0].shape[1:3]))
    for start in progress.track(range(0, num, size), "encoding", "batch"):
        yield normalize(source.fetch(np.arange(start, min(start + size, num)))[0])
