"""Image generators of a config, and labels of a classifier."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import Array

from jaxdiff import cascade, editing, objectives, process, samplers
from jaxdiff.app.build import texts
from jaxdiff.app.build.guided import guidance_of, own_condition
from jaxdiff.app.build.networks import (
    NONE,
    Sources,
    clean_level,
    codec,
    conditional_denoiser,
    conditional_kernel,
    flow_denoiser,
    noisy_classifier,
    space,
    vae,
)
from jaxdiff.app.build.students import adapted, sampling_levels
from jaxdiff.app.build.tables import SAMPLERS, SCHEDULES
from jaxdiff.app.config import KERNELS, Experiment
from jaxdiff.denoiser import AverageDenoiser, Denoiser, ReverseKernel, carried, clip, towards
from jaxdiff.guidance import classifier_guide
from jaxdiff.models import classifier
from jaxdiff.process import Level


def image_generator(
    config: Experiment, sources: Sources = NONE, trained: Level | None = None, strength: float = 1.0
) -> Callable[..., Array]:
    """The pure function `(params, key, given, frozen) -> images [B, H, W, C]` of the config's sampler, or of a VAE's prior.

    Images lie in [-1, 1]; decoded ones may reach beyond.

    `given` is a mapping of `index` and `label [B]`, where `num_classes` is no label, and maybe `context [B, T, D]`; tokens
    `[B, T]` by the names of the encoders (see `texts`), those of the negative prompt under `null`; `scale [B]`, in place of the
    config's guidance; and an `image` `[B, H, W, C]` to start from, with a `mask` `[B, H, W, 1]` that is 1 where it is painted anew.
    A VAE reads the index alone. An image depends on the key, its index and what else it is given, and not on the others.

    `sources` are the configs of the runs that sampling needs, by place: a classifier that guides, an autoencoder in whose latents
    the config works, text encoders, a cascade's base. `frozen` is their params by the same names. `trained` is the levels that a
    student was trained on, of which it walks along some; its config's if not given. From an image, the walk takes the last
    `strength` of the steps.
    """

    def generate(params: Any, key: Array, given: Mapping[str, Array], frozen: Mapping[str, Any]) -> Array:
        key, given = _batch_of_one(key, given)
        if config.objective == "vae":
            parts, images = vae(config), jax.ShapeDtypeStruct((1, *config.data.image_shape), jnp.float32)
            codes = jax.eval_shape(parts.encode, params, images).mean
            return parts.mean(params, jax.random.normal(key, codes.shape))[0]
        given = texts.encoded(config, sources, frozen, given)
        edited = {name: given.pop(name) for name in ("image", "mask") if name in given}
        stages = cascade_stages(config, params, given, sources, frozen, trained)
        if len(stages) > 1:
            return cascade.sample(stages, key, 1)[0]
        encode, decode = codec_maps(sources, frozen)
        key = jax.random.fold_in(key, 0)
        if edited:
            return _edited(stages[0], encode, decode, key, strength, **edited)[0]
        x, key = cascade.start(stages[0], key, 1)
        return decode(samplers.sample(stages[0].sampler, stages[0].called({}), x, stages[0].levels, key))[0]

    return jax.vmap(generate, in_axes=(None, None, 0, None))


ROUNDED = ("kernel", "embedding")  # of dense layers, convolutions and tables of words


def rounded(config: Experiment, sources: Sources, params: Any, frozen: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Params and frozen params in half the memory where their networks compute in bfloat16, to which layers round kernels anyway.

    The same samples come of them, to the bit. Adapters, and what they adapt, are added up in float32 and stay as they are.
    """

    def half(dtype: str, tree: Any) -> Any:
        if dtype == "float32" or config.distillation.lora_rank:
            return tree
        flat: dict[Any, Any] = flatten_dict(tree)
        return unflatten_dict({path: leaf.astype(jnp.bfloat16) if path[-1] in ROUNDED else leaf for path, leaf in flat.items()})

    dtypes = {"autoencoder": "", **dict.fromkeys(texts.TEXTS, config.model.dtype)}
    dtypes = {place: dtype or sources[place].model.dtype for place, dtype in dtypes.items() if place in sources}
    return half(config.model.dtype, params), {**frozen, **{place: half(dtypes[place], frozen[place]) for place in dtypes}}


def codec_maps(sources: Sources, frozen: Mapping[str, Any]) -> tuple[Callable[[Array], Array], Callable[[Array], Array]]:
    """From images to what the network sees, the mean of their latents where it works on latents, and back."""
    if "autoencoder" not in sources:
        return lambda images: images, lambda x: x
    networks, params = codec(sources["autoencoder"]), frozen["autoencoder"]
    return lambda images: networks.encode(params, images).mean, lambda z: networks.decode(params, z)


def _edited(
    stage: cascade.Stage, encode: Any, decode: Any, key: Array, strength: float, image: Array, mask: Array | None = None
) -> Array:
    """The image `[1, H, W, C]` noised and sampled back (Meng et al. 2022), with a mask only where it is 1."""
    steps, known, sampler = stage.levels.sigma.size - 1, encode(image), stage.sampler
    if mask is not None:
        sampler = editing.inpaint(sampler, known, _kept(mask, known.shape))
    levels = stage.levels[steps - min(int(steps * strength), steps) :]
    painted = decode(editing.sdedit(sampler, stage.called({}), known, levels, key))
    return painted if mask is None else jnp.where(mask > 0, painted, image)


def _kept(mask: Array, shape: tuple[int, ...]) -> Array:
    """Where `[1, h, w, 1]` nothing of what the network sees is painted anew, of a mask `[1, H, W, 1]`."""
    size = (1, mask.shape[1] // shape[1], mask.shape[2] // shape[2], 1)
    return jax.lax.reduce_window(mask, 0.0, jax.lax.max, size, size, "VALID") == 0


def _batch_of_one(key: Array, given: Mapping[str, Array]) -> tuple[Array, dict[str, Array]]:
    """The key of an image, and what it is given, `[1, ...]` each."""
    rest = {name: each for name, each in given.items() if name != "index"}
    return jax.random.fold_in(key, given["index"]), jax.tree.map(lambda leaf: leaf[None], rest)


def denoising_trajectory(
    config: Experiment, sources: Sources = NONE, trained: Level | None = None, most: int = 9
) -> Callable[..., tuple[Array, Array]]:
    """The pure function `(params, key, given, frozen) -> (x, x0)` of the states of `image_generator`, each `[K, B, H, W, C]`.

    x is scaled to unit size, x0 is what the denoiser makes of it; both end with the images. They are those after
    `evenly_spaced_steps`, at most so many, and decoded where the config works in latents.
    """

    def walk(params: Any, key: Array, given: Mapping[str, Array], frozen: Mapping[str, Any]) -> tuple[Array, Array]:
        key, given = _batch_of_one(key, given)
        given = texts.encoded(config, sources, frozen, given)
        stages = cascade_stages(config, params, given, sources, frozen, trained)
        steps = evenly_spaced_steps(config.sampling.steps, most)
        x, x0 = cascade.trajectory(stages, key, 1, steps)
        level = stages[-1].levels[jnp.array(steps)]
        x = x / jnp.hypot(level.alpha, level.sigma)[:, None, None, None, None]
        if "autoencoder" in sources:
            decode = codec(sources["autoencoder"]).decode
            x, x0 = (jax.lax.map(lambda z: decode(frozen["autoencoder"], z), each) for each in (x, x0))
        return x[:, 0], x0[:, 0]

    return jax.vmap(walk, in_axes=(None, None, 0, None), out_axes=1)


def evenly_spaced_steps(steps: int, most: int) -> list[int]:
    """At most so many numbers of steps that a sampler has done, evenly spaced, from none to all."""
    return np.unique(np.linspace(0, steps, min(most, steps + 1)).round().astype(int)).tolist()


def cascade_stages(
    config: Experiment, params: Any, given: Mapping[str, Array], sources: Sources, frozen: Any, trained: Level | None = None
) -> list[cascade.Stage]:
    """The cascade that ends with the config's model, most often of one stage, each stage sampled as its own config says."""
    sampling, before = config.sampling, []
    if "base" in sources:
        below, params_below = (
            {name.removeprefix("base."): each[name] for name in each if name.startswith("base.")} for each in (sources, frozen)
        )
        its = {name: each for name, each in given.items() if name != "scale"}  # it has a guidance of its own
        before = cascade_stages(sources["base"], frozen["base"], its, below, params_below)

    weights = adapted(config, frozen, params)

    def transform(each: Mapping[str, Array], denoise: Denoiser) -> Denoiser:
        denoise = guidance_of(config, weights, each, sampling.guidance)(denoise)
        if "classifier" in sources:
            apply = classifier.network(noisy_classifier(sources["classifier"]))
            log_prob = objectives.label_log_prob(apply, frozen["classifier"], given["label"])
            denoise = classifier_guide(denoise, log_prob, sampling.classifier_scale)
        return clip(denoise) if sampling.clip else denoise  # last: at high noise the classifier's gradient counts for much

    def denoiser(lower: Mapping[str, Array]) -> Denoiser:
        each = {**given, **lower}
        return transform(each, conditional_denoiser(config, weights, own_condition(config, each, sampling.guidance)))

    def kernel(lower: Mapping[str, Array]) -> ReverseKernel | AverageDenoiser:
        each = {**given, **lower}
        if config.objective == "flow_map":
            average = flow_denoiser(config, weights, own_condition(config, each, sampling.guidance))
            return lambda x, t, s=None: transform(each, towards(average, s or clean_level()))(x, t)
        own = conditional_kernel(config, weights, own_condition(config, each, sampling.guidance))
        return carried(partial(transform, each), own)

    time = jnp.asarray(config.cascade.augmentation)  # of the training schedule, by whose levels the network has seen the base
    augmentation = SCHEDULES[config.diffusion.schedule](config.betas)(time) if before else None
    levels = sampling_levels(config, params, trained)
    sampler = SAMPLERS[sampling.sampler](sampling.eta, levels)
    stage = cascade.Stage(denoiser, sampler, levels, space(config, sources), config.cascade.factor, augmentation)
    return [*before, stage._replace(kernel=kernel) if sampling.sampler in KERNELS else stage]


def noisy_labels(config: Experiment) -> Callable[[Any, Array, Array, Level], Array]:
    """The pure function `(params, key, x0 [B, ...], level []) -> labels [B]`: what a classifier calls x0 noised to that level."""
    apply = classifier.network(noisy_classifier(config))

    def label(params: Any, key: Array, x0: Array, level: Level) -> Array:
        x = process.diffuse(x0, jax.random.normal(key, x0.shape), level)
        return jnp.argmax(objectives.class_log_probs(apply, params)(x, level), axis=-1)

    return label
