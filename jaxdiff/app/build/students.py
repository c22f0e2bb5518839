"""The levels of a config, and students: their teachers and their objectives."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import Array

from jaxdiff import losses, objectives, process
from jaxdiff.app.build import distribution_matching
from jaxdiff.app.build.guided import guided_denoiser, null_condition
from jaxdiff.app.build.networks import conditional_denoiser, flow_denoiser
from jaxdiff.app.build.tables import FLOW_METHODS, SCHEDULES, SIZES, SOLVERS, SPACINGS
from jaxdiff.app.config import FAMILIES, STUDENTS, Experiment, distillation, uses_discrete_levels
from jaxdiff.denoiser import Denoiser, clip
from jaxdiff.models import lora, schedule
from jaxdiff.objectives import Condition, Objective

EMBEDDING = "guidance"  # the module of a network that is told a guidance scale


def sampling_schedule(config: Experiment, params: Any = None) -> process.Schedule:
    """The schedule that samples and likelihoods walk along; without the params of a learned one, another between its ends."""
    name = config.diffusion.sampling_schedule or config.diffusion.schedule
    if name != "learned":
        return SCHEDULES[name](config.betas)
    module = schedule.MonotoneLogsnr()
    if params is None:
        return process.linear_logsnr(module.logsnr_min, module.logsnr_max)
    return lambda t: process.from_logsnr(schedule.logsnr(module)(params["schedule"], jnp.asarray(t)))


def student_levels(config: Experiment, step: int | None = None) -> process.Level:
    """The levels `[N + 1]` that a student of a list is trained on: the finest, or those of a training step."""
    d = config.distillation
    finest = SPACINGS[d.spacing](config, sampling_schedule(config), d.steps)
    before = max(step - 1, 0) if step is not None else config.steps  # the last step that was taken
    if config.objective == "consistency" and d.curriculum == "doubling":
        with jax.ensure_compile_time_eval():  # a number, also where samples are traced
            return finest[:: d.steps // int(np.asarray(_curriculum(config)(jnp.asarray(before))))]
    if config.objective == "progressive" and step is not None:
        halvings = min(before // distillation.round_steps(config), distillation.num_rounds(config) - 1)
        return finest[:: 2 ** (halvings + (not d.every_level))]
    return finest


def sampling_levels(config: Experiment, params: Any = None, trained: process.Level | None = None) -> process.Level:
    """The levels `[N + 1]` of the config's sampler: of a learned schedule at these params, of a student some of those `trained`."""
    if uses_discrete_levels(config):
        trained = student_levels(config) if trained is None else trained
        return trained[:: (trained.sigma.size - 1) // config.sampling.steps]
    return SPACINGS[config.sampling.spacing](config, sampling_schedule(config, params), config.sampling.steps)


def adapted(config: Experiment, frozen: Mapping[str, Any], params: Any) -> Any:
    """The params of the network: of `adapted_place` with adapters where the config trains these, or a generator's, else `params`.

    An embedding of the guidance scale that is trained beside the adapters is added as it is.
    """
    if config.objective == "distribution_matching":
        return params["generator"]
    if not config.distillation.lora_rank:
        return params
    flat: dict[Any, Any] = flatten_dict(params)
    new = {path: flat.pop(path) for path in list(flat) if EMBEDDING in path}
    merged: dict[Any, Any] = flatten_dict(lora.merged(frozen[adapted_place(config)], unflatten_dict(flat)))
    return unflatten_dict({**merged, **new})


def adapted_place(config: Experiment) -> str:
    """The source whose params adapters adapt."""
    return "teacher" if config.objective in STUDENTS else "init"


def objective(config: Experiment, sources: Mapping[str, Experiment], condition: Condition, weight: losses.Weight) -> Objective:
    """The training objective of a student, on images or latents as they come."""
    d, own = config.distillation, partial(conditional_denoiser, config)
    sources = {"teacher": config} if config.objective == "progressive" else sources  # later teachers are students themselves
    teacher: Any = partial(_teacher, config, sources["teacher"]) if d.target == "teacher" else None
    if config.objective == "guided":
        student = objectives.guided(own, teacher, SCHEDULES[config.diffusion.schedule](config.betas), weight, condition=condition)
    elif config.objective == "progressive":
        length, last = distillation.round_steps(config), distillation.num_rounds(config) - 1
        options: dict[str, Any] = {"halvings": lambda step: jnp.minimum(step // length, last), "every_level": d.every_level}
        student = objectives.progressive(own, teacher, student_levels(config), weight, condition=condition, **options)
    elif config.objective == "flow_map":
        student = _flow_map(config, teacher, condition, weight)
    elif config.objective == "distribution_matching":
        student = distribution_matching.objective(config, teacher, student_levels(config), condition, weight)
    else:
        student = _consistency(config, teacher, condition, weight)
    return student


def _flow_map(config: Experiment, teacher: objectives.Teacher | None, condition: Condition, weight: losses.Weight) -> Objective:
    d, f, name, own = config.distillation, config.flow, config.diffusion.schedule, partial(flow_denoiser, config)
    fixed = SCHEDULES[name](config.betas)
    method = FLOW_METHODS[f.method](SIZES[FAMILIES[name]])
    if f.method == "shortcut":
        intervals = objectives.dyadic_intervals(fixed, finest=f.finest, equal=f.equal)
    else:
        times = objectives.logit_normal() if f.draw == "logit_normal" else lambda u: u
        share = objectives.annealed(f.anneal_steps or config.steps) if f.method == "alpha_flow" else objectives.whole
        intervals = objectives.any_intervals(fixed, equal=f.equal, share=share, times=times)
    distance = losses.adaptive_error(f.adaptive) if f.adaptive else losses.squared_error
    options: dict[str, Any] = {"teacher": _followed(config, teacher), "target_ema": d.target_ema or None, "distance": distance}
    return objectives.flow_map(own, method, intervals, weight, condition=condition, **options)


def _followed(config: Experiment, teacher: objectives.Teacher | None) -> objectives.FlowTeacher:
    """Whose flow a flow map learns: the teacher's, the data's, or the data's guided in training."""
    if teacher is not None:
        return lambda params, frozen, given, x0: teacher(frozen, given)
    if config.distillation.guidance == (1.0, 1.0):
        return objectives.of_data
    return objectives.guided_data(partial(flow_denoiser, config), partial(_unlabelled, config), config.flow.mix)


def _unlabelled(config: Experiment, given: Mapping[str, Array]) -> tuple[dict[str, Array], Array]:
    """What is given without label, context and text, and the scale of each example: none for those whose label was dropped."""
    label = given["label"]
    scale = jnp.broadcast_to(jnp.asarray(given.get("guidance", config.distillation.guidance[0])), label.shape)
    scale = jnp.where(label == config.model.num_classes, 1 - config.flow.mix, scale)
    return {**given, **null_condition(config, given)}, scale.reshape(-1, *(1 for _ in config.data.image_shape))


def _consistency(config: Experiment, teacher: objectives.Teacher | None, condition: Condition, weight: losses.Weight) -> Objective:
    d, own, name = config.distillation, partial(conditional_denoiser, config), config.diffusion.schedule
    fixed = SCHEDULES[name](config.betas)
    if d.curriculum == "continuous":
        options: dict[str, Any] = {"condition": condition, "warmup_steps": d.warmup_steps}
        return objectives.continuous_consistency(own, teacher, fixed, weight, **options)
    if d.curriculum == "shrinking":
        pairs = objectives.shrinking(fixed, d.shrink_every, size=SIZES[FAMILIES[name]])
    else:
        measure = objectives.lognormal_measure() if d.draw == "lognormal" else None
        pairs = objectives.steps_of(student_levels(config), _curriculum(config), skip=d.skip, measure=measure)
    distance = losses.squared_error if d.distance == "squared" else losses.pseudo_huber(d.huber)
    options = {"condition": condition, "target_ema": d.target_ema or None, "solver": SOLVERS[d.solver], "distance": distance}
    of_pair = objectives.inverse_gap if d.weight == "inverse_gap" else objectives.of_noisier(weight)
    return objectives.consistency(own, teacher, pairs, of_pair, **options)


def _curriculum(config: Experiment) -> objectives.Curriculum:
    d = config.distillation
    if d.curriculum == "constant":
        return objectives.constant(d.steps)
    growing = objectives.doubling if d.curriculum == "doubling" else objectives.square_root
    return growing(d.first_steps, d.steps, config.steps)


def _teacher(config: Experiment, source: Experiment, frozen: Any, given: Mapping[str, Array]) -> Denoiser:
    """The denoiser of the teacher `source` for a batch, guided by the scale that the batch is given, or by the config's one."""
    given = dict(given)
    scale = given.pop("guidance", config.distillation.guidance[0])
    denoise = guided_denoiser(source, frozen["teacher"], given, scale)
    return clip(denoise) if config.distillation.clip else denoise
