"""The fields by which published networks and their discrete chains differ from ours."""

from dataclasses import dataclass
from typing import Literal

from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat

from jaxdiff.app.config.field_types import BelowOne, PositiveInt


@dataclass(frozen=True)
class Betas:
    """The discrete chain of the schedule betas, by which a network may be told a time step."""

    kind: Literal["linear", "scaled_linear", "cosine", "listed"] = "linear"
    """How they rise: linear in DDPM, scaled_linear (their roots are) in Stable Diffusion."""
    first: BelowOne = 0.0001
    last: BelowOne = 0.02
    num: PositiveInt = 1000
    listed: tuple[float, ...] = ()
    """Themselves, of kind listed."""
    zero_terminal_snr: bool = False
    """Rescale them to end in pure noise."""


@dataclass(frozen=True)
class Published:
    """Options of published networks, set by `jaxdiff import`; for training from nothing the defaults serve."""

    told: Literal["logsnr", "step", "log_sigma", "time", "data_time"] = "logsnr"
    """What the network is told of a level: logsnr, the time step of betas, log(sigma / alpha), or the time of rectified flow at
    that logsnr, from 0 (clean) to 1, or data_time, which goes the other way."""
    told_scale: PositiveFloat = 1.0
    """Times this: 250 for log_sigma in consistency models, 0.25 in EDM."""
    base: PositiveFloat = 10_000.0
    """Of the frequencies of a step or log_sigma, which begin at 1."""
    features: NonNegativeInt = 0
    """Their sines and cosines together; 0: model.channels."""
    shift: NonNegativeFloat = 0.0
    """freq_shift of diffusers: 1 in DDPM, 0 in ADM and Stable Diffusion."""
    cosine_first: bool = False
    """Cosines before sines, as in ADM and Stable Diffusion."""
    groups: NonNegativeInt = 0
    """Of every norm, 32 as published; 0: at most 32 of at least four channels."""
    epsilon: PositiveFloat = 1e-5
    """Of the norms; 1e-6 in DDPM and autoencoders."""
    transformer_epsilon: PositiveFloat = 1e-5
    """Of the norms before transformers; 1e-6 in Stable Diffusion."""
    padding: tuple[int, int] = (0, 1)
    """Of the convolution that halves the image, before and after it; 1 1 in Stable Diffusion's UNet."""
    attention_levels: tuple[int, ...] = ()
    """Levels with attention, the first is 0, in place of model.attention: the same network at every image size."""
    transformer_depths: tuple[int, ...] = ()
    """Transformer blocks at each level, in place of model.transformer."""
    pooled_channels: NonNegativeInt = 0
    """Width of the pooled text that a network is given beside the sizes of its image, as Stable Diffusion XL is; 0: neither."""
    zero_null: bool = False
    """What an empty prompt gives the network is zeros, as in Stable Diffusion XL."""
    size_features: PositiveInt = 256
    """Sines and cosines of each of these sizes."""
    learned_variance: bool = False
    """The network has outputs for the variance too, which the sampler ddpm_learned reads."""
    repository: str = ""
    """OWNER/NAME of the Hugging Face hub that a recipe's network is imported from, not trained."""
    boundary: NonNegativeFloat = 0.0
    """sigma / alpha at which the prediction edm is x / alpha: 0.002 in consistency models."""
