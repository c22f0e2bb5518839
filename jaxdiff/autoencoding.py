"""Pictures of a trained VAE: reconstructions, and interpolations between codes."""

from __future__ import annotations

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff import pictures, recipe
from jaxdiff.config import Experiment
from jaxdiff.data import images, normalized

COLUMNS = 10


def reconstructions(config: Experiment, params: Any, x0: np.ndarray) -> np.ndarray:
    """Expected images of the posterior's mean codes of x0 `[B, H, W, C]`."""
    parts = recipe.vae(config)
    return np.asarray(jax.jit(lambda params, x0: parts.mean(params, parts.encode(params, x0).mean))(params, x0))


def interpolations(config: Experiment, params: Any, a: np.ndarray, b: np.ndarray, num: int) -> np.ndarray:
    """Expected images on straight lines between the codes of a and b `[B, H, W, C]`, ends included, `[B * num, H, W, C]`."""
    parts = recipe.vae(config)

    @jax.jit
    def between(params, a, b):
        first, last = (parts.encode(params, end).mean for end in (a, b))
        share = jnp.linspace(0, 1, num).reshape(1, num, *(1 for _ in first.shape[1:]))
        codes = first[:, None] * (1 - share) + last[:, None] * share
        return parts.mean(params, codes.reshape(-1, *first.shape[1:]))

    return np.asarray(between(params, a, b))


def draw(config: Experiment, workdir: pathlib.Path, params: Any, data_dir: str | None = None) -> list[pathlib.Path]:
    """Writes reconstructions.png (a row of held-out images above a row of theirs) and interpolations.png."""
    c = config.data
    test = images(c.name, "test", c.image_shape, c.fit, data_dir)
    number = 2 * COLUMNS
    x0 = normalized(test.fetch(np.arange(number) % test.num_examples)[0])
    pairs = zip(np.split(x0, number // COLUMNS), np.split(reconstructions(config, params, x0), number // COLUMNS), strict=True)
    shown = {
        "reconstructions": np.concatenate([row for pair in pairs for row in pair]),
        "interpolations": interpolations(config, params, x0[: number // 2], x0[number // 2 :], COLUMNS),
    }
    paths = {name: pathlib.Path(workdir) / f"{name}.png" for name in shown}
    for name, grid in shown.items():
        pictures.save_grid(paths[name], grid, COLUMNS)
    return list(paths.values())
