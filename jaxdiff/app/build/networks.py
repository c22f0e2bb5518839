"""The networks of a config."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array

from jaxdiff import likelihood, objectives
from jaxdiff.app.build.tables import PARAMETERIZATIONS, PIXELS
from jaxdiff.app.config import STUDENTS, Experiment, guidance_is_input
from jaxdiff.denoiser import Denoiser, bounded
from jaxdiff.guidance import guide
from jaxdiff.models import autoencoder
from jaxdiff.models.classifier import NoisyClassifier
from jaxdiff.models.schedule import MonotoneLogsnr
from jaxdiff.models.unet import UNet, network


class Vae(NamedTuple):
    """Encoder, decoder and the law of the pixels."""

    encoder: autoencoder.Encoder
    decoder: autoencoder.Decoder
    pixels: likelihood.Pixels

    def encode(self, params: Any, x0: Array) -> likelihood.Posterior:
        """The posterior of the codes of images `[B, H, W, C]`."""
        return likelihood.Posterior(*autoencoder.encode(self.encoder)(params, x0))

    def log_prob(self, params: Any, z: Array, x0: Array) -> Array:
        """`log p(x0 | z)` of images at codes, `[B]`."""
        return self.pixels.log_prob(x0, autoencoder.decode(self.decoder)(params, z))

    def mean(self, params: Any, z: Array) -> Array:
        """The expected images `[B, H, W, C]` of codes."""
        return self.pixels.mean(autoencoder.decode(self.decoder)(params, z))


def unet(config: Experiment) -> UNet:
    """The network of a config that trains diffusion."""
    return fields_of(config, UNet)


def noisy_classifier(config: Experiment) -> NoisyClassifier:
    """The network of a config that trains a classifier."""
    return fields_of(config, NoisyClassifier)


def learned_logsnr() -> MonotoneLogsnr:
    """The network of a learned schedule."""
    return MonotoneLogsnr()


def vae(config: Experiment) -> Vae:
    """The parts of a config that trains a VAE."""
    pixels = PIXELS[config.vae.pixels](config.vae.std)
    encoder = fields_of(config, autoencoder.Encoder, latent_channels=config.vae.latent_channels)
    out_channels = pixels.outputs * config.data.image_shape[-1]
    return Vae(encoder, fields_of(config, autoencoder.Decoder, out_channels=out_channels), pixels)


def fields_of(config: Experiment, kind: Any, **others: Any) -> Any:
    """The module of that kind with those of its attributes that the config's model names, and others."""
    model = {**dataclasses.asdict(config.model), "dtype": jnp.dtype(config.model.dtype)}
    return kind(**{name: value for name, value in model.items() if name in kind.__dataclass_fields__}, **others)


def conditional_denoiser(config: Experiment, params: Any, given: Any, dropout_key: Array | None = None) -> Denoiser:
    """The denoiser of a config at these params, given labels `[B]` (`num_classes` is none at all) or a mapping."""
    weights = params["network"] if config.diffusion.schedule == "learned" else params
    apply, parameterization = network(unet(config)), PARAMETERIZATIONS[config.diffusion.prediction]
    if config.objective == "consistency" and config.diffusion.prediction == "x0":  # the others are x / alpha without noise
        parameterization = bounded(parameterization)
    return objectives.conditional(apply, parameterization, weights, given, dropout_key)


def guided_denoiser(config: Experiment, params: Any, given: Mapping[str, Any], scale: float | Array) -> Denoiser:
    """The config's denoiser, guided by a scale, or one an example `[B]`: its own input where it has that, else from null labels."""
    label = given["label"]
    if config.objective in STUDENTS:
        scales = {"guidance": jnp.broadcast_to(jnp.asarray(scale, jnp.float32), label.shape)} if guidance_is_input(config) else {}
        return conditional_denoiser(config, params, {**given, **scales})
    null = {"label": jnp.full_like(label, config.model.num_classes)}
    if "context" in given:
        null["context"] = jnp.zeros_like(given["context"])
    with_label, without = (conditional_denoiser(config, params, each) for each in (given, {**given, **null}))
    if isinstance(scale, int | float) and scale in (0, 1):
        return with_label if scale else without
    scale = jnp.reshape(jnp.asarray(scale), (-1, *(1 for _ in config.data.image_shape)))
    return guide(with_label, without, scale)
