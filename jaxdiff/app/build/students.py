"""Students: their levels, teachers, objectives, and where their params start."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxdiff import losses, objectives, process
from jaxdiff.app.build.networks import conditional_denoiser, guided_denoiser, learned_logsnr
from jaxdiff.app.build.tables import SCHEDULES, SIZES, SOLVERS, SPACINGS
from jaxdiff.app.config import FAMILIES, Experiment, num_rounds, round_steps
from jaxdiff.denoiser import Denoiser, clip
from jaxdiff.io.errors import ConfigError
from jaxdiff.models import lora, schedule
from jaxdiff.objectives import Condition, Objective

SAME = ("channels", "multipliers", "blocks", "attention", "head_channels", "heads", "transformer", "context_channels")
SAME += ("scale_shift", "num_classes", "fourier", "residual_resampling")  # of two networks that share params


def sampling_schedule(config: Experiment, params: Any = None) -> process.Schedule:
    """The schedule that samples and likelihoods walk along; without the params of a learned one, another between its ends."""
    name = config.diffusion.sampling_schedule or config.diffusion.schedule
    if name != "learned":
        return SCHEDULES[name]()
    module = learned_logsnr()
    if params is None:
        return process.linear_logsnr(module.logsnr_min, module.logsnr_max)
    return lambda t: process.from_logsnr(schedule.logsnr(module)(params["schedule"], jnp.asarray(t)))


def student_levels(config: Experiment, step: int | None = None) -> process.Level:
    """The levels `[N + 1]` that a student of a list is trained on: the finest, or those of a training step."""
    d = config.distillation
    spaced, t_min = SPACINGS[d.spacing]
    whole = process.grid(spaced(sampling_schedule(config)), d.steps, t_min)
    before = max(step - 1, 0) if step is not None else config.steps  # the last step that was taken
    if config.objective == "consistency" and d.curriculum == "doubling":
        with jax.ensure_compile_time_eval():  # a number, also where samples are traced
            return whole[:: d.steps // int(np.asarray(_curriculum(config)(jnp.asarray(before))))]
    if config.objective == "progressive" and step is not None:
        return whole[:: 2 ** (min(before // round_steps(config), num_rounds(config) - 1) + (not d.every_level))]
    return whole


def adapted(config: Experiment) -> Callable[[Mapping[str, Any], Any], Any]:
    """`(frozen, params) -> params of the network`: the teacher's with adapters where the config trains those, else as they are."""
    if not config.distillation.lora_rank:
        return lambda frozen, params: params
    return lambda frozen, params: lora.merged(frozen["teacher"], params)


def objective(config: Experiment, sources: Mapping[str, Experiment], condition: Condition, weight: losses.Weight) -> Objective:
    """The training objective of a student, on images or latents as they come."""
    d = config.distillation
    fixed, own = SCHEDULES[config.diffusion.schedule](), partial(conditional_denoiser, config)
    if config.objective == "guided":
        made = objectives.guided(own, _teacher(config, sources), fixed, weight, condition=condition)
    elif config.objective == "progressive":
        made = objectives.progressive(
            own,
            _teacher(config, {"teacher": config}),  # the first has the same network, later ones are its students
            student_levels(config),
            weight,
            condition=condition,
            halvings=lambda step: jnp.minimum(step // round_steps(config), num_rounds(config) - 1),
            every_level=d.every_level,
        )
    else:
        made = _consistency(config, None if d.target == "data" else _teacher(config, sources), condition, weight)
    return objectives.adapted(made, adapted(config)) if d.lora_rank else made


def _consistency(config: Experiment, teacher: objectives.Teacher | None, condition: Condition, weight: losses.Weight) -> Objective:
    d, own = config.distillation, partial(conditional_denoiser, config)
    fixed = SCHEDULES[config.diffusion.schedule]()
    distance = losses.squared_error if d.distance == "squared" else losses.pseudo_huber(d.huber)
    if d.curriculum == "continuous":
        how: dict[str, Any] = {"condition": condition, "warmup_steps": d.warmup_steps}
        return objectives.continuous_consistency(own, teacher, fixed, weight, **how)
    if d.curriculum == "shrinking":
        pairs = objectives.shrinking(fixed, d.shrink_every, size=SIZES.get(config.diffusion.schedule, jnp.hypot))
    else:
        measure = objectives.lognormal_measure() if d.draw == "lognormal" else None
        pairs = objectives.steps_of(student_levels(config), _curriculum(config), skip=d.skip, measure=measure)
    return objectives.consistency(
        own,
        teacher,
        pairs,
        objectives.inverse_gap if d.weight == "inverse_gap" else objectives.of_noisier(weight),
        condition=condition,
        target_ema=d.target_ema or None,
        solver=SOLVERS[d.solver],
        distance=distance,
    )


def _curriculum(config: Experiment) -> objectives.Curriculum:
    d = config.distillation
    if d.curriculum == "constant":
        return objectives.constant(d.steps)
    growing = objectives.doubling if d.curriculum == "doubling" else objectives.square_root
    return growing(d.first_steps, d.steps, config.steps)


def _teacher(config: Experiment, sources: Mapping[str, Experiment]) -> objectives.Teacher:
    """The teacher of what a batch is given, guided by the scale in it, or by the config's one."""
    source, (scale, _) = sources["teacher"], config.distillation.guidance

    def teacher(frozen: Any, given: Mapping[str, Array]) -> Denoiser:
        given = dict(given)
        denoise = guided_denoiser(source, frozen["teacher"], given, given.pop("guidance", scale))
        return clip(denoise) if config.distillation.clip else denoise

    return teacher


def init_params(config: Experiment, key: Array, whole: Callable[[Array], Any]) -> Any:
    """The params at step 0: `whole(key)`, those of the network, or adapters of them where the config trains those."""
    rank = config.distillation.lora_rank
    return lora.init(key, jax.eval_shape(whole, key), rank) if rank else whole(key)


def copy_matching(params: Mapping[str, Any], others: Mapping[str, Any]) -> dict[str, Any]:
    """The params, those of the same name in `others` as they are there."""
    return {
        name: copy_matching(each, others.get(name, {})) if isinstance(each, Mapping) else jnp.copy(others.get(name, each))
        for name, each in params.items()
    }


def check_teacher(config: Experiment, source: Experiment, where: str) -> None:
    """Whether the config `source` can teach the student config; `where` is its run.

    Raises:
        ConfigError: it is another network, predicts something else, or was not trained for what the student is to learn.
    """
    if source.objective not in ("diffusion", "guided"):
        raise ConfigError(f"sources.teacher: {where} is a {source.objective} student, no teacher; name what it was distilled from")
    pairs: list[tuple[str, Any, Any]] = [
        (f"model.{name}", getattr(config.model, name), getattr(source.model, name)) for name in SAME
    ]
    pairs += [("data.image_shape", config.data.image_shape, source.data.image_shape)]
    pairs += [("diffusion.prediction", config.diffusion.prediction, source.diffusion.prediction)]
    for name, mine, its in pairs:
        if mine != its:
            raise ConfigError(f"sources.teacher: {where} has {name} {its!r}, the student {mine!r}; set {its!r}")
    families = [FAMILIES[each.diffusion.schedule] for each in (config, source)]
    if families[0] != families[1] and config.diffusion.prediction != "edm":
        raise ConfigError(
            f"sources.teacher: {where} was trained on {families[1]} levels, the student's are {families[0]}; use its schedule"
        )
    if bool(config.sources.autoencoder) != bool(source.sources.autoencoder):
        space = "latents" if source.sources.autoencoder else "pixels"
        raise ConfigError(f"sources.teacher: {where} works in {space}; so must the student (sources.autoencoder)")
    if source.diffusion.schedule == "learned" or source.distillation.lora_rank or source.cascade.factor > 1:
        raise ConfigError(f"sources.teacher: {where} has a learned schedule, adapters or a base; name a run without")
    mine, (low, high) = config.distillation.guidance, source.distillation.guidance
    if source.objective == "guided" and not low <= mine[0] <= mine[1] <= high:
        raise ConfigError(f"distillation.guidance {mine} must lie within {low:g} and {high:g}, those of the teacher {where}")
    if source.objective == "guided" and low != high and config.distillation.lora_rank:
        raise ConfigError(
            f"distillation.lora_rank must be 0 with {where}, whose guidance is an input; adapt what it was distilled from"
        )
    if source.objective == "diffusion" and mine != (1.0, 1.0) and not source.diffusion.label_dropout:
        raise ConfigError(f"distillation.guidance must be 1 1: {where} was trained without null labels (diffusion.label_dropout 0)")
    its = (low, high) if source.objective == "guided" else (1.0, 1.0)
    if config.objective == "progressive" and mine != its:
        hint = "" if source.objective == "guided" else "; distil the guidance first (objective guided)"
        raise ConfigError(
            f"distillation.guidance of a progressive student must be its teacher's ({where}), {its}, got {mine}{hint}"
        )
