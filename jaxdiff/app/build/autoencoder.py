"""The autoencoder of latent diffusion: networks, objective, and what a diffusion run needs of it."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from jaxdiff import likelihood, objectives
from jaxdiff.app.build.networks import fields_of, noisy_classifier
from jaxdiff.app.config import Experiment
from jaxdiff.io.errors import ConfigError
from jaxdiff.models import autoencoder, perceptual
from jaxdiff.models.discriminator import PatchDiscriminator
from jaxdiff.objectives import codebook

DECAY = 0.99  # of the running means of a codebook
LAST_LAYER = ("decoder", "conv_out", "kernel")


class Codec(NamedTuple):
    """An autoencoder between images in [-1, 1] and latents of mean 0 and standard deviation 1 a channel, once measured."""

    encoder: autoencoder.Encoder
    decoder: autoencoder.Decoder
    factor: int

    def encode(self, params: Any, x0: Array) -> likelihood.Posterior:
        """The posterior of the latents `[B, h, w, C]` of images `[B, H, W, C]`."""
        mean, std = autoencoder.encode(self.encoder)(params, x0)
        shift, scale = params["latent"]["shift"], params["latent"]["scale"]
        return likelihood.Posterior((mean - shift[None, None, None]) / scale[None, None, None], std / scale[None, None, None])

    def decode(self, params: Any, z: Array) -> Array:
        """The images `[B, H, W, C]` of latents, each first replaced by its nearest code where there is a codebook."""
        z = unscaled(params, z)
        z = codebook.quantized(params["codebook"], z).code if "codebook" in params else z
        return autoencoder.decode(self.decoder)(params, z)

    def latent_shape(self, image_shape: tuple[int, int, int]) -> tuple[int, int, int]:
        """Height, width and channels of the latents of such images."""
        height, width, _ = image_shape
        return height // self.factor, width // self.factor, self.encoder.latent_channels


def unscaled(params: Any, z: Array) -> Array:
    """Latents as the encoder made them, of those of mean 0 and standard deviation 1."""
    return z * params["latent"]["scale"][None, None, None] + params["latent"]["shift"][None, None, None]


def nearest_codes(params: Any, z: Array) -> Array:
    """The numbers `[B, h, w]` of the nearest codes of latents."""
    return codebook.quantized(params["codebook"], unscaled(params, z)).chosen


def codec(config: Experiment) -> Codec:
    """The networks of a config that trains an autoencoder."""
    c = config.autoencoder
    moments = 1 if c.codebook else 2
    encoder = fields_of(config, autoencoder.Encoder, latent_channels=c.latent_channels, moments=moments)
    decoder = fields_of(config, autoencoder.Decoder, out_channels=config.data.image_shape[-1])
    return Codec(encoder, decoder, 2 ** (len(config.model.multipliers) - 1))


def init_params(config: Experiment, key: Array, image: Array) -> dict[str, Any]:
    """The params of an autoencoder and what is trained with it: `encoder, decoder, latent`, `codebook`, `discriminator`."""
    c, networks = config.autoencoder, codec(config)
    key, adversary_key = jax.random.split(key)
    params = autoencoder.init(networks.encoder, networks.decoder, key, image)
    params["latent"] = {"shift": jnp.zeros((c.latent_channels,)), "scale": jnp.ones((c.latent_channels,))}
    if c.codebook:
        params["codebook"] = codebook.empty(c.codebook, c.latent_channels)
    if c.adversarial:
        params["discriminator"] = _discriminator(config).init(adversary_key, image)["params"]
    return params


def optimizer(config: Experiment, each: optax.GradientTransformation) -> optax.GradientTransformation:
    """`each` for the autoencoder and again for the discriminator; the codebook follows its means, the latents' scale stays."""
    players: dict[Hashable, Any] = {
        "generator": each,
        "discriminator": each,
        "codebook": optax.sgd(1 - DECAY),
        "latent": optax.set_to_zero(),
    }
    return optax.partition(players, lambda params: {name: name if name in players else "generator" for name in params})


def objective(config: Experiment, sources: Mapping[str, Experiment]) -> objectives.Objective:
    """The training objective of a config that trains an autoencoder."""
    c, networks = config.autoencoder, codec(config)
    encode, decode = autoencoder.encode(networks.encoder), autoencoder.decode(networks.decoder)
    bottleneck = objectives.kl_bottleneck(encode, c.kl)
    if c.codebook:  # revived codes need some time to settle in the averaged params
        bottleneck = objectives.codebook_bottleneck(lambda p, x0: encode(p, x0)[0], c.commitment, DECAY, config.steps // 2)
    distance = objectives.pixel_distance(jnp.abs if c.distance == "l1" else jnp.square)
    if c.perceptual:
        seen = objectives.perceptual_distance(features(sources.get("features")))
        distance = objectives.weighted((1.0, distance), (c.perceptual, seen))
    adversary = None
    if c.adversarial:
        module = _discriminator(config)

        def discriminate(params: Any, images: Array) -> Any:
            return module.apply({"params": params["discriminator"]}, images)

        adversary = objectives.Adversary(discriminate, LAST_LAYER, c.adversarial, c.adversarial_start)
    return objectives.compression(bottleneck, decode, distance, adversary)


def features(classifier: Experiment | None) -> Callable[[Any, Array], Any]:
    """Activations of `frozen["features"]`: those of a classifier of noised images, without noise, or else of VGG16."""
    if classifier is None:
        return lambda frozen, images: perceptual.vgg16(frozen["features"], images)
    activations = perceptual.classifier_features(noisy_classifier(classifier))
    return lambda frozen, images: activations(frozen["features"], images)


def check_latents(config: Experiment, source: Experiment, where: str) -> None:
    """Whether a diffusion config can be trained in the latents of the autoencoder `source`; `where` is its run.

    Raises:
        ConfigError: its images are none that the autoencoder encodes, or the network cannot halve the latents.
    """
    factor, (height, width, channels) = codec(source).factor, config.data.image_shape
    if channels != source.data.image_shape[-1]:
        raise ConfigError(
            f"data.image_shape has {channels} channels, the autoencoder {where} {source.data.image_shape[-1]}; set the same"
        )
    if height % factor or width % factor:
        raise ConfigError(
            f"data.image_shape {height}x{width} cannot be halved by the autoencoder {where}; choose sizes divisible by {factor}"
        )
    latent, halvings = codec(source).latent_shape(config.data.image_shape), len(config.model.multipliers) - 1
    if latent[0] % 2**halvings or latent[1] % 2**halvings:
        raise ConfigError(
            f"latents of {latent[0]}x{latent[1]} (of {where}) cannot be halved {halvings} times; choose fewer model.multipliers"
        )
    sizes = {latent[0] // 2**level for level in range(halvings + 1)}
    if not set(config.model.attention) <= sizes:
        raise ConfigError(f"model.attention must be sizes that the network has on latents of {where}: {sorted(sizes)}")


def measure_latents(networks: Codec, params: Any, batches: Any) -> dict[str, np.ndarray]:
    """Mean (`shift`) and standard deviation (`scale`) of each channel of the latents of some batches of images.

    The scale of a channel that is constant is 1.
    """
    encode = jax.jit(autoencoder.encode(networks.encoder))
    moments = [jax.device_get(encode(params, x0)) for x0 in batches]
    mean, std = (np.concatenate(part).astype(np.float64) for part in zip(*moments, strict=True))
    shift = mean.mean(axis=(0, 1, 2))
    scale = np.sqrt(np.mean((mean - shift) ** 2 + std**2, axis=(0, 1, 2)))
    return {"shift": shift.astype(np.float32), "scale": np.where(scale > 0, scale, 1).astype(np.float32)}


def _discriminator(config: Experiment) -> PatchDiscriminator:
    c = config.autoencoder
    return PatchDiscriminator(c.discriminator_channels, c.discriminator_layers, jnp.dtype(config.model.dtype))
