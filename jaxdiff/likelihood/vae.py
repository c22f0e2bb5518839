"""Bounds of the log-likelihood under a latent-variable model with a standard normal prior and a Gaussian posterior.

The `Pixels` below turn a decoder's output into a distribution of pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxdiff.arguments import is_one_key
from jaxdiff.compilation import compiled_once
from jaxdiff.likelihood import densities
from jaxdiff.likelihood.checks import check_continuous, check_data, check_range
from jaxdiff.likelihood.estimate import Estimate, standard_error

LOG_SCALE = (-7.0, 2.0)  # bounds of a learned logistic's log scale: 1 / 9 of a pixel value's interval, and 4 times the whole range


class Posterior(NamedTuple):
    """A diagonal Gaussian over codes, `q(z | x0)`: two arrays `[B, ..., channels]`."""

    mean: Array
    std: Array


Encode = Callable[[Array], Posterior]  # x0 -> q(z | x0); a plain pair is accepted
Decode = Callable[[Array, Array], Array]  # (z, x0) -> log p(x0 | z) [B]


class Pixels(NamedTuple):
    """A distribution of pixels given a decoder's output `[B, H, W, outputs * C]` for images of C channels."""

    log_prob: Callable[[Array, Array], Array]
    """`(x0, output) -> [B]` in nats; a ValueError where x0 does not fit the distribution."""
    mean: Callable[[Array], Array]
    """`output -> x0 [B, H, W, C]`, the expected image."""
    outputs: int


def binary_pixels() -> Pixels:
    """Pixels -1 or 1, 1 with probability sigmoid(output); x0 is binarized at 0 (Kingma & Welling 2014, C.1)."""

    def log_prob(x0: Array, output: Array) -> Array:
        check_range(x0)
        return densities.bernoulli(jnp.where(x0 > 0, 1, -1).astype(x0.dtype), output)

    return Pixels(log_prob, lambda output: 2 * jax.nn.sigmoid(output) - 1, 1)


def gaussian_pixels(std: Array | float) -> Pixels:
    """A Gaussian density around the output; `std`, a scalar or one per channel, may be learned (Kingma & Welling 2014, C.2)."""

    def log_prob(x0: Array, output: Array) -> Array:
        check_continuous(x0)
        return densities.gaussian(x0, output, jnp.broadcast_to(jnp.asarray(std, x0.dtype), x0.shape))

    return Pixels(log_prob, lambda output: output, 1)


def logistic_pixels() -> Pixels:
    """8-bit pixels with a discretised logistic, whose mean and log scale are the halves of the output (Kingma et al. 2016, C)."""

    def log_prob(x0: Array, output: Array) -> Array:
        check_data(x0, densities.discretized_logistic)
        mean, log_scale = jnp.split(output, 2, axis=-1)
        return densities.discretized_logistic(x0, mean, jnp.exp(jnp.clip(log_scale, *LOG_SCALE)))

    return Pixels(log_prob, lambda output: jnp.clip(jnp.split(output, 2, axis=-1)[0], -1, 1), 2)


def reparameterized(posterior: Posterior, key: Array) -> Array:
    """A code `z = mean + std * noise`, from one key or from `[B]` keys, one per example (Kingma & Welling 2014, section 2.4)."""
    mean, std = posterior
    if is_one_key(key):
        return mean + std * jax.random.normal(key, mean.shape, mean.dtype)
    return mean + std * jax.vmap(lambda k: jax.random.normal(k, mean.shape[1:], mean.dtype))(key)


def channel_kl(posterior: Posterior) -> Array:
    """`KL(q || N(0, I))` of each channel of the code, summed over its positions, `[B, channels]`."""
    mean, std = posterior
    each = (mean**2 + std**2 - 1) / 2 - jnp.log(std)
    return jnp.sum(each, axis=tuple(range(1, mean.ndim - 1)))


def kl(posterior: Posterior) -> Array:
    """`KL(q || N(0, I)) = sum((mean^2 + std^2 - 1) / 2 - log std)`, `[B]` (Kingma & Welling 2014, appendix B)."""
    return jnp.sum(channel_kl(posterior), axis=-1)


def elbo(encode: Encode, decode: Decode, x0: Array, key: Array, num_samples: int = 16) -> Estimate:
    """`E_q log p(x0 | z) - KL(q(z | x0) || N(0, I))`, in nats (Kingma & Welling 2014, eq. 7).

    The terms are `reconstruction`, a mean over codes with a standard error, and `prior`, in closed form.

    Args:
        encode: the posterior of x0.
        decode: the log-probability of x0 at a code.
        x0: examples `[B, ...]`.
        key: one key, or `[B]`, one per example.
        num_samples: codes per example, evaluated sequentially; at least 2, for a standard error.
    """
    posterior = encode(x0)
    log_probs = compiled_once(jax.lax.map)(lambda k: decode(reparameterized(posterior, k), x0), _draws(key, num_samples))
    reconstruction, prior = jnp.mean(log_probs, axis=0), -kl(posterior)
    return Estimate(reconstruction + prior, standard_error(log_probs), {"reconstruction": reconstruction, "prior": prior})


def importance_bound(encode: Encode, decode: Decode, x0: Array, key: Array, num_samples: int = 64) -> Estimate:
    """`E log mean_k w_k`, `w = p(x0 | z) p(z) / q(z | x0)`, in nats: it increases with k to log p(x0) (Burda et al. 2016, eq. 8).

    The standard error is the delta method's, `std(w) / (mean(w) sqrt(k))`: too small where one weight dominates, as larger
    ones have then been missed, and it does not include the gap between the bound and log p(x0).

    Args: as `elbo`.
    """
    posterior = encode(x0)
    mean, std = posterior

    def log_weight(key: Array) -> Array:
        z = reparameterized(posterior, key)
        ratio = jnp.log(std) + ((z - mean) / std) ** 2 / 2 - z**2 / 2
        return decode(z, x0) + jnp.sum(ratio, axis=tuple(range(1, z.ndim)))

    log_weights = compiled_once(jax.lax.map)(log_weight, _draws(key, num_samples))
    value = jax.nn.logsumexp(log_weights, axis=0) - math.log(num_samples)
    return Estimate(value, standard_error(jnp.exp(log_weights - value[None])), {"importance": value})


def _draws(key: Array, num_samples: int) -> Array:
    """Keys `[num_samples, ...]` from one key or from `[B]`."""
    if is_one_key(key):
        return jax.random.split(key, num_samples)
    return jax.vmap(lambda k: jax.random.split(k, num_samples), out_axes=1)(key)
