"""The networks of a config."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array

from jaxdiff import likelihood, objectives
from jaxdiff.config import Experiment
from jaxdiff.denoiser import Denoiser
from jaxdiff.models import autoencoder
from jaxdiff.models.classifier import NoisyClassifier
from jaxdiff.models.schedule import MonotoneLogsnr
from jaxdiff.models.unet import UNet, network
from jaxdiff.recipe.tables import PARAMETERIZATIONS, PIXELS


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


def conditional(config: Experiment, params: Any, given: Any) -> Denoiser:
    """The denoiser of a diffusion config at these params, given labels `[B]` (`num_classes` is none at all) or a mapping."""
    weights = params["network"] if config.diffusion.schedule == "learned" else params
    return objectives.conditional(network(unet(config)), PARAMETERIZATIONS[config.diffusion.prediction], weights, given)
