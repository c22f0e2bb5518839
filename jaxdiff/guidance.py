"""Guidance: functions from denoisers to a denoiser, which compose and work with every sampler.

>>> import jax.numpy as jnp
>>> from jaxdiff import cosine, guidance, oracles
>>> label, plain = (oracles.denoiser(oracles.gaussian(mean=[m], std=0.5)) for m in (1.0, 0.0))
>>> guided = guidance.interval(guidance.guide(label, plain, 3.0), label, sigma_min=0.3, sigma_max=5.0)
>>> guided(jnp.zeros((1, 1)), cosine()(0.5)).item() > label(jnp.zeros((1, 1)), cosine()(0.5)).item()
True
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from jaxdiff.arguments import check
from jaxdiff.compilation import compiled_once
from jaxdiff.denoiser import Denoiser
from jaxdiff.process import Level
from jaxdiff.process.levels import safe_sqrt

LogProb = Callable[[Array, Level], Array]  # (x, level) -> log p(label | x) [B], of the noised x


def guide(denoise: Denoiser, reference: Denoiser, scale: float | Array) -> Denoiser:
    """`scale * denoise + (1 - scale) * reference`: away from the reference, further towards the denoiser.

    Classifier-free guidance where the reference is the same network without a label (Ho & Salimans 2022, eq. 6, with
    scale = 1 + w); autoguidance where it is a weaker network (Karras et al. 2024). Exactly `denoise` at scale 1,
    exactly `reference` at scale 0.
    """

    def guided(x: Array, level: Level) -> Array:
        return scale * denoise(x, level) + (1 - scale) * reference(x, level)

    return guided


def projected_guide(
    denoise: Denoiser, reference: Denoiser, scale: float | Array, *, eta: float | Array = 0.0, radius: float | Array = jnp.inf
) -> Denoiser:
    """`guide` with a smaller component along `denoise`, which only saturates the image: adaptive projected guidance (APG).

    The difference `denoise - reference` of each example is shortened to length `radius`, and its part parallel to
    `denoise` multiplied by eta (Sadat et al. 2024, eq. 7 and algorithm 1, without momentum, which needs memory between
    steps). With eta = 1 and no radius it is `guide`.
    """

    def guided(x: Array, level: Level) -> Array:
        x0 = denoise(x, level)
        difference = x0 - reference(x, level)
        length2 = _dot(difference, difference)
        long = length2 > radius**2
        shrink = jnp.where(long, jnp.where(long, radius, 1) / jnp.sqrt(jnp.where(long, length2, 1)), 1)
        size2 = _dot(x0, x0)
        parallel = _dot(difference, x0) / jnp.where(size2 > 0, size2, 1) * x0
        return x0 + (scale - 1) * shrink * (difference + (eta - 1) * parallel)

    return guided


def rescaled(guided: Denoiser, denoise: Denoiser, share: float | Array = 0.7) -> Denoiser:
    """The guided x0, its standard deviation moved by `share` towards that of `denoise`, for each example.

    Lin et al. (2023), eq. 15 and 16, applied to x0 where they apply it to the network's output.
    """
    check("rescaled", "0 <= share <= 1", lambda share: 0 <= share <= 1, share=share)

    def denoise_rescaled(x: Array, level: Level) -> Array:
        x0 = guided(x, level)
        std, guided_std = _std(denoise(x, level)), _std(x0)
        return (share * std / jnp.where(guided_std > 0, guided_std, 1) + 1 - share) * x0

    return denoise_rescaled


def interval(guided: Denoiser, denoise: Denoiser, sigma_min: float | Array, sigma_max: float | Array) -> Denoiser:
    """`guided` where `sigma_min < sigma / alpha <= sigma_max`, elsewhere `denoise`: guidance in a limited interval.

    Kynkaanniemi et al. (2024), eq. 4. At a level of shape [], as in `sample`, only the denoiser in use is called.

    Raises:
        ValueError: sigma_min is not below sigma_max.
    """
    check("interval", "sigma_min < sigma_max", lambda low, high: low < high, sigma_min=sigma_min, sigma_max=sigma_max)

    def limited(x: Array, level: Level) -> Array:
        ratio = level.sigma / level.alpha
        inside = jnp.asarray((sigma_min < ratio) & (ratio <= sigma_max))
        if inside.ndim == 0:
            return compiled_once(jax.lax.cond)(inside, guided, denoise, x, level)
        return jnp.where(inside, guided(x, level), denoise(x, level))

    return limited


def classifier_guide(denoise: Denoiser, log_prob: LogProb, scale: float | Array = 1.0) -> Denoiser:
    """`D + scale * sigma^2 / alpha * grad log_prob(x, level)`: guidance by a classifier of noised images.

    Dhariwal & Nichol (2021), algorithm 2, for x0 by Tweedie's formula. `log_prob` is any differentiable function
    to `[B]`; scale 1 with the exact log p(label | x) is the exact denoiser of that label. Fails where alpha = 0.
    """

    def guided(x: Array, level: Level) -> Array:
        gradient = jax.grad(lambda x: jnp.sum(log_prob(x, level)))(x)
        return denoise(x, level) + scale * level.sigma**2 / level.alpha * gradient

    return guided


def _dot(a: Array, b: Array) -> Array:
    """Inner product of each example, `[B, 1, ..., 1]`."""
    return jnp.sum(a * b, axis=tuple(range(1, a.ndim)), keepdims=True)


def _std(x0: Array) -> Array:
    """Standard deviation of each example, `[B, 1, ..., 1]`; its gradient is finite where it is 0."""
    return safe_sqrt(jnp.var(x0, axis=tuple(range(1, x0.ndim)), keepdims=True))
