"""Probabilities of 8-bit data from a density of continuous data: `log P(x0) >= E[log p(x) + log weight]`."""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from jaxdiff.compilation import compiled_once
from jaxdiff.denoiser import Denoiser
from jaxdiff.likelihood.checks import check_data
from jaxdiff.likelihood.densities import BIN, LogProb, discretized_gaussian, gaussian
from jaxdiff.likelihood.estimate import Estimate, standard_error
from jaxdiff.process import Level

Dequantization = Callable[[Array, Array], tuple[Array, Array]]
# (x0 [B, ...], key) -> a draw of x from q(x | x0), and `log P(x0 | x) - log q(x | x0)`, the log weight [B]


def uniform(x0: Array, key: Array) -> tuple[Array, Array]:
    """Uniform draws in the interval of width 2 / 255 around each value; the log weight is the log of its volume.

    Theis et al. (2016), section 3.1. For models trained on uniformly dequantized data.
    """
    x = x0 + BIN * (jax.random.uniform(key, x0.shape, x0.dtype) - 0.5)
    return x, jnp.full(x0.shape[:1], math.prod(x0.shape[1:]) * math.log(BIN), x0.dtype)


def variational(draw: Callable[[Array, Array], tuple[Array, Array]]) -> Dequantization:
    """Draws by `draw(x0, key) -> (x, log q(x | x0) [B])`, which must stay inside x0's intervals.

    Ho et al. (2019), section 3.1. The better q matches the model's density inside an interval, the tighter the bound.
    """

    def dequantize(x0, key):
        x, log_q = draw(x0, key)
        return x, -log_q

    return dequantize


def diffused(denoise: Denoiser, level: Level, reconstruction: LogProb = discretized_gaussian) -> Dequantization:
    """Draws from the diffusion process at the cleanest level, with `reconstruction(x0, D(x), sigma / alpha)` for x0 given x.

    Variational dequantization without another network (Zheng et al. 2023, with the reconstruction term of
    the diffusion bounds instead of a truncated Gaussian): for models trained on 8-bit data without dequantization.
    The level is the last noisy one of the list of the density.
    """

    def dequantize(x0, key):
        std = level.sigma / level.alpha
        x = x0 + std * jax.random.normal(key, x0.shape, x0.dtype)
        return x, reconstruction(x0, denoise(level.alpha * x, level), std) - gaussian(x, x0, std)

    return dequantize


def dequantized_bound(
    log_density: Callable[[Array, Array], Estimate],
    x0: Array,
    key: Array,
    dequantize: Dequantization,
    *,
    num_samples: int = 2,
) -> Estimate:
    """A lower bound of the log-probability of 8-bit data, `E[log p(x) + log weight]` over `num_samples` draws of x, in nats `[B]`.

    Args:
        log_density: `(x, key) -> Estimate`, such as `flow_log_density` with its other arguments given.
        x0: 8-bit data `[B, ...]`, `k / 127.5 - 1`.
        key: of the draws and of the density's own.
        dequantize: `uniform`, `variational(draw)` or `diffused(denoise, level)`.
        num_samples: draws of x; the standard error, which includes the density's, needs two.

    Raises:
        ValueError: x0 is outside [-1, 1] or not 8-bit data, or the log-density is not in nats.
    """
    check_data(x0, discretized_gaussian)

    def sample(_, key):
        draw_key, density_key = jax.random.split(key)
        x, log_weight = dequantize(x0, draw_key)
        density = log_density(x, density_key)
        if density.unit != "nats":
            raise ValueError(f"dequantized_bound: the log-density must be in nats, got {density.unit}")
        return None, (density.terms, log_weight)

    terms, log_weight = compiled_once(jax.lax.scan)(sample, None, jax.random.split(key, num_samples))[1]
    terms = {**terms, "dequantization": log_weight}
    total = jnp.sum(jnp.stack(list(terms.values())), axis=0)
    return Estimate(jnp.mean(total, axis=0), standard_error(total), jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0), terms))
