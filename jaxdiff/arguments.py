"""Checks of the numbers that factories are given, and the dtypes of arrays and keys. Arrays are not checked: they may be traced."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

T = TypeVar("T")


def check(where: str, rule: str, good: Callable[..., bool], **numbers: Any) -> None:
    """Checks that `good(*numbers)`, where all of them are numbers of Python or numpy.

    Raises:
        ValueError: it is not; the message says the rule and the numbers.
    """
    if all(isinstance(number, int | float | np.number) for number in numbers.values()) and not good(*numbers.values()):
        got = ", ".join(f"{name} = {number:g}" for name, number in numbers.items())
        raise ValueError(f"{where}: must have {rule}, got {got}")


def at_least_float32(tree: T) -> T:
    """The arrays of a tree as JAX's, those in bfloat16 or float16 in float32."""
    half = (jnp.bfloat16, jnp.float16)
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32) if leaf.dtype in half else jnp.asarray(leaf), tree)


def is_one_key(key: jax.Array) -> bool:
    """Whether it is one key and not `[B]` keys: a typed one (`jax.random.key`) or one of two uint32 (`jax.random.PRNGKey`)."""
    return key.ndim == (0 if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else 1)


def check_count(where: str, least: int = 1, **counts: Any) -> None:
    """Checks that each is a whole number of at least `least`.

    Raises:
        ValueError: one is not.
    """
    for name, count in counts.items():
        if not isinstance(count, int | np.integer) or count < least:
            raise ValueError(f"{where}: {name} must be a whole number of at least {least}, got {count}")
