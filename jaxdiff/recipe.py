"""The functions that a config stands for: network, objective, optimizer, state, layout, sampler."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from jaxdiff import likelihood, losses, objectives, process, samplers
from jaxdiff.config import Experiment
from jaxdiff.denoiser import (
    Denoiser,
    Parameterization,
    clip,
    edm,
    predict_noise,
    predict_score,
    predict_v,
    predict_velocity,
    predict_x0,
)
from jaxdiff.errors import ConfigError
from jaxdiff.guidance import classifier_guide, guide
from jaxdiff.mesh import Layout, jit_layout, make_mesh, pmap_layout
from jaxdiff.models import autoencoder, classifier, schedule
from jaxdiff.models.classifier import NoisyClassifier
from jaxdiff.models.schedule import MonotoneLogsnr
from jaxdiff.models.unet import UNet, network
from jaxdiff.train import Objective, TrainState, initial_state

SCHEDULES: dict[str, Callable[[], process.Schedule]] = {
    "cosine": process.cosine,
    "linear": process.linear,
    "linear_logsnr": process.linear_logsnr,
    "karras": process.karras,
    "lognormal": process.lognormal,
    "rectified_flow": process.rectified_flow,
}
PARAMETERIZATIONS: dict[str, Parameterization] = {
    "x0": predict_x0,
    "noise": predict_noise,
    "score": predict_score,
    "v": predict_v,
    "velocity": predict_velocity,
    "edm": edm(),
}
WEIGHTS: dict[str, losses.Weight] = {
    "x0": losses.x0_weight,
    "noise": losses.noise_weight,
    "score": losses.score_weight,
    "v": losses.v_weight,
    "velocity": losses.velocity_weight,
    "edm": losses.edm_weight(),
    "truncated_snr": losses.truncated_snr,
    "min_snr": losses.min_snr(),
}
SAMPLERS: dict[str, Callable[[float], samplers.Sampler]] = {
    "ddim": samplers.ddim,
    "ddpm": lambda eta: samplers.ddpm(),
    "ddpm_large": lambda eta: samplers.ddpm(process.forward_std),
    "heun": lambda eta: samplers.heun(),
    "dpmpp_2m": lambda eta: samplers.dpmpp_2m(),
    "dpmpp_3m": lambda eta: samplers.dpmpp_3m(),
    "dpmpp_2m_sde": lambda eta: samplers.dpmpp_2m_sde(),
    "unipc": lambda eta: samplers.unipc(),
    "euler_maruyama": lambda eta: samplers.euler_maruyama(),
}
SPACINGS: dict[str, tuple[Callable[[process.Schedule], process.Schedule], float | None]] = {  # pace, and where it ends
    "time": (lambda schedule: schedule, None),
    "logsnr": (process.uniform_logsnr, 0.0),
    "karras": (process.karras_spaced, 0.0),
    "quadratic": (process.quadratic, None),
}
PIXELS: dict[str, Callable[[float], likelihood.Pixels]] = {
    "logistic": lambda std: likelihood.logistic_pixels(),
    "binary": lambda std: likelihood.binary_pixels(),
    "gaussian": likelihood.gaussian_pixels,
}
ROUNDING = 0.1  # of a schedule's logsnr at its ends, in float32


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
    return UNet(**_fields(config, UNet))


def noisy_classifier(config: Experiment) -> NoisyClassifier:
    """The network of a config that trains a classifier."""
    return NoisyClassifier(**_fields(config, NoisyClassifier))


def learned_logsnr() -> MonotoneLogsnr:
    """The network of a learned schedule."""
    return MonotoneLogsnr()


def vae(config: Experiment) -> Vae:
    """The parts of a config that trains a VAE."""
    pixels = PIXELS[config.autoencoder.pixels](config.autoencoder.std)
    encoder = autoencoder.Encoder(**_fields(config, autoencoder.Encoder), latent_channels=config.autoencoder.latent_channels)
    out_channels = pixels.outputs * config.data.image_shape[-1]
    return Vae(encoder, autoencoder.Decoder(**_fields(config, autoencoder.Decoder), out_channels=out_channels), pixels)


def _fields(config: Experiment, kind: Any) -> dict[str, Any]:
    model = {**dataclasses.asdict(config.model), "dtype": jnp.dtype(config.model.dtype)}
    return {name: value for name, value in model.items() if name in kind.__dataclass_fields__}


def objective(config: Experiment) -> Objective:
    """The training objective of a config."""
    diffusion = config.diffusion
    if config.objective == "vae":
        parts, options = vae(config), config.autoencoder
        return objectives.vae(parts.encode, parts.log_prob, beta=options.beta, free_bits=options.free_bits)
    if config.objective == "classifier":
        return objectives.classifier(classifier.network(noisy_classifier(config)), SCHEDULES[diffusion.schedule]())
    labels: Any = {"null_label": config.model.num_classes, "label_dropout": diffusion.label_dropout}
    apply, parameterization = network(unet(config)), PARAMETERIZATIONS[diffusion.prediction]
    if diffusion.schedule == "learned":
        return objectives.variational_diffusion(apply, schedule.logsnr(learned_logsnr()), parameterization, **labels)
    fixed = SCHEDULES[diffusion.schedule]()
    weight = losses.elbo_weight(fixed) if diffusion.weight == "elbo" else WEIGHTS[diffusion.weight]
    return objectives.diffusion(apply, fixed, parameterization, weight, **labels)


def optimizer(config: Experiment) -> optax.GradientTransformation:
    """AdamW after clipping, with warm-up; steps of the schedule are updates, not accumulated batches."""
    c = config.optimizer
    updates = max(config.steps // c.accumulate, 1)
    after = optax.constant_schedule(c.learning_rate)
    if c.schedule == "cosine":
        after = optax.cosine_decay_schedule(c.learning_rate, max(updates - c.warmup_steps, 1))
    warmup = optax.linear_schedule(c.learning_rate / (c.warmup_steps + 1), c.learning_rate, c.warmup_steps)
    rate = optax.join_schedules([warmup, after], [c.warmup_steps]) if c.warmup_steps else after
    clipped = optax.clip_by_global_norm(c.clip_norm) if c.clip_norm else optax.identity()
    chain = optax.chain(clipped, optax.adamw(rate, b1=c.b1, b2=c.b2, weight_decay=c.weight_decay))
    return optax.MultiSteps(chain, c.accumulate).gradient_transformation() if c.accumulate > 1 else chain


def init(config: Experiment, key: Array) -> TrainState:
    """The state at step 0, a pure function of the key."""
    image = jnp.zeros((1, *config.data.image_shape))
    inputs = (image, jnp.zeros((1,)))
    if config.objective == "vae":
        params = autoencoder.init(*vae(config)[:2], key, image)
    elif config.objective == "classifier":
        params = noisy_classifier(config).init(key, *inputs)["params"]
    else:
        params = unet(config).init(key, *inputs, jnp.zeros((1,), jnp.int32))["params"]
    if config.diffusion.schedule == "learned":
        params = {"network": params, "schedule": learned_logsnr().init(key, jnp.zeros((1,)))["params"]}
    return initial_state(params, optimizer(config), config.ema)


def state_shapes(config: Experiment) -> TrainState:
    """Shapes and dtypes of the state, without computing it."""
    return jax.eval_shape(partial(init, config), jax.random.key(config.seed))


def layout(config: Experiment) -> Layout:
    """Where the config's mesh puts the state.

    Raises:
        ConfigError: the network cannot be built, or the devices do not fit the mesh or divide the batch.
    """
    try:
        return _layout(config, state_shapes(config))
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _layout(config: Experiment, shapes: TrainState) -> Layout:
    devices = jax.local_device_count() if config.mesh.mapping == "pmap" else jax.device_count()
    if config.data.batch_size % devices:
        raise ConfigError(f"data.batch_size {config.data.batch_size} is not divisible by {devices} devices")
    if config.mesh.mapping == "pmap":
        return pmap_layout(shapes)
    return jit_layout(make_mesh(config.mesh.data, config.mesh.fsdp), shapes)


def sampling_schedule(config: Experiment, params: Any = None) -> process.Schedule:
    """The schedule that samples and likelihoods walk along; without the params of a learned one, another between its ends."""
    name = config.diffusion.sampling_schedule or config.diffusion.schedule
    if name != "learned":
        return SCHEDULES[name]()
    module = learned_logsnr()
    if params is None:
        return process.linear_logsnr(module.logsnr_min, module.logsnr_max)
    return lambda t: process.from_logsnr(schedule.logsnr(module)(params["schedule"], jnp.asarray(t)))


def levels(config: Experiment, params: Any = None) -> process.Level:
    """The levels `[N + 1]` along which the config's sampler walks, of a learned schedule at these params."""
    spaced, t_min = SPACINGS[config.sampling.spacing]
    return process.grid(spaced(sampling_schedule(config, params)), config.sampling.steps, t_min)


def labelled(config: Experiment, params: Any, label: Array) -> Denoiser:
    """The denoiser of a diffusion config at these params and labels `[B]`; `num_classes` is no label at all."""
    weights = params["network"] if config.diffusion.schedule == "learned" else params
    return objectives.labelled(network(unet(config)), PARAMETERIZATIONS[config.diffusion.prediction], weights, label)


def generator(config: Experiment, guiding: Experiment | None = None) -> Callable[..., Array]:
    """The pure function `(params, key, label [B], guiding_params) -> images [B, H, W, C]` in [-1, 1] of the config's sampler.

    The label `num_classes` is none at all. Without `guiding`, the config of a classifier, it needs no guiding_params.
    """
    sampling = config.sampling
    sampler = SAMPLERS[sampling.sampler](sampling.eta)

    def generate(params: Any, key: Array, label: Array, guiding_params: Any = None) -> Array:
        start_key, sampler_key = jax.random.split(key)
        null = jnp.full_like(label, config.model.num_classes)
        path = levels(config, params)
        with_label, without = (labelled(config, params, given) for given in (label, null))
        denoise = with_label if sampling.guidance else without
        if sampling.guidance not in (0, 1):
            denoise = guide(with_label, without, sampling.guidance)
        if guiding is not None:
            log_prob = objectives.label_log_prob(classifier.network(noisy_classifier(guiding)), guiding_params, label)
            denoise = classifier_guide(denoise, log_prob, sampling.classifier_scale)
        denoise = clip(denoise) if sampling.clip else denoise  # last: at high noise the classifier's gradient counts for much
        x = path.sigma[0] * jax.random.normal(start_key, (*label.shape, *config.data.image_shape))
        return samplers.sample(sampler, denoise, x, path, sampler_key)

    return generate


def prior_generator(config: Experiment) -> Callable[..., Array]:
    """The pure function `(params, key, label [B], ...) -> images [B, H, W, C]` of a VAE, which draws codes and reads no label."""
    parts = vae(config)

    def generate(params: Any, key: Array, label: Array, guiding_params: Any = None) -> Array:
        images = jax.ShapeDtypeStruct((*label.shape, *config.data.image_shape), jnp.float32)
        codes = jax.eval_shape(parts.encode, params, images).mean
        return parts.mean(params, jax.random.normal(key, codes.shape))

    return generate


def labeller(config: Experiment) -> Callable[[Any, Array, Array, process.Level], Array]:
    """The pure function `(params, key, x0 [B, ...], level []) -> labels [B]`: what a classifier calls x0 noised to that level."""
    apply = classifier.network(noisy_classifier(config))

    def label(params: Any, key: Array, x0: Array, level: process.Level) -> Array:
        x = process.diffuse(x0, jax.random.normal(key, x0.shape), level)
        return jnp.argmax(objectives.class_log_probs(apply, params)(x, level), axis=-1)

    return label


def check_guiding(config: Experiment, guiding: Experiment, where: str) -> None:
    """Whether the classifier of the config `guiding` can guide samples of the config.

    Raises:
        ConfigError: it knows other images, other classes, or too few levels; `where` is its run.
    """
    for name, mine, its in (
        ("data.image_shape", config.data.image_shape, guiding.data.image_shape),
        ("model.num_classes", config.model.num_classes, guiding.model.num_classes),
    ):
        if mine != its:
            raise ConfigError(f"the classifier {where} has {name} {its}, the diffusion run {mine}; train one with {mine}")
    walked = np.asarray(levels(config)[:-1].logsnr)
    first, last = np.asarray(SCHEDULES[guiding.diffusion.schedule]()(np.array([1.0, 0.0], np.float32)).logsnr)
    if walked.min() < first - ROUNDING or walked.max() > last + ROUNDING:
        raise ConfigError(
            f"the classifier {where} knows logsnr {first:.1f} to {last:.1f} (schedule {guiding.diffusion.schedule}), "
            f"the samples pass through {walked.min():.1f} to {walked.max():.1f}; train it on their schedule"
        )
