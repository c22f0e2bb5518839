"""How a run may be sampled: the samplers, numbers of steps and scales of guidance among which a page lets one choose."""

import dataclasses
from typing import NamedTuple, get_args

from jaxdiff.app.config import (
    KERNELS,
    STUDENTS,
    Experiment,
    SamplerName,
    distillation,
    guidance_is_input,
    uses_discrete_levels,
    validated,
)
from jaxdiff.io.errors import ConfigError

OTHERS = (
    "euler_maruyama",
    "heun_edm",
    "overshoot",
    *KERNELS,
)  # samplers that want levels of their own, or no denoiser: not offered
MOST_STEPS = 100
MOST_GUIDANCE = 15.0


class Setting(NamedTuple):
    """How a run samples; guidance counts where `scales` are not None."""

    sampler: str
    steps: int
    guidance: float = 1.0


def of_config(config: Experiment) -> Setting:
    """The setting of a run's own config."""
    return Setting(config.sampling.sampler, config.sampling.steps, config.sampling.guidance)


def sampled(config: Experiment, sampler: str, steps: int) -> Experiment:
    """The config with another sampler and number of steps.

    Raises:
        ConfigError: the run cannot be sampled so.
    """
    eta = config.sampling.eta if sampler in ("ddim", config.sampling.sampler) else 0.0
    sampling = dataclasses.replace(config.sampling, sampler=sampler, steps=steps, eta=eta)
    return validated(dataclasses.replace(config, sampling=sampling), where="sampling")


def samplers(config: Experiment) -> list[str]:
    """The names of samplers that the run may take."""
    return [name for name in get_args(SamplerName) if name == config.sampling.sampler or _is_offered(config, name)]


def _is_offered(config: Experiment, name: str) -> bool:
    try:
        sampled(config, name, config.sampling.steps)
    except ConfigError:
        return False
    return name not in OTHERS


def steps(config: Experiment) -> list[int]:
    """The numbers of steps that the run may take, fewest first: of a student of a list of levels, those that it was trained for."""
    if uses_discrete_levels(config):
        return sorted(distillation.sampling_steps(config))
    return list(range(1, max(MOST_STEPS, config.sampling.steps) + 1))


def scales(config: Experiment) -> tuple[float, float] | None:
    """The least and the greatest scale of guidance; None where it is fixed, or there is nothing to be guided from."""
    if config.objective in STUDENTS:
        return config.distillation.guidance if guidance_is_input(config) else None
    guided = config.model.context_channels or (config.model.num_classes and config.diffusion.label_dropout)
    return (0.0, max(MOST_GUIDANCE, config.sampling.guidance)) if guided else None
