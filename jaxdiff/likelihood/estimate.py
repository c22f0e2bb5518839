"""The result of every likelihood function: a value with its standard error, unit and terms."""

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

    For each example, `[B]`, with the standard error of the Monte Carlo estimate, or for a data set, `[]` (see `mean`). Higher is
    better in nats; in bits per dimension, which have the opposite sign, lower.
    """

    value: Array
    standard_error: Array
    terms: Mapping[str, Array]
    unit: str = field(default="nats", metadata={"static": True})


def bits_per_dim(nats: Array, shape: Sequence[int]) -> Array:
    """`-nats / (log 2 * dimensions)` of a log-likelihood in nats of one example of that shape (without batch)."""
    return -nats / (math.log(2) * math.prod(shape))


def in_bits_per_dim(estimate: Estimate, shape: Sequence[int]) -> Estimate:
    """The estimate and its terms in bits per dimension.

    Raises:
        ValueError: it is not in nats.
    """
    if estimate.unit != "nats":
        raise ValueError(f"in_bits_per_dim: the estimate must be in nats, got {estimate.unit}")
    value, terms = jax.tree.map(lambda nats: bits_per_dim(nats, shape), (estimate.value, estimate.terms))
    return Estimate(value, jnp.abs(bits_per_dim(estimate.standard_error, shape)), terms, "bits/dim")


def standard_error(samples: Array) -> Array:
    """The standard error of the mean of K independent samples `[K, B]`, `[B]`; NaN for K = 1."""
    if samples.shape[0] == 1:
        return jnp.full_like(samples[0], jnp.nan)
    return jnp.std(samples, axis=0, ddof=1) / math.sqrt(samples.shape[0])


def mean(estimate: Estimate) -> Estimate:
    """The mean over examples `[B]`, B at least 2, as an estimate of the mean over the data's distribution, `[]`.

    The standard error is the std over examples / sqrt(B), which includes their Monte Carlo errors.
    """
    error = jnp.std(estimate.value, ddof=1) / math.sqrt(estimate.value.shape[0])
    return Estimate(jnp.mean(estimate.value), error, jax.tree.map(jnp.mean, dict(estimate.terms)), estimate.unit)
