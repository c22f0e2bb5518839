"""Cascades: a model of small images followed by super-resolution models, each trained on its own.

Ho et al. (2021), "Cascaded Diffusion Models". A super-resolution model is trained like any other, with
the condition `objectives.low_resolution`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxdiff import samplers
from jaxdiff.compilation import compiled_once
from jaxdiff.denoiser import Denoiser
from jaxdiff.objectives import augmented
from jaxdiff.process import Level
from jaxdiff.samplers import Sampler


class Stage(NamedTuple):
    """One model of a cascade, and how its images of `shape` (H, W, C) are sampled.

    `denoiser(given)` is its denoiser given the stage before: `given` holds `spatial` and `augmentation`, as
    `objectives.augmented` makes them, and is empty for the first stage, so that
    `lambda given: objectives.conditional(network, parameterization, params, {"label": label, **given})` fits every stage. A later
    stage's images are `factor` times as large as those of the stage before, which it is given noised to `augmentation`, a level
    within those of its training.
    """

    denoiser: Callable[[Mapping[str, Array]], Denoiser]
    sampler: Sampler
    levels: Level
    shape: tuple[int, int, int]
    factor: int = 1
    augmentation: Level | None = None
    kernel: Callable[[Mapping[str, Array]], Any] | None = None  # given -> what a sampler that tells s calls: (x, t, s) -> x0, ...

    def called(self, given: Mapping[str, Array]) -> Any:
        """What its sampler calls at each step."""
        return (self.kernel or self.denoiser)(given)


@compiled_once
def sample(stages: Sequence[Stage], key: Array, num: int) -> Array:
    """The last stage's images `[num, H, W, C]`, each stage sampled given the one before with fresh noise.

    Ho et al. (2021), algorithm 2 without truncation. Pure; the whole cascade compiles under one `jax.jit`.

    Raises:
        ValueError: a shape is not `factor` times the one before, or augmentation is missing, or given for the first stage.

    >>> import jax
    >>> import jaxdiff as jd
    >>> from jaxdiff.cascade import Stage
    >>> half, levels = lambda given: lambda x, level: x / 2, jd.grid(jd.cosine(), 4)
    >>> base = Stage(half, jd.ddim(), levels, (8, 8, 3))
    >>> large = Stage(half, jd.ddim(), levels, (32, 32, 3), factor=4, augmentation=jd.cosine()(0.2))
    >>> jd.cascade.sample([base, large], jax.random.key(0), 2).shape
    (2, 32, 32, 3)
    """
    return pyramid(stages, key, num)[-1]


@compiled_once
def pyramid(stages: Sequence[Stage], key: Array, num: int) -> tuple[Array, ...]:
    """The images `[num, H, W, C]` of every stage of `sample`, smallest first. They do not depend on later stages.

    Raises:
        ValueError: as `sample`.
    """
    _check(stages)
    keys = [jax.random.fold_in(key, number) for number in range(len(stages))]
    images = [_sampled(stages[0], {}, keys[0], num)]
    for stage, stage_key in zip(stages[1:], keys[1:], strict=True):
        images.append(enlarged(stage, images[-1], stage_key))
    return tuple(images)


@compiled_once
def enlarged(stage: Stage, low: Array, key: Array) -> Array:
    """The images `[B, H, W, C]` of one super-resolution stage, given those of the stage before, or real ones.

    Raises:
        ValueError: the stage's shape is not `factor` times that of `low`, or it has no augmentation.
    """
    given, sampler_key = _given(stage, low, key)
    return _sampled(stage, given, sampler_key, low.shape[0])


@compiled_once
def trajectory(stages: Sequence[Stage], key: Array, num: int, after: Sequence[int]) -> tuple[Array, Array]:
    """The last stage's states during `sample`, and its denoiser's x0 at each, `[K, num, H, W, C]`.

    The states are those after the numbers of steps `after`, of which the last must be all: the last state and x0 are what `sample`
    returns. The states of every step are held in memory.

    Raises:
        ValueError: as `sample`, or the last of `after` is not the number of steps.
    """
    _check(stages)
    *before, last = stages
    num_steps = last.levels.sigma.size - 1
    if not after or after[-1] != num_steps:
        raise ValueError(f"cascade: after must end with the number of steps, {num_steps}, got {list(after)}")
    given, stage_key = {}, jax.random.fold_in(key, len(before))
    if before:
        given, stage_key = _given(last, pyramid(before, key, num)[-1], stage_key)
    denoise, (x, sampler_key) = last.denoiser(given), start(last, stage_key, num)
    states = samplers.trajectory(last.sampler, last.called(given), x, last.levels, sampler_key)[jnp.array(after)]
    clean = jax.lax.map(lambda pair: denoise(*pair), (states[:-1], last.levels[jnp.array(after[:-1], int)]))
    return states, jnp.concatenate([clean, states[-1:]])


def _given(stage: Stage, low: Array, key: Array) -> tuple[Mapping[str, Array], Array]:
    """The condition of a super-resolution stage given the images of the stage before, and the remaining key, for its sampler."""
    augmentation_key, sampler_key = jax.random.split(key)
    return augmented(low, _augmentation(stage, low.shape[1:]), stage.factor, augmentation_key), sampler_key


def _sampled(stage: Stage, given: Mapping[str, Array], key: Array, num: int) -> Array:
    x, sampler_key = start(stage, key, num)
    return samplers.sample(stage.sampler, stage.called(given), x, stage.levels, sampler_key)


def start(stage: Stage, key: Array, num: int) -> tuple[Array, Array]:
    """Noise at a stage's first level, and the remaining key, for its sampler."""
    start_key, sampler_key = jax.random.split(key)
    sigma = stage.levels.sigma[0]
    return sigma * jax.random.normal(start_key, (num, *stage.shape), sigma.dtype), sampler_key


def _check(stages: Sequence[Stage]) -> None:
    if not stages or stages[0].augmentation is not None:
        raise ValueError("cascade: the first stage must be a base model, one without augmentation")
    for before, stage in itertools.pairwise(stages):
        _augmentation(stage, before.shape)


def _augmentation(stage: Stage, before: tuple[int, ...]) -> Level:
    """The stage's level of augmentation, checked against the shape of the stage before.

    Raises:
        ValueError: the stage does not fit.
    """
    height, width, channels = before
    expected = (height * stage.factor, width * stage.factor, channels)
    if tuple(stage.shape) != expected:
        raise ValueError(
            f"cascade: a stage of factor {stage.factor} after images {before} must have shape {expected}, got {stage.shape}"
        )
    if stage.augmentation is None:
        raise ValueError(f"cascade: the stage of shape {stage.shape} has no augmentation; schedule(0) is the least of a schedule")
    return stage.augmentation
