"""Image generators of a config, and labels of a classifier."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxdiff import cascade, objectives, process, samplers
from jaxdiff.app.build.networks import NONE, Sources, codec, guided_denoiser, noisy_classifier, space, vae
from jaxdiff.app.build.students import adapted, sampling_levels
from jaxdiff.app.build.tables import SAMPLERS, SCHEDULES
from jaxdiff.app.config import Experiment
from jaxdiff.denoiser import Denoiser, clip
from jaxdiff.guidance import classifier_guide
from jaxdiff.models import classifier
from jaxdiff.process import Level


def image_generator(config: Experiment, sources: Sources = NONE, trained: Level | None = None) -> Callable[..., Array]:
    """The pure function `(params, key, given, frozen) -> images [B, H, W, C]` of the config's sampler, or of a VAE's prior.

    Images lie in [-1, 1]; decoded ones may reach beyond.

    `given` is a mapping of `index` and `label [B]`, where `num_classes` is no label, and `context [B, T, D]`; a VAE reads the
    index alone. An image depends on the key, its index and what else it is given, and not on the others. `sources` are the configs
    of the runs that sampling needs, by place: a classifier that guides, an autoencoder in whose latents the config works, a
    cascade's base. `frozen` is their params by the same names. `trained` is the levels that a student was trained on, of which it
    walks along some; its config's if not given.
    """

    def generate(params: Any, key: Array, given: Mapping[str, Array], frozen: Mapping[str, Any]) -> Array:
        key, given = _batch_of_one(key, given)
        if config.objective == "vae":
            parts, images = vae(config), jax.ShapeDtypeStruct((1, *config.data.image_shape), jnp.float32)
            codes = jax.eval_shape(parts.encode, params, images).mean
            return parts.mean(params, jax.random.normal(key, codes.shape))[0]
        stages = cascade_stages(config, params, given, sources, frozen, trained)
        if len(stages) > 1:
            x = cascade.sample(stages, key, 1)
        else:
            x, key = cascade.start(stages[0], jax.random.fold_in(key, 0), 1)
            x = samplers.sample(stages[0].sampler, stages[0].denoiser({}), x, stages[0].levels, key)
        return (codec(sources["autoencoder"]).decode(frozen["autoencoder"], x) if "autoencoder" in sources else x)[0]

    return jax.vmap(generate, in_axes=(None, None, 0, None))


def _batch_of_one(key: Array, given: Mapping[str, Array]) -> tuple[Array, dict[str, Array]]:
    """The key of an image, and what it is given, `[1, ...]` each."""
    return jax.random.fold_in(key, given["index"]), {name: given[name][None] for name in given if name != "index"}


def denoising_trajectory(
    config: Experiment, sources: Sources = NONE, trained: Level | None = None, most: int = 9
) -> Callable[..., tuple[Array, Array]]:
    """The pure function `(params, key, given, frozen) -> (x, x0)` of the states of `image_generator`, each `[K, B, H, W, C]`.

    x is scaled to unit size, x0 is what the denoiser makes of it; both end with the images. They are those after
    `evenly_spaced_steps`, at most so many, and decoded where the config works in latents.
    """

    def walk(params: Any, key: Array, given: Mapping[str, Array], frozen: Mapping[str, Any]) -> tuple[Array, Array]:
        key, given = _batch_of_one(key, given)
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
        before = cascade_stages(sources["base"], frozen["base"], given, below, params_below)

    def denoiser(lower: Mapping[str, Array]) -> Denoiser:
        denoise = guided_denoiser(config, adapted(config, frozen, params), {**given, **lower}, sampling.guidance)
        if "classifier" in sources:
            apply = classifier.network(noisy_classifier(sources["classifier"]))
            log_prob = objectives.label_log_prob(apply, frozen["classifier"], given["label"])
            denoise = classifier_guide(denoise, log_prob, sampling.classifier_scale)
        return clip(denoise) if sampling.clip else denoise  # last: at high noise the classifier's gradient counts for much

    time = jnp.asarray(config.cascade.augmentation)  # of the training schedule, by whose levels the network has seen the base
    augmentation = SCHEDULES[config.diffusion.schedule](config.betas)(time) if before else None
    levels = sampling_levels(config, params, trained)
    sampler = SAMPLERS[sampling.sampler](sampling.eta, levels)
    return [*before, cascade.Stage(denoiser, sampler, levels, space(config, sources), config.cascade.factor, augmentation)]


def noisy_labels(config: Experiment) -> Callable[[Any, Array, Array, Level], Array]:
    """The pure function `(params, key, x0 [B, ...], level []) -> labels [B]`: what a classifier calls x0 noised to that level."""
    apply = classifier.network(noisy_classifier(config))

    def label(params: Any, key: Array, x0: Array, level: Level) -> Array:
        x = process.diffuse(x0, jax.random.normal(key, x0.shape), level)
        return jnp.argmax(objectives.class_log_probs(apply, params)(x, level), axis=-1)

    return label
