"""The condition of a super-resolution model: the image at low resolution, noised, in training and in sampling.

Ho et al. (2021), "Cascaded Diffusion Models", section 4: noise on the condition makes a model robust to errors of
the stage before (conditioning augmentation).
"""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax import Array

from jaxdiff.arguments import check
from jaxdiff.losses import noise_like
from jaxdiff.objectives.conditions import Condition
from jaxdiff.objectives.rng import keys_of
from jaxdiff.process import Level, Schedule, diffuse

AUGMENTATION = 2**32 - 1  # folded into the key; not the index of an example, which `joint` folds into the same key


def downsampled(x: Array, factor: int) -> Array:
    """The images `[B, H, W, C]` at `[B, H / factor, W / factor, C]`: by means over squares of pixels.

    Raises:
        ValueError: `factor` is below 1 or does not divide height and width.
    """
    batch, height, width, channels = x.shape
    if factor < 1 or height % factor or width % factor:
        raise ValueError(f"downsampled: factor must divide the images' {height}x{width}, got {factor}")
    return jnp.mean(x.reshape(batch, height // factor, factor, width // factor, factor, channels), axis=(2, 4))


def upsampled(x: Array, factor: int) -> Array:
    """The images `[B, H, W, C]` at `[B, H * factor, W * factor, C]`, bilinear: without ringing, and without edges between squares
    of pixels. Not the inverse of `downsampled`.
    """
    batch, height, width, channels = x.shape
    return jax.image.resize(x, (batch, height * factor, width * factor, channels), "bilinear")


def augmented(low: Array, level: Level, factor: int, key: Array) -> dict[str, Array]:
    """The condition of low-resolution images: `spatial [B, H, W, C]` at the network's resolution, and logsnr `augmentation [B]`.

    `spatial = upsampled(alpha * low + sigma * noise) / hypot(alpha, sigma)`: noised at low resolution (Ho et al. 2021,
    algorithms 1 and 2), scaled to about unit size so that it depends on logsnr alone. Fails where sigma = 0.
    `key` is one key, or `[B]` keys so that an example's noise does not depend on the batch around it.
    """
    noised = diffuse(low, noise_like(key, low), level) / jnp.hypot(level.alpha, level.sigma)
    return {"spatial": upsampled(noised, factor), "augmentation": jnp.broadcast_to(jnp.ravel(level.logsnr), low.shape[:1])}


def low_resolution(schedule: Schedule, factor: int, max_time: float) -> Condition:
    """The images of a batch at low resolution, `augmented` to times of the schedule uniform in [0, max_time].

    Ho et al. (2021), algorithm 1, with one range for training, from which sampling may choose any level. A max_time of 0 is
    almost no augmentation, `schedule(0)`. Combine it with others by `joint(low_resolution(...), label=labels(10))`.

    Raises:
        ValueError: `max_time` lies outside [0, 1], or `factor` does not divide the images.
    """
    check("low_resolution", "0 <= max_time <= 1", lambda max_time: 0 <= max_time <= 1, max_time=max_time)

    def condition(batch: Mapping[str, Array], key: Array) -> dict[str, Array]:
        keys = keys_of(jax.random.fold_in(key, AUGMENTATION), batch["index"])
        time_keys, noise_keys = jax.vmap(jax.random.split, out_axes=1)(keys)
        # Not spread_times, or these times would differ from the objective's by one constant in the whole batch
        level = schedule(max_time * jax.vmap(jax.random.uniform)(time_keys)).expand(batch["image"].ndim)
        return augmented(downsampled(batch["image"], factor), level, factor, noise_keys)

    return condition
