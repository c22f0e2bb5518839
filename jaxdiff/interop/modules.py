"""The networks that options of published files describe, as modules of ours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from jaxdiff.interop import params
from jaxdiff.models import unet as unets
from jaxdiff.models.dit import DiT


def unet_shapes(options: Mapping[str, Any]) -> Any:
    """The shapes of the params of a UNet."""
    given: dict[str, Any] = {"label": jnp.zeros((1,), jnp.int32)}
    if options.get("context_channels"):
        given["context"] = jnp.zeros((1, 1, options["context_channels"]))
    if options.get("pooled_channels"):
        given |= {"pooled": jnp.zeros((1, options["pooled_channels"])), "sizes": jnp.zeros((1, 6))}
    size = options["patch"] if options["kind"] == "dit" else 2 ** len(options["multipliers"])
    images = jnp.zeros((1, size, size, options["in_channels"]))
    return params.shapes_of(module(options).init, images, jnp.zeros((1,)), **given)


def module(options: Mapping[str, Any]) -> Any:
    """The UNet or the transformer of such options."""
    return unets.unet(options, DiT) if options["kind"] == "dit" else unets.unet(options)
