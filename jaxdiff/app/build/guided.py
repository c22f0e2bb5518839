"""The denoisers of a config, guided from null labels and null text."""

from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
from jax import Array

from jaxdiff.app.build.networks import conditional_denoiser
from jaxdiff.app.config import STUDENTS, Experiment, guidance_is_input
from jaxdiff.denoiser import Denoiser
from jaxdiff.guidance import guide

Transform = Callable[[Denoiser], Denoiser]


def guided_denoiser(config: Experiment, params: Any, given: Mapping[str, Any], scale: float | Array) -> Denoiser:
    """The config's denoiser, guided from null labels, and null text if given any, by one scale, or by one an example `[B]`.

    A `scale` that is given counts before the argument. A student has learned guidance. Of a flow map it
    jumps to clean.
    """
    return guidance_of(config, params, given, scale)(conditional_denoiser(config, params, own_condition(config, given, scale)))


def own_condition(config: Experiment, given: Mapping[str, Any], scale: float | Array) -> dict[str, Any]:
    """What the network of `guided_denoiser` itself is given, at scale 0 no label; a student its scale."""
    scale, own = given.get("scale", scale), {name: each for name, each in given.items() if name not in ("null", "scale")}
    if config.objective in STUDENTS:
        label = given["label"]
        scales = {"guidance": jnp.broadcast_to(jnp.asarray(scale, jnp.float32), label.shape)} if guidance_is_input(config) else {}
        return {**own, **scales}
    return {**own, **null_condition(config, given)} if isinstance(scale, int | float) and scale == 0 else own


def guidance_of(config: Experiment, params: Any, given: Mapping[str, Any], scale: float | Array) -> Transform:
    """What `guided_denoiser` makes of the denoiser given `own_condition`."""
    scale = given.get("scale", scale)
    if config.objective in STUDENTS or (isinstance(scale, int | float) and scale in (0, 1)):
        return lambda denoise: denoise
    own = own_condition(config, given, scale)
    reference = conditional_denoiser(config, params, {**own, **null_condition(config, given)})
    scale = jnp.reshape(jnp.asarray(scale), (-1, *(1 for _ in config.data.image_shape)))
    return lambda denoise: guide(denoise, reference, scale)


def null_condition(config: Experiment, given: Mapping[str, Any]) -> dict[str, Any]:
    """The null label, and the null text or context where any is given."""
    none, null = given.get("null", {}), {"label": jnp.full_like(given["label"], config.model.num_classes)}
    null |= {name: jnp.broadcast_to(each, given[name].shape) for name, each in none.items()}
    return {**null, "context": jnp.zeros_like(given["context"])} if "context" in given and not none else null
