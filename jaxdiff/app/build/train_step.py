"""Objective, optimizer, state and layout of a config."""

from __future__ import annotations

import types
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

from jaxdiff import likelihood, losses, objectives, training
from jaxdiff.app.build import autoencoder as compression
from jaxdiff.app.build import students
from jaxdiff.app.build.networks import learned_logsnr, noisy_classifier, unet, vae
from jaxdiff.app.build.tables import PARAMETERIZATIONS, SCHEDULES, WEIGHTS
from jaxdiff.app.config import STUDENTS, Experiment, guidance_is_input, round_steps
from jaxdiff.io.errors import ConfigError
from jaxdiff.models import autoencoder, classifier, schedule
from jaxdiff.models.unet import network
from jaxdiff.training import Objective, Step, TrainState, initial_state
from jaxdiff.training.mesh import Layout, jit_layout, make_mesh, pmap_layout

Sources = Mapping[str, Experiment]  # configs of the runs that a run starts from, by their place: autoencoder, base, base.base
NONE: Sources = types.MappingProxyType({})
FROZEN = ("autoencoder", "features", "teacher")  # places whose params training reads


def strip_prefix(given: Mapping[str, Any], place: str) -> dict[str, Any]:
    """What a run is given by place, for the run at a place: `base.base` becomes `base`."""
    return {name.removeprefix(f"{place}."): value for name, value in given.items() if name.startswith(f"{place}.")}


def space(config: Experiment, sources: Sources = NONE) -> tuple[int, int, int]:
    """Height, width and channels of what the network sees: images, or latents of the autoencoder."""
    if "autoencoder" not in sources:
        return config.data.image_shape
    return compression.codec(sources["autoencoder"]).latent_shape(config.data.image_shape)


def objective(config: Experiment, sources: Sources = NONE) -> Objective:
    """The training objective of a config."""
    if config.objective == "autoencoder":
        return compression.objective(config, sources)
    if "autoencoder" not in sources:
        return _on_images(config, sources)
    if config.data.latents:
        return objectives.latent(
            _on_images(config, sources), lambda frozen, batch: likelihood.Posterior(batch["mean"], batch["std"])
        )
    encode = compression.codec(sources["autoencoder"]).encode
    return objectives.latent(_on_images(config, sources), lambda frozen, batch: encode(frozen["autoencoder"], batch["image"]))


def _on_images(config: Experiment, sources: Sources) -> Objective:
    diffusion = config.diffusion
    if config.objective == "vae":
        parts, options = vae(config), config.vae
        return objectives.vae(parts.encode, parts.log_prob, beta=options.beta, free_bits=options.free_bits)
    if config.objective == "classifier":
        return objectives.classifier(classifier.network(noisy_classifier(config)), SCHEDULES[diffusion.schedule]())
    condition = _condition(config)
    apply, parameterization = network(unet(config)), PARAMETERIZATIONS[diffusion.prediction]
    if diffusion.schedule == "learned":
        return objectives.variational_diffusion(apply, schedule.logsnr(learned_logsnr()), parameterization, condition=condition)
    fixed = SCHEDULES[diffusion.schedule]()
    weight = losses.elbo_weight(fixed) if diffusion.weight == "elbo" else WEIGHTS[diffusion.weight]
    if config.objective in STUDENTS:
        return students.objective(config, sources, condition, weight)
    return objectives.diffusion(apply, fixed, parameterization, weight, condition=condition)


def _condition(config: Experiment) -> objectives.Condition:
    rate = config.diffusion.label_dropout
    named = {"label": objectives.labels(config.model.num_classes, rate)}
    if config.model.context_channels:
        named["context"] = objectives.contexts(jnp.zeros(()), rate)
    if guidance_is_input(config):
        named["guidance"] = objectives.guidance_scales(*config.distillation.guidance)
    c = config.cascade
    if c.factor == 1:
        return objectives.joint(**named)
    lower = objectives.low_resolution(SCHEDULES[config.diffusion.schedule](), c.factor, c.max_augmentation)
    return objectives.joint(lower, **named)


def optimizer(config: Experiment) -> optax.GradientTransformation:
    """AdamW after clipping, with warm-up, in each round."""
    c = config.optimizer
    updates = round_steps(config)  # of each round, which begins anew
    after = optax.constant_schedule(c.learning_rate)
    if c.schedule == "cosine":
        after = optax.cosine_decay_schedule(c.learning_rate, max(updates - c.warmup_steps, 1))
    warmup = optax.linear_schedule(c.learning_rate / (c.warmup_steps + 1), c.learning_rate, c.warmup_steps)
    rate = optax.join_schedules([warmup, after], [c.warmup_steps]) if c.warmup_steps else after
    clipped = optax.clip_by_global_norm(c.clip_norm) if c.clip_norm else optax.identity()
    mask = None if c.decay_all else decayed
    adamw = optax.adamw(rate, b1=c.b1, b2=c.b2, weight_decay=c.weight_decay, mu_dtype=c.moments, mask=mask)
    chain = optax.chain(clipped, adamw)
    return compression.optimizer(config, chain) if config.objective == "autoencoder" else chain


def decayed(params: Any) -> Any:
    """Which arrays weight decay shrinks: kernels and embeddings, not norms and biases."""
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


def init(config: Experiment, key: Array, sources: Sources = NONE) -> TrainState:
    """The state at step 0, a pure function of the key; what is frozen is still to be put in."""
    image = jnp.zeros((1, *space(config, sources)))
    inputs = (image, jnp.zeros((1,)))
    if config.objective == "autoencoder":
        params = compression.init_params(config, key, image)
    elif config.objective == "vae":
        params = autoencoder.init(*vae(config)[:2], key, image)
    elif config.objective == "classifier":
        params = noisy_classifier(config).init(key, *inputs)["params"]
    else:
        given: dict[str, Any] = {"label": jnp.zeros((1,), jnp.int32)}
        if config.model.context_channels:
            given["context"] = jnp.zeros((1, 1, config.model.context_channels))
        if config.cascade.factor > 1:
            given |= {"spatial": image, "augmentation": jnp.zeros((1,))}
        if guidance_is_input(config):
            given["guidance"] = jnp.zeros((1,))
        params = students.init_params(config, key, lambda key: unet(config).init(key, *inputs, **given)["params"])
    if config.diffusion.schedule == "learned":
        params = {"network": params, "schedule": learned_logsnr().init(key, jnp.zeros((1,)))["params"]}
    return initial_state(params, optimizer(config), config.ema, ema_dtype=config.ema_dtype)


def init_from_teacher(config: Experiment, state: TrainState, teacher: Any) -> TrainState:
    """The state at step 0, with the teacher's params where the student has the same."""
    if config.distillation.lora_rank:
        return state
    return initial_state(students.copy_matching(state.params, teacher), optimizer(config), config.ema, ema_dtype=config.ema_dtype)


def next_round_state(config: Experiment, state: TrainState) -> TrainState:
    """The state at the beginning of the next round: the student's average is its teacher, and what it starts from."""
    student = training.as_float32(state.ema[next(iter(config.ema))])  # jit sorts names
    frozen = {**state.frozen, "teacher": jax.tree.map(jnp.copy, student)}
    fresh = initial_state(student, optimizer(config), config.ema, frozen, config.ema_dtype)
    return TrainState(state.step, fresh.params, fresh.ema, fresh.opt_state, fresh.frozen)


def state_shapes(config: Experiment, sources: Sources = NONE) -> TrainState:
    """Shapes and dtypes of the state, without computing it."""
    return jax.eval_shape(partial(init, config, sources=sources), jax.random.key(config.seed))


def layout(config: Experiment, frozen: Any = None, sources: Sources = NONE, devices: Sequence[Any] | None = None) -> Layout:
    """Where the config's mesh puts the state, with these frozen params (or their shapes) in it; on all devices, or those given.

    Raises:
        ConfigError: the network cannot be built, or the devices do not fit the mesh or divide the batch.
    """
    try:
        return _layout(config, replace(state_shapes(config, sources), frozen=frozen or {}), devices)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _layout(config: Experiment, shapes: TrainState, devices: Sequence[Any] | None) -> Layout:
    c, parts = config.mesh, config.optimizer.accumulate
    mesh = None if c.mapping == "pmap" else make_mesh(c.data, c.fsdp, devices, c.tensor)
    rows = jax.local_device_count() if mesh is None else mesh.shape["data"] * mesh.shape["fsdp"]
    if config.data.batch_size % (rows * parts):
        which = f"{rows} devices" + (f" times optimizer.accumulate {parts}" if parts > 1 else "")
        raise ConfigError(f"data.batch_size {config.data.batch_size} is not divisible by {which}")
    if mesh is None:
        return pmap_layout(shapes)
    whole = config.autoencoder.codebook > 0 or config.autoencoder.adversarial > 0  # which look at all rows: codes in use, a balance
    return jit_layout(mesh, shapes, gradients=c.gradients, whole=whole)


def train_step(config: Experiment, layout: Layout, sources: Sources = NONE) -> Step:
    """The config's training step, for `layout.compile`."""
    microbatches = config.optimizer.accumulate
    return training.train_step(
        objective(config, sources), optimizer(config), config.ema, microbatches, reduce_gradients=layout.reduce_gradients
    )
