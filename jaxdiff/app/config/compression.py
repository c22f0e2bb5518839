"""The fields of networks that compress images: a VAE, and the autoencoder of latent diffusion."""

from dataclasses import dataclass
from typing import Literal

from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat

from jaxdiff.app.config.field_types import PositiveInt


@dataclass(frozen=True)
class Vae:
    """The code of a VAE and the law of its pixels; encoder and decoder take their sizes from the model."""

    latent_channels: PositiveInt = 4
    """Of the code at each position; each of model.multipliers but the last halves the image."""
    pixels: Literal["logistic", "binary", "gaussian"] = "logistic"
    """logistic: 8-bit pixels; binary: black or white, cut at the middle; gaussian: a density."""
    std: PositiveFloat = 0.1
    """Of gaussian pixels."""
    beta: NonNegativeFloat = 1.0
    """Weight of the KL from the prior; 1 is maximum likelihood."""
    free_bits: NonNegativeFloat = 0.0
    """Nats of KL for each latent channel that cost nothing."""


@dataclass(frozen=True)
class Autoencoder:
    """The autoencoder of latent diffusion, and what it is trained by; encoder and decoder take their sizes from the model."""

    latent_channels: PositiveInt = 4
    """Of the latents at each position; each of model.multipliers but the last halves the image."""
    kl: NonNegativeFloat = 1e-6
    """Weight of the KL from a standard normal, in nats per dimension of the image."""
    codebook: NonNegativeInt = 0
    """Number of codes of a vector-quantised one, which has no KL; 0 is none."""
    commitment: NonNegativeFloat = 0.25
    """Weight that ties latents to their codes."""
    distance: Literal["l1", "l2"] = "l1"
    """Of pixels."""
    perceptual: NonNegativeFloat = 0.0
    """Weight of the distance of features of sources.features."""
    adversarial: NonNegativeFloat = 0.0
    """Weight of a patch discriminator, relative to a balance of gradients; 0 is none."""
    adversarial_start: NonNegativeInt = 0
    """Step at which the discriminator begins."""
    discriminator_channels: PositiveInt = 64
    discriminator_layers: PositiveInt = 3
    """Convolutions of the discriminator that halve the image."""
    measured: PositiveInt = 2000
    """Training images over which the latents' scale and shift are measured at the end."""
