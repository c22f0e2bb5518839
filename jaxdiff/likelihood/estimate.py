"""What every likelihood function returns: a value with its standard error, its unit and its terms."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
from jax import Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Estimate:
    """A log-likelihood, or a lower bound of it: the terms add up to the value.

    Of each example `[B]`, with the standard error of its Monte Carlo estimate, or `[]` of a data set (see `mean`). In nats
    more is better; in bits per dimension, where every sign is turned, less.
    """

    value: Array
    standard_error: Array
    terms: Mapping[str, Array]
    unit: str = field(default="nats", metadata={"static": True})


def bits_per_dim(nats: Array, shape: Sequence[int]) -> Array:
    """`-nats / (log 2 * dimensions)` of a log-likelihood in nats of one example of that shape (without batch)."""
    return -nats / (math.log(2) * math.prod(shape))


def in_bits_per_dim(estimate: Estimate, shape: Sequence[int]) -> Estimate:
    """The estimate, with every term, by `bits_per_dim`.

    Raises:
        ValueError: it is not in nats.
    """
    if estimate.unit != "nats":
        raise ValueError(f"in_bits_per_dim: the estimate must be in nats, got {estimate.unit}")
    value, terms = jax.tree.map(lambda nats: bits_per_dim(nats, shape), (estimate.value, estimate.terms))
    return Estimate(value, jnp.abs(bits_per_dim(estimate.standard_error, shape)), terms, "bits/dim")


def standard_error(samples: Array) -> Array:
    """Of the mean of independent samples `[K, B]`, `[B]`; not a number where there is but one, which shows no spread."""
    if samples.shape[0] == 1:
        return jnp.full_like(samples[0], jnp.nan)
    return jnp.std(samples, axis=0, ddof=1) / math.sqrt(samples.shape[0])


def mean(estimate: Estimate) -> Estimate:
    """The mean over examples `[B]`, B at least 2, as an estimate of the mean over the data's distribution, `[]`.

    Its standard error is the spread over examples / sqrt(B), which holds the Monte Carlo error of each as well.
    """
    error = jnp.std(estimate.value, ddof=1) / math.sqrt(estimate.value.shape[0])
    return Estimate(jnp.mean(estimate.value), error, jax.tree.map(jnp.mean, dict(estimate.terms)), estimate.unit)
