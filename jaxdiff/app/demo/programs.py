"""Compiled programs that draw and edit a run's images, one at a time.

Another sampler, another number of steps and the first mask compile; another seed, label, prompt, scale, strength or image does not.
"""

import functools
import pathlib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array
from jax.tree_util import Partial

from jaxdiff import editing, samplers
from jaxdiff.app import build
from jaxdiff.app.config import Experiment
from jaxdiff.app.demo.settings import Setting, sampled, scales
from jaxdiff.app.runs import storage, trained
from jaxdiff.app.runs.trained import Trained
from jaxdiff.io import paths
from jaxdiff.io.errors import NonFiniteError
from jaxdiff.process import Level, diffuse
from jaxdiff.samplers import Sampler
from jaxdiff.samplers.loop import map_step

FRAMES = 9  # pictures of the way from noise to an image, at most
PASSES = 4  # of each step while a part of the image is kept, by samplers without memory: its seams fade as they grow


class Opened(NamedTuple):
    """A run whose params are on the device."""

    name: str
    config: Experiment
    walk: Callable[[str, int], Trained]  # of a sampler's name and a number of steps
    tokens: Callable[..., dict[str, Any]] | None = None  # `Trained.tokens`


class Edit(NamedTuple):
    """An image `[H, W, C]` in [-1, 1] to start from, noised by a strength in [0, 1]; where `keep [H, W]` is true it stays."""

    image: np.ndarray
    strength: float = 1.0
    keep: np.ndarray | None = None


def open_run(workdir: pathlib.Path | str) -> Opened:
    """The run in `workdir`, loaded once for all settings.

    Raises:
        ConfigError: it is no run that `load_run` takes.
    """
    workdir = paths.path(workdir)
    loaded, config = trained.load_run(workdir), storage.read_config(workdir, "diffusion")
    params = storage.read_params(config, workdir)[1] if config.diffusion.schedule == "learned" else None

    @functools.lru_cache(maxsize=16)  # the same functions for the same setting, or their program would be compiled again
    def walk(sampler: str, steps: int) -> Trained:
        other = sampled(config, sampler, steps)
        if config.objective == "progressive":  # another student for each number of steps
            return trained.load_run(workdir, sampler=sampler, steps=steps, eta=other.sampling.eta)
        levels = build.sampling_levels(other, params, storage.read_levels(other, workdir))
        return loaded._replace(sampler=build.SAMPLERS[sampler](other.sampling.eta, levels), levels=levels)

    return Opened(paths.resolved(workdir).name, config, walk, loaded.tokens)


def draw(
    run: Opened, setting: Setting, given: Mapping[str, np.ndarray], seed: int, index: int = 0, edit: Edit | None = None
) -> tuple[np.ndarray, Callable[[], np.ndarray]]:
    """Image `index` of a seed `[H, W, C]` in about [-1, 1], and what computes the frames `[K, H, W, C]` on the way to it.

    Each image has noise of its own, the same in every run whose x has that shape. Frames are the x0 that the denoiser predicts
    after evenly spaced steps; the image is the last. `given` is what the run's denoiser is given, `[1, ...]` each. Without an
    edit the image is that of `jaxdiff sample`.

    Raises:
        NonFiniteError: the image holds NaN or infinite values.
    """
    found = run.walk(setting.sampler, setting.steps)
    if scales(run.config):
        given = {**given, "scale": np.array([setting.guidance], np.float32)}
    num = found.levels.sigma.size - 1
    waits = 0 if edit is None else num - int(num * edit.strength)
    after = waits + np.array(build.evenly_spaced_steps(num - waits, FRAMES), np.int32)
    start = {**_edited(found, edit), "waits": np.int32(waits), "after": np.pad(after, (0, FRAMES - len(after)), mode="edge")}
    numbers = np.array([seed, index], np.uint32)
    states = np.asarray(_states(found.sampler, found.denoiser, given, found.levels, start, numbers))
    image = _kept(edit, np.asarray(_decoded(found.decode, states[-1]))[0])
    if not np.isfinite(image).all():
        raise NonFiniteError("the image holds NaN or infinite values; try more steps, another sampler or less guidance")

    def frames() -> np.ndarray:
        levels = jax.tree.map(np.asarray, found.levels)
        between = (_predicted(found.denoiser, given, x, levels[n]) for x, n in zip(states, after[:-1], strict=False))
        return np.stack([*(np.asarray(_decoded(found.decode, x0))[0] for x0 in between), image])

    return image, frames


def _edited(found: Trained, edit: Edit | None) -> dict[str, Any]:
    """The x `[1, ...]` of the image, zeros if there is none, and where it is kept, if anywhere: where all pixels are."""
    height, width, _ = found.shape
    if edit is None:
        return {"x0": np.zeros((1, *found.shape), np.float32), "keep": None}
    x0 = _encoded(found.encode, edit.image[None].astype(np.float32))
    if edit.keep is None:
        return {"x0": x0, "keep": None}
    rows, columns = edit.keep.shape
    blocks: Any = edit.keep.reshape(1, height, rows // height, width, columns // width)
    return {"x0": x0, "keep": blocks.all((2, 4))[..., None]}


def _kept(edit: Edit | None, image: np.ndarray) -> np.ndarray:
    """The image with the pixels that are kept as they were, which a codec changes a little."""
    return image if edit is None or edit.keep is None else np.where(edit.keep[..., None], edit.image, image)


@partial(jax.jit, static_argnums=0)
def _states(sampler: Sampler, denoiser: Partial, given: Any, levels: Level, start: Mapping[str, Any], numbers: Array) -> Array:
    """The states `[FRAMES, 1, ...]` after some numbers of steps, the first of which wait: x0 is noised to the level after them."""
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(numbers[0]), numbers[1]), 0)  # as `build.image_generator`
    noise_key, sampler_key = jax.random.split(key)
    x0, keep, level = start["x0"], start["keep"], levels[start["waits"]]
    x = diffuse(x0, jax.random.normal(noise_key, x0.shape), level)
    if keep is not None:
        sampler = editing.inpaint(sampler, x0, keep)
        if not jax.tree.leaves(sampler.init(x)):
            sampler = editing.resampled(sampler, PASSES)
    return samplers.trajectory(_begun_at(level, sampler), denoiser(given), x, levels, sampler_key)[start["after"]]


def _begun_at(level: Level, sampler: Sampler) -> Sampler:
    """The sampler that leaves x as it is in steps from levels noisier than that one, whose number need not be known to compile."""

    def begun(step):
        def step_or_wait(denoise, x, memory, t, s, key):
            waits = t.sigma * level.alpha > level.sigma * t.alpha
            return jax.lax.cond(waits, lambda: (x, memory), lambda: step(denoise, x, memory, t, s, key))

        return step_or_wait

    return map_step(begun, sampler)


@jax.jit
def _predicted(denoiser: Partial, given: Any, x: Array, level: Level) -> Array:
    return denoiser(given)(x, level)


@jax.jit
def _decoded(decode: Partial, x: Array) -> Array:
    return decode(x)


@jax.jit
def _encoded(encode: Partial, image: Array) -> Array:
    return encode(image)
