"""The networks of a config: denoisers, and what autoencoders make of images."""

import types
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxdiff import likelihood, objectives
from jaxdiff.app.build import texts
from jaxdiff.app.build.tables import PARAMETERIZATIONS, PIXELS, TOLD
from jaxdiff.app.config import Experiment
from jaxdiff.denoiser import AverageDenoiser, Denoiser, Parameterization, ReverseKernel, bounded, towards, with_variance
from jaxdiff.models import autoencoder
from jaxdiff.models import unet as unets
from jaxdiff.models.classifier import NoisyClassifier
from jaxdiff.models.dit import DiT
from jaxdiff.models.tiling import tiled
from jaxdiff.models.unet import UNet, network
from jaxdiff.objectives import codebook
from jaxdiff.process import Level

Sources = Mapping[str, Experiment]  # configs of the runs that a run starts from, by their place: autoencoder, base, base.base
UNTILED, TILE = 128, 96  # latents: of 1024x1024 pixels in Stable Diffusion XL, above which a chip's memory may be too small
NONE: Sources = types.MappingProxyType({})
FROZEN = ("autoencoder", "text", "text_2", "features", "teacher", "init")  # places whose params training reads


class Vae(NamedTuple):
    """Encoder, decoder and the distribution of the pixels."""

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


class Codec(NamedTuple):
    """An autoencoder between images in [-1, 1] and latents of mean 0 and standard deviation 1 a channel, once measured."""

    encoder: autoencoder.Encoder
    decoder: autoencoder.Decoder
    factor: int

    def encode(self, params: Any, x0: Array) -> likelihood.Posterior:
        """The posterior of the latents `[B, h, w, C]` of images `[B, H, W, C]`."""
        mean, std = autoencoder.encode(self.encoder)(params, x0)
        shift, scale = (params["latent"][name][None, None, None] for name in ("shift", "scale"))
        return likelihood.Posterior((mean - shift) / scale, std / scale)

    def decode(self, params: Any, z: Array) -> Array:
        """The images `[B, H, W, C]` of latents, each first replaced by its nearest code where there is a codebook.

        Larger ones than `UNTILED` latents squared are decoded tile by tile.
        """
        z = unscaled(params, z)
        z = codebook.quantized(params["codebook"], z).code if "codebook" in params else z
        decode = partial(autoencoder.decode(self.decoder), params)
        height, width = z.shape[1:3]
        if self.factor == 1 or height * width <= UNTILED**2 or min(height, width) < TILE:
            return decode(z)
        return tiled(decode, z, TILE, TILE // 4, self.factor)

    def latent_shape(self, image_shape: tuple[int, int, int]) -> tuple[int, int, int]:
        """Height, width and channels of the latents of such images."""
        height, width, _ = image_shape
        return height // self.factor, width // self.factor, self.encoder.latent_channels


def vae(config: Experiment) -> Vae:
    """The parts of a config that trains a VAE."""
    pixels = PIXELS[config.vae.pixels](config.vae.std)
    encoder = module_of(config, autoencoder.Encoder, latent_channels=config.vae.latent_channels)
    decoder = module_of(config, autoencoder.Decoder, out_channels=pixels.outputs * config.data.image_shape[-1])
    return Vae(encoder, decoder, pixels)


def codec(config: Experiment) -> Codec:
    """The networks of a config that trains an autoencoder."""
    channels, moments = config.autoencoder.latent_channels, 1 if config.autoencoder.codebook else 2
    encoder = module_of(config, autoencoder.Encoder, latent_channels=channels, moments=moments)
    decoder = module_of(config, autoencoder.Decoder, out_channels=config.data.image_shape[-1])
    return Codec(encoder, decoder, 2 ** (len(config.model.multipliers) - 1))


def unet(config: Experiment) -> UNet | DiT:
    """The network of a config that trains diffusion: a UNet, or a transformer."""
    transformer, options = config.model.network == "dit", {**vars(config.published), **vars(config.model)}
    return unets.unet({**options, **vars(config.dit)}, DiT) if transformer else unets.unet(options, UNet)


def denoising_network(config: Experiment) -> Callable[..., Array]:
    """The network of a config as a pure function, without what it learned of the variance: see `models.unet.network`."""
    apply = whole_network(config)
    if not config.published.learned_variance:
        return apply
    return lambda params, x, *rest: apply(params, x, *rest)[..., : x.shape[-1]]


def whole_network(config: Experiment) -> Callable[..., Array]:
    """The network of a config as a pure function, with outputs for the variance if it learned it: see `models.unet.network`."""
    p, apply, has_text = config.published, network(unet(config)), texts.has_text(config)
    if p.told == "logsnr" and not (p.pooled_channels or has_text):
        return apply
    told = TOLD[p.told](config)

    def plain(params: Any, x: Array, logsnr: Array, given: Any, dropout_key: Array | None = None) -> Array:
        if has_text:
            given = texts.own_context(config, params, given)
            params = params["network"] if config.text.layers else params
        if p.pooled_channels:  # no text, and a whole image of the size that is wanted
            size = (*config.data.image_shape[:2], 0, 0, *config.data.image_shape[:2])
            none = {"pooled": jnp.zeros((len(x), p.pooled_channels)), "sizes": jnp.tile(jnp.array(size, jnp.float32), (len(x), 1))}
            given = {**none, **given}
        if "until" in given:
            given = {**given, "until": p.told_scale * told(given["until"])}
        return apply(params, x, p.told_scale * told(logsnr), given, dropout_key)

    return plain


def parameterization_of(config: Experiment) -> Parameterization:
    """What the network of a config predicts."""
    return PARAMETERIZATIONS[config.diffusion.prediction](config.published.boundary)


def noisy_classifier(config: Experiment) -> NoisyClassifier:
    """The network of a config that trains a classifier."""
    return module_of(config, NoisyClassifier)


def frozen_places(config: Experiment) -> tuple[str, ...]:
    """The places of the sources whose params a training step reads; those of `sources.init` where adapters adapt them."""
    cached = ("autoencoder", *texts.TEXTS) if config.data.latents else ()
    unread = {*cached, "" if config.distillation.lora_rank else "init"}
    return tuple(place for place in FROZEN if place not in unread)


def module_of(config: Experiment, kind: Any, **others: Any) -> Any:
    """The module of that kind with those of its attributes that the config's model names, and others."""
    model = {**vars(config.published), **vars(config.model), "dtype": jnp.dtype(config.model.dtype)}
    return kind(**{name: value for name, value in model.items() if name in kind.__dataclass_fields__}, **others)


def space(config: Experiment, sources: Sources = NONE) -> tuple[int, int, int]:
    """Height, width and channels of what the network sees: images, or latents of the autoencoder."""
    shape = config.data.image_shape
    return codec(sources["autoencoder"]).latent_shape(shape) if "autoencoder" in sources else shape


def conditional_denoiser(config: Experiment, params: Any, given: Any, dropout_key: Array | None = None) -> Denoiser:
    """The denoiser of a config at these params, given labels `[B]` (`num_classes` is no label) or a mapping.

    Of a flow map it jumps to clean.
    """
    if config.objective == "flow_map":
        return towards(flow_denoiser(config, params, given, dropout_key), clean_level())
    weights, given = _weights(config, params, given)
    apply, parameterization = denoising_network(config), parameterization_of(config)
    if config.objective == "consistency" and config.diffusion.prediction == "x0":  # the others are x / alpha without noise
        parameterization = bounded(parameterization)
    return objectives.conditional(apply, parameterization, weights, given, dropout_key)


def clean_level() -> Level:
    """The level without noise."""
    return Level(jnp.ones(()), jnp.zeros(()))


def flow_denoiser(config: Experiment, params: Any, given: Any, dropout_key: Array | None = None) -> AverageDenoiser:
    """The average denoiser of a config that trains a flow map, given as `conditional_denoiser`."""
    weights, given = _weights(config, params, given)
    return objectives.conditional_average(denoising_network(config), parameterization_of(config), weights, given, dropout_key)


def conditional_kernel(config: Experiment, params: Any, given: Any) -> ReverseKernel:
    """The same as a kernel `(x, t, s) -> (x0, std)`, with what the network learned of the variance."""
    weights, given = _weights(config, params, given)
    apply = whole_network(config)
    return with_variance(lambda x, logsnr: apply(weights, x, logsnr, given, None), parameterization_of(config))


def _weights(config: Experiment, params: Any, given: Any) -> tuple[Any, Any]:
    """The network's params, and what it is given, with a text's states: once, outside of a sampler's loop."""
    given = texts.own_context(config, params, given) if texts.has_text(config) else given
    return params["network"] if config.diffusion.schedule == "learned" else params, given


def unscaled(params: Any, z: Array) -> Array:
    """Latents on the encoder's own scale, of those of mean 0 and standard deviation 1."""
    return z * params["latent"]["scale"][None, None, None] + params["latent"]["shift"][None, None, None]


def nearest_codes(params: Any, z: Array) -> Array:
    """The numbers `[B, h, w]` of the nearest codes of latents."""
    return codebook.quantized(params["codebook"], unscaled(params, z)).chosen


def measure_latents(networks: Codec, params: Any, batches: Any) -> dict[str, np.ndarray]:
    """Mean (`shift`) and standard deviation (`scale`; 1 of a constant) of each channel of the latents of batches of images."""
    encode = jax.jit(autoencoder.encode(networks.encoder))
    moments = [jax.device_get(encode(params, x0)) for x0 in batches]
    mean, std = (np.concatenate(part).astype(np.float64) for part in zip(*moments, strict=True))
    shift = mean.mean(axis=(0, 1, 2))
    scale = np.sqrt(np.mean((mean - shift) ** 2 + std**2, axis=(0, 1, 2)))
    return {"shift": shift.astype(np.float32), "scale": np.where(scale > 0, scale, 1).astype(np.float32)}
