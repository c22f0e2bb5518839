"""Levels and generators of a config, and the classifiers and bases beside them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxdiff import cascade, objectives, process, samplers
from jaxdiff.app.build import autoencoder
from jaxdiff.app.build.networks import guided_denoiser, noisy_classifier, vae
from jaxdiff.app.build.students import adapted, sampling_schedule, student_levels
from jaxdiff.app.build.tables import SAMPLERS, SCHEDULES, SPACINGS
from jaxdiff.app.build.train_step import NONE, Sources, space, strip_prefix
from jaxdiff.app.config import Experiment, uses_discrete_levels
from jaxdiff.denoiser import Denoiser, clip
from jaxdiff.guidance import classifier_guide
from jaxdiff.io.errors import ConfigError
from jaxdiff.models import classifier

ROUNDING = 0.1  # of a schedule's logsnr at its ends, in float32


def sampling_levels(config: Experiment, params: Any = None, trained: process.Level | None = None) -> process.Level:
    """The levels `[N + 1]` along which the config's sampler walks, of a learned schedule at these params.

    Of a student of a list every so many of its levels, `trained` if given.
    """
    if uses_discrete_levels(config):
        trained = student_levels(config) if trained is None else trained
        return trained[:: (trained.sigma.size - 1) // config.sampling.steps]
    spaced, t_min = SPACINGS[config.sampling.spacing]
    return process.grid(spaced(sampling_schedule(config, params)), config.sampling.steps, t_min)


def image_generator(config: Experiment, sources: Sources = NONE, trained: process.Level | None = None) -> Callable[..., Array]:
    """The pure function `(params, key, given, frozen) -> images [B, H, W, C]` of the config's sampler.

    Images lie in [-1, 1]; decoded ones may reach beyond.

    `given` is labels `[B]`, of which `num_classes` is none at all, or a mapping of `label` and `context [B, T, D]`.
    `sources` are the configs of the runs that sampling needs, by place: a classifier that guides, an autoencoder in whose
    latents the config works, a cascade's base. `frozen` is their params by the same names; without any it is not needed.
    `trained` is the levels that a student was trained on, of which it walks along some; its config's if not given.
    """

    def generate(params: Any, key: Array, given: Array | Mapping[str, Array], frozen: Mapping[str, Any] = NONE) -> Array:
        given = given if isinstance(given, Mapping) else {"label": given}
        stages = cascade_stages(config, params, given, sources, frozen, trained)
        if len(stages) > 1:
            x = cascade.sample(stages, key, len(given["label"]))
        else:
            x, key = cascade.start(stages[0], jax.random.fold_in(key, 0), len(given["label"]))
            x = samplers.sample(stages[0].sampler, stages[0].denoiser({}), x, stages[0].levels, key)
        return autoencoder.codec(sources["autoencoder"]).decode(frozen["autoencoder"], x) if "autoencoder" in sources else x

    return generate


def denoising_trajectory(
    config: Experiment, sources: Sources = NONE, trained: process.Level | None = None, most: int = 9
) -> Callable[..., tuple[Array, Array]]:
    """The pure function `(params, key, given, frozen) -> (x, x0)`, what `generator` sees on its way, each `[K, B, H, W, C]`.

    x is brought to unit size, x0 what the denoiser makes of it; both end with `generator`'s images. They are at most so many,
    after the numbers of steps of `shown`, and decoded where the config works in latents.
    """

    def walk(params: Any, key: Array, given: Mapping[str, Array], frozen: Mapping[str, Any] = NONE) -> tuple[Array, Array]:
        path, after = (
            cascade_stages(config, params, given, sources, frozen, trained),
            evenly_spaced_steps(config.sampling.steps, most),
        )
        x, x0 = cascade.trajectory(path, key, len(given["label"]), after)
        level = path[-1].levels[jnp.array(after)]
        x = x / jnp.hypot(level.alpha, level.sigma)[:, None, None, None, None]
        if "autoencoder" not in sources:
            return x, x0
        decode = autoencoder.codec(sources["autoencoder"]).decode
        return tuple(jax.lax.map(lambda z: decode(frozen["autoencoder"], z), each) for each in (x, x0))

    return walk


def evenly_spaced_steps(steps: int, most: int) -> list[int]:
    """At most so many numbers of steps that a sampler has done, in even distances, from none to all."""
    return np.unique(np.linspace(0, steps, min(most, steps + 1)).round().astype(int)).tolist()


def cascade_stages(
    config: Experiment,
    params: Any,
    given: Mapping[str, Array],
    sources: Sources = NONE,
    frozen: Mapping[str, Any] = NONE,
    trained: process.Level | None = None,
) -> list[cascade.Stage]:
    """The cascade that ends with the config's model, most often of one stage, each stage sampled as its own config says."""
    before = []
    if "base" in sources:
        before = cascade_stages(sources["base"], frozen["base"], given, strip_prefix(sources, "base"), strip_prefix(frozen, "base"))
    sampling, shape = config.sampling, space(config, sources)
    time = jnp.asarray(config.cascade.augmentation)  # of the training schedule, by whose levels the network has seen the base
    augmentation = SCHEDULES[config.diffusion.schedule]()(time) if before else None
    walked = sampling_levels(config, params, trained)
    return [
        *before,
        cascade.Stage(
            lambda lower: _denoiser(config, params, {**given, **lower}, sources, frozen),
            SAMPLERS[sampling.sampler](sampling.eta, walked),
            walked,
            shape,
            config.cascade.factor,
            augmentation,
        ),
    ]


def _denoiser(config: Experiment, params: Any, given: Mapping[str, Array], sources: Sources, frozen: Mapping[str, Any]) -> Denoiser:
    sampling = config.sampling
    denoise = guided_denoiser(config, adapted(config)(frozen, params), given, sampling.guidance)
    if "classifier" in sources:
        apply = classifier.network(noisy_classifier(sources["classifier"]))
        log_prob = objectives.label_log_prob(apply, frozen["classifier"], given["label"])
        denoise = classifier_guide(denoise, log_prob, sampling.classifier_scale)
    return clip(denoise) if sampling.clip else denoise  # last: at high noise the classifier's gradient counts for much


def prior_image_generator(config: Experiment) -> Callable[..., Array]:
    """The pure function `(params, key, given, ...) -> images [B, H, W, C]` of a VAE, as many as labels, which it does not read."""
    parts = vae(config)

    def generate(params: Any, key: Array, given: Mapping[str, Array], frozen: Mapping[str, Any] = NONE) -> Array:
        label = given["label"]
        images = jax.ShapeDtypeStruct((*label.shape, *config.data.image_shape), jnp.float32)
        codes = jax.eval_shape(parts.encode, params, images).mean
        return parts.mean(params, jax.random.normal(key, codes.shape))

    return generate


def noisy_labels(config: Experiment) -> Callable[[Any, Array, Array, process.Level], Array]:
    """The pure function `(params, key, x0 [B, ...], level []) -> labels [B]`: what a classifier calls x0 noised to that level."""
    apply = classifier.network(noisy_classifier(config))

    def label(params: Any, key: Array, x0: Array, level: process.Level) -> Array:
        x = process.diffuse(x0, jax.random.normal(key, x0.shape), level)
        return jnp.argmax(objectives.class_log_probs(apply, params)(x, level), axis=-1)

    return label


def check_cascade(config: Experiment, base: Experiment, where: str) -> None:
    """Whether samples of the config `base` are what the super-resolution config enlarges.

    Raises:
        ConfigError: they are of another size, or know other classes; `where` is the base's run.
    """
    height, width, channels = config.data.image_shape
    wanted = (height // config.cascade.factor, width // config.cascade.factor, channels)
    for name, mine, its in (
        ("data.image_shape", wanted, base.data.image_shape),
        ("model.num_classes", config.model.num_classes, base.model.num_classes),
        ("model.context_channels", config.model.context_channels, base.model.context_channels),
        ("sources.autoencoder", "", base.sources.autoencoder),
    ):
        if mine != its:
            raise ConfigError(
                f"the base {where} has {name} {its!r}, this stage of the cascade needs {mine!r}; train one with {mine!r}"
            )


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
    ends = np.array([1.0, 0.0], np.float32)
    learned = config.diffusion.schedule == "learned"  # where it goes between its ends is in the params
    walked = np.asarray((sampling_schedule(config)(ends) if learned else sampling_levels(config)[:-1]).logsnr)
    first, last = np.asarray(SCHEDULES[guiding.diffusion.schedule]()(ends).logsnr)
    if walked.min() < first - ROUNDING or walked.max() > last + ROUNDING:
        raise ConfigError(
            f"the classifier {where} knows logsnr {first:.1f} to {last:.1f} (schedule {guiding.diffusion.schedule}), "
            f"the samples pass through {walked.min():.1f} to {walked.max():.1f}; train it on their schedule"
        )
