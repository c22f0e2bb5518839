"""The functions that a config stands for: network, objective, optimizer, state, layout, sampler."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

from jaxdiff import losses, objectives, process, samplers
from jaxdiff.config import Experiment
from jaxdiff.denoiser import Parameterization, clip, edm, predict_noise, predict_score, predict_v, predict_velocity, predict_x0
from jaxdiff.errors import ConfigError
from jaxdiff.guidance import guide
from jaxdiff.mesh import Layout, jit_layout, make_mesh, pmap_layout
from jaxdiff.models.unet import UNet, network
from jaxdiff.train import Objective, TrainState, initial_state

SCHEDULES: dict[str, Callable[[], process.Schedule]] = {
    "cosine": process.cosine,
    "linear": process.linear,
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
    "ddpm_large": lambda eta: samplers.ddpm(samplers.forward_std),
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


def unet(config: Experiment) -> UNet:
    """The network of a config."""
    fields = {name: getattr(config.model, name) for name in config.model.__dataclass_fields__}
    return UNet(**{**fields, "dtype": jnp.dtype(config.model.dtype)})


def objective(config: Experiment) -> Objective:
    """The training objective of a config."""
    diffusion = config.diffusion
    return objectives.diffusion(
        network(unet(config)),
        SCHEDULES[diffusion.schedule](),
        PARAMETERIZATIONS[diffusion.prediction],
        WEIGHTS[diffusion.weight],
        null_label=config.model.num_classes,
        label_dropout=diffusion.label_dropout,
    )


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
    params = unet(config).init(key, image, jnp.zeros((1,)), jnp.zeros((1,), jnp.int32))["params"]
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


def levels(config: Experiment) -> process.Level:
    """The levels `[N + 1]` along which the config's sampler walks."""
    diffusion, sampling = config.diffusion, config.sampling
    spaced, t_min = SPACINGS[sampling.spacing]
    return process.grid(spaced(SCHEDULES[diffusion.sampling_schedule or diffusion.schedule]()), sampling.steps, t_min)


def generator(config: Experiment) -> Callable[[Any, Array, Array], Array]:
    """The pure function `(params, key, label [B]) -> images [B, H, W, C]` in [-1, 1] of the config's sampler.

    The label `num_classes` is none at all.
    """
    sampling, path = config.sampling, levels(config)
    apply, parameterization = network(unet(config)), PARAMETERIZATIONS[config.diffusion.prediction]
    sampler = SAMPLERS[sampling.sampler](sampling.eta)

    def generate(params: Any, key: Array, label: Array) -> Array:
        start_key, sampler_key = jax.random.split(key)
        denoise = objectives.labelled(apply, parameterization, params, label)
        if sampling.guidance != 1:
            null = jnp.full_like(label, config.model.num_classes)
            denoise = guide(denoise, objectives.labelled(apply, parameterization, params, null), sampling.guidance)
        denoise = clip(denoise) if sampling.clip else denoise
        x = path.sigma[0] * jax.random.normal(start_key, (*label.shape, *config.data.image_shape))
        return samplers.sample(sampler, denoise, x, path, sampler_key)

    return generate
