"""What networks may be given beside an image and its condition, by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypedDict

from jax import Array


class Given(TypedDict, total=False):
    """What a network may be given beside labels; None, or left out, is nothing."""

    context: Array | None
    spatial: Array | None
    augmentation: Array | None
    guidance: Array | None
    until: Array | None
    pooled: Array | None
    sizes: Array | None


GIVEN = ("label", *Given.__annotations__)


def check_given(named: Mapping[str, Any]) -> None:
    """Whether networks may be given what has these names.

    Raises:
        ValueError: they may not.
    """
    for name in named:
        if name not in GIVEN:
            raise ValueError(f"a network cannot be given {name!r}; it may be given {', '.join(GIVEN)}")
