"""Objective, optimizer, state and layout of a config."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import Array

from jaxdiff import likelihood, losses, objectives, training
from jaxdiff.app.build import distribution_matching, students, texts
from jaxdiff.app.build.networks import (
    NONE,
    Sources,
    codec,
    denoising_network,
    noisy_classifier,
    parameterization_of,
    space,
    unet,
    vae,
)
from jaxdiff.app.build.tables import SCHEDULES, WEIGHTS
from jaxdiff.app.config import STUDENTS, Experiment, distillation, guidance_is_input
from jaxdiff.io import count
from jaxdiff.io.errors import ConfigError
from jaxdiff.models import autoencoder, classifier, lora, perceptual, schedule
from jaxdiff.models.discriminator import PatchDiscriminator
from jaxdiff.objectives import codebook
from jaxdiff.training import Decays, Objective, Step, TrainState, initial_state, power_ema
from jaxdiff.training.mesh import Layout, jit_layout, make_mesh, pmap_layout

DECAY = 0.99  # of the running means of a codebook
TEXT = 0x7465  # folded into the key for the params of a text encoder


def objective(config: Experiment, sources: Sources = NONE) -> Objective:
    """The training objective of a config."""
    if config.objective == "text":
        raise ConfigError("objective text: a text encoder is imported, and trained only beside a diffusion network (text.layers)")
    if config.objective == "autoencoder":
        return _compression(config, sources)
    on_images = _on_images(config, sources)
    if config.distillation.lora_rank:
        on_images = objectives.adapted(on_images, partial(students.adapted, config))
    if texts.has_text(config):
        none, states = texts.nulls(config, sources), partial(texts.encoded, config, sources)
        on_images = objectives.encoded(on_images, lambda frozen, batch: states(frozen, {**batch, "null": none}))
    if "autoencoder" not in sources:
        return on_images
    if config.data.latents:
        return objectives.latent(on_images, lambda frozen, batch: likelihood.Posterior(batch["mean"], batch["std"]))
    encode = codec(sources["autoencoder"]).encode
    return objectives.latent(on_images, lambda frozen, batch: encode(frozen["autoencoder"], batch["image"]))


def _on_images(config: Experiment, sources: Sources) -> Objective:
    if config.objective == "vae":
        parts, options = vae(config), config.vae
        return objectives.vae(parts.encode, parts.log_prob, beta=options.beta, free_bits=options.free_bits)
    d = config.diffusion
    if config.objective == "classifier":
        return objectives.classifier(classifier.network(noisy_classifier(config)), SCHEDULES[d.schedule](config.betas))
    condition, apply, parameterization = _condition(config), denoising_network(config), parameterization_of(config)
    if d.schedule == "learned":
        logsnr = schedule.logsnr(schedule.MonotoneLogsnr())
        return objectives.variational_diffusion(apply, logsnr, parameterization, condition=condition)
    fixed = SCHEDULES[d.schedule](config.betas)
    weight = losses.elbo_weight(fixed) if d.weight == "elbo" else WEIGHTS[d.weight]
    if config.objective in STUDENTS:
        return students.objective(config, sources, condition, weight)
    return objectives.diffusion(apply, fixed, parameterization, weight, condition=condition)


def _condition(config: Experiment) -> objectives.Condition:
    rate = config.diffusion.label_dropout
    named = {"label": objectives.labels(config.model.num_classes, rate)}
    if texts.has_text(config):
        return objectives.joint(objectives.texts(rate), **named, **_guidance(config))
    if config.model.context_channels:
        named["context"] = objectives.contexts(jnp.zeros(()), rate)
    named |= _guidance(config)
    c = config.cascade
    if c.factor == 1:
        return objectives.joint(**named)
    lower = objectives.low_resolution(SCHEDULES[config.diffusion.schedule](config.betas), c.factor, c.max_augmentation)
    return objectives.joint(lower, **named)


def _guidance(config: Experiment) -> dict[str, objectives.Condition]:
    return {"guidance": objectives.guidance_scales(*config.distillation.guidance)} if guidance_is_input(config) else {}


def _compression(config: Experiment, sources: Sources) -> Objective:
    c, networks = config.autoencoder, codec(config)
    encode, decode = autoencoder.encode(networks.encoder), autoencoder.decode(networks.decoder)
    bottleneck = objectives.kl_bottleneck(encode, c.kl)
    if c.codebook:  # revived codes need some time to settle in the averaged params
        bottleneck = objectives.codebook_bottleneck(lambda p, x0: encode(p, x0)[0], c.commitment, DECAY, config.steps // 2)
    distance = objectives.pixel_distance(jnp.abs if c.distance == "l1" else jnp.square)
    if c.perceptual:
        activations = perceptual.vgg16
        if "features" in sources:  # of images without noise
            activations = perceptual.classifier_features(noisy_classifier(sources["features"]))
        seen = objectives.perceptual_distance(lambda frozen, images: activations(frozen["features"], images))
        distance = objectives.weighted((1.0, distance), (c.perceptual, seen))
    module, last_layer = _discriminator(config), ("decoder", "conv_out", "kernel")

    def discriminate(params: Any, images: Array) -> Any:
        return module.apply({"params": params["discriminator"]}, images)

    adversary = objectives.Adversary(discriminate, last_layer, c.adversarial, c.adversarial_start) if c.adversarial else None
    return objectives.compression(bottleneck, decode, distance, adversary)


def _discriminator(config: Experiment) -> PatchDiscriminator:
    c = config.autoencoder
    return PatchDiscriminator(c.discriminator_channels, c.discriminator_layers, jnp.dtype(config.model.dtype))


def optimizer(config: Experiment) -> optax.GradientTransformation:
    """That of all params, or of each player of an adversarial game, by name."""
    if config.objective == "distribution_matching":
        return distribution_matching.optimizer(config, partial(_adamw, config))
    chain = _adamw(config)
    if config.objective != "autoencoder":
        return chain
    others: dict[Hashable, Any] = {"codebook": optax.sgd(1 - DECAY), "latent": optax.set_to_zero()}  # the latents' scale stays
    players = {"generator": chain, "discriminator": chain, **others}
    return optax.partition(players, lambda params: {name: name if name in players else "generator" for name in params})


def _adamw(config: Experiment, every: int = 1, share: float = 1.0) -> optax.GradientTransformation:
    """AdamW after clipping, with warm-up, in each round; without decay of norms and biases, which have one dimension.

    For params that move in each `every`-th step, at a share of the learning rate.
    """
    c, updates = config.optimizer, -(-distillation.round_steps(config) // every)
    top, first = share * c.learning_rate, c.warmup_steps // every
    rate = optax.constant_schedule(top)
    if c.schedule == "cosine":
        rate = optax.cosine_decay_schedule(top, max(updates - first, 1))
    if first:
        rate = optax.join_schedules([optax.linear_schedule(top / (first + 1), top, first), rate], [first])
    clipped = optax.clip_by_global_norm(c.clip_norm) if c.clip_norm else optax.identity()
    mask = None if c.decay_all else partial(jax.tree.map, lambda leaf: leaf.ndim > 1)
    adamw = optax.adamw(rate, b1=c.b1, b2=c.b2, weight_decay=c.weight_decay, mu_dtype=c.moments, mask=mask)
    return optax.chain(clipped, adamw)


def init(config: Experiment, key: Array, known: Any = None, sources: Sources = NONE) -> TrainState:
    """The state at step 0, with nothing frozen in it: a pure function of the key, and of known params of a source if given."""
    image = jnp.zeros((1, *space(config, sources)))
    inputs = (image, jnp.zeros((1,)))
    if config.objective == "autoencoder":
        params = _autoencoder_params(config, key, image)
    elif config.objective == "text":
        params = _text_params(config, key)
    elif config.objective == "vae":
        params = autoencoder.init(*vae(config)[:2], key, image)
    elif config.objective == "classifier":
        params = noisy_classifier(config).init(key, *inputs)["params"]
    else:
        given: dict[str, Any] = {"label": jnp.zeros((1,), jnp.int32)}
        if config.model.context_channels:
            given["context"] = jnp.zeros((1, 1, config.model.context_channels))
        if width := config.published.pooled_channels:
            given |= {"pooled": jnp.zeros((1, width)), "sizes": jnp.zeros((1, 6))}
        if config.cascade.factor > 1:
            given |= {"spatial": image, "augmentation": jnp.zeros((1,))}
        if guidance_is_input(config):
            given["guidance"] = jnp.zeros((1,))
        if config.objective == "flow_map":
            given["until"] = jnp.zeros((1,))

        def network_params(key: Array) -> Any:
            params = unet(config).init(key, *inputs, **given)["params"]
            if config.text.layers:
                return {"network": params, "text": _text_params(config, jax.random.fold_in(key, TEXT))}
            return params

        rank = config.distillation.lora_rank
        params = _adapters(network_params, key, rank) if rank else network_params(key)
    if config.diffusion.schedule == "learned":
        params = {"network": params, "schedule": schedule.MonotoneLogsnr().init(key, jnp.zeros((1,)))["params"]}
    if known is not None and not config.distillation.lora_rank:
        flat: dict[Any, Any] = flatten_dict(known)
        params = unflatten_dict({name: jnp.copy(flat.get(name, each)) for name, each in flatten_dict(params).items()})
    if config.objective == "distribution_matching":
        params = distribution_matching.params(config, sources, params, key)
    return initial_state(params, optimizer(config), decays(config), ema_dtype=config.ema_dtype)


def _adapters(network_params: Callable[[Array], Any], key: Array, rank: int) -> Any:
    """Adapters of a network's kernels, and the params of its guidance embedding, which the network that they adapt has not."""
    adapted: dict[Any, Any] = flatten_dict(jax.eval_shape(network_params, key))
    new = [path for path in adapted if students.EMBEDDING in path]
    params = lora.init(key, unflatten_dict({path: leaf for path, leaf in adapted.items() if path not in new}), rank)
    own: dict[Any, Any] = flatten_dict(network_params(key)) if new else {}
    return unflatten_dict({**flatten_dict(params), **{path: own[path] for path in new}})


def _text_params(config: Experiment, key: Array) -> Any:
    return texts.text_encoder(config.text).init(key, texts.empty_prompt(config.text)[None])["params"]


def _autoencoder_params(config: Experiment, key: Array, image: Array) -> dict[str, Any]:
    c, networks = config.autoencoder, codec(config)
    key, adversary_key = jax.random.split(key)
    params = autoencoder.init(networks.encoder, networks.decoder, key, image)
    params["latent"] = {"shift": jnp.zeros((c.latent_channels,)), "scale": jnp.ones((c.latent_channels,))}
    if c.codebook:
        params["codebook"] = codebook.empty(c.codebook, c.latent_channels)
    if c.adversarial:
        params["discriminator"] = _discriminator(config).init(adversary_key, image)["params"]
    return params


def next_round_state(config: Experiment, state: TrainState) -> TrainState:
    """The state at the beginning of the next round: the student's average is its teacher, and what it starts from."""
    student = training.as_float32(state.ema[next(iter(config.ema))])  # jit sorts names
    frozen = {**state.frozen, "teacher": jax.tree.map(jnp.copy, student)}
    return replace(initial_state(student, optimizer(config), decays(config), frozen, config.ema_dtype), step=state.step)


def decays(config: Experiment) -> Decays:
    """The decay of each average in a config's state, by name."""
    return {**config.ema, **{power_ema.name_of(length): power_ema.share(length) for length in config.power_ema}}


def state_shapes(config: Experiment, sources: Sources = NONE) -> TrainState:
    """Shapes and dtypes of the state, without computing it."""
    return jax.eval_shape(partial(init, config, sources=sources), jax.random.key(config.seed))


def layout(config: Experiment, frozen: Any = None, sources: Sources = NONE, devices: Sequence[Any] | None = None) -> Layout:
    """Where the config's mesh puts the state, with these frozen params (or their shapes) in it; on all devices, or those given.

    Raises:
        ConfigError: the network cannot be built, or the devices do not fit the mesh or divide the batch.
    """
    c, a, parts = config.mesh, config.autoencoder, config.optimizer.accumulate
    try:
        shapes = replace(state_shapes(config, sources), frozen=frozen or {})
        mesh = None if c.mapping == "pmap" else make_mesh(c.data, c.fsdp, devices, c.tensor)
        rows = jax.local_device_count() if mesh is None else mesh.shape["data"] * mesh.shape["fsdp"]
        if config.data.batch_size % (rows * parts):
            which = count(rows, "device") + (f" times optimizer.accumulate {parts}" if parts > 1 else "")
            raise ConfigError(f"data.batch_size {config.data.batch_size} is not divisible by {which}")
        if mesh is None:
            return pmap_layout(shapes)
        whole = a.codebook > 0 or a.adversarial > 0  # which look at all rows: codes in use, a balance
        return jit_layout(mesh, shapes, gradients=c.gradients, whole=whole)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def train_step(config: Experiment, layout: Layout, sources: Sources = NONE) -> Step:
    """The config's training step, for `layout.compile`."""
    parts, reduce = config.optimizer.accumulate, layout.reduce_gradients
    return training.train_step(objective(config, sources), optimizer(config), decays(config), parts, reduce_gradients=reduce)
