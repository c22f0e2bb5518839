"""Conditions: what a network is given of a batch, with random dropout, so that one network learns both denoisers of guidance."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxdiff.arguments import check
from jaxdiff.objectives.rng import keys_of

GUIDANCE = 2**32 - 2  # folded into the key, as super_resolution.AUGMENTATION is
Condition = Callable[[Mapping[str, Array], Array], Any]  # (batch, key) -> what the network is given


def labels(null_label: int, dropout: float = 0.1) -> Condition:
    """The labels `[B]` of a batch, each the null label with probability `dropout` (Ho & Salimans 2022, algorithm 1)."""
    _check_dropout("labels", dropout)
    return lambda batch, key: drop_label(key, batch["index"], batch["label"], null_label, dropout)


def contexts(null: Array, dropout: float = 0.1) -> Condition:
    """The context vectors `[B, T, D]` of a batch, each example's the null ones `[T, D]` with probability `dropout`."""
    _check_dropout("contexts", dropout)
    return lambda batch, key: drop(key, batch["index"], batch["context"], null, dropout)


def texts(dropout: float = 0.1) -> Condition:
    """What a batch holds under the names of its `null`, each example's replaced by the null one with probability `dropout`.

    All of them together: tokens, or the states and the pooled vector of an encoder. A network that is trained without its text
    learns the denoiser that classifier-free guidance subtracts. `null` is a mapping of arrays `[1, ...]`, which is given too.
    """
    _check_dropout("texts", dropout)

    def condition(batch: Mapping[str, Array], key: Array) -> dict[str, Any]:
        null: Any = batch["null"]
        return {name: drop(key, batch["index"], batch[name], each, dropout) for name, each in null.items()} | {"null": null}

    return condition


def guidance_scales(low: float, high: float) -> Condition:
    """Guidance scales `[B]`, uniform between two bounds: an input of networks distilled from a guided teacher.

    Meng et al. (2023), section 3.1, whose w is this scale minus 1.

    Raises:
        ValueError: `low` is above `high`.
    """
    check("guidance_scales", "low <= high", lambda low, high: low <= high, low=low, high=high)

    def condition(batch: Mapping[str, Array], key: Array) -> Array:
        keys = keys_of(jax.random.fold_in(key, GUIDANCE), batch["index"])
        return low + (high - low) * jax.vmap(jax.random.uniform)(keys)

    return condition


def joint(*mappings: Condition, **conditions: Condition) -> Condition:
    """Several conditions as one mapping with the names that the network expects; conditions that return mappings are merged in.

    All get the same key, so that those with the same dropout rate are dropped together.
    """

    def condition(batch: Mapping[str, Array], key: Array) -> dict[str, Any]:
        given = {name: each(batch, key) for name, each in conditions.items()}
        for mapping in mappings:
            given |= mapping(batch, key)
        return given

    return condition


def _check_dropout(where: str, dropout: float) -> None:
    check(where, "0 <= dropout <= 1", lambda dropout: 0 <= dropout <= 1, dropout=dropout)


def drop_label(key: Array, index: Array, label: Array, null_label: int, rate: float) -> Array:
    """The labels `[B]`, each replaced by the null label with probability `rate`."""
    return drop(key, index, label, jnp.asarray(null_label, label.dtype), rate)


def drop(key: Array, index: Array, given: Array, null: Array, rate: float) -> Array:
    """The conditions `[B, ...]`, each example's replaced by the null `[...]` with probability `rate`."""
    dropped = jax.vmap(lambda k: jax.random.bernoulli(k, rate))(keys_of(key, index))
    return jnp.where(dropped.reshape(-1, *(1 for _ in given.shape[1:])), jnp.broadcast_to(null, given.shape), given)
