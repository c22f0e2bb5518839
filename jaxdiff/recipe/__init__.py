"""The functions that a config stands for: network, objective, optimizer, state, layout, sampler."""

from jaxdiff.recipe.compression import Codec, check_latents, codec, measured, nearest_codes
from jaxdiff.recipe.distillation import check_teacher, sampling_schedule, student_levels
from jaxdiff.recipe.networks import Vae, conditional, learned_logsnr, noisy_classifier, unet, vae
from jaxdiff.recipe.sampling import (
    check_cascade,
    check_guiding,
    generator,
    labeller,
    levels,
    prior_generator,
    stages,
)
from jaxdiff.recipe.tables import PARAMETERIZATIONS, PIXELS, SAMPLERS, SCHEDULES, SPACINGS, WEIGHTS
from jaxdiff.recipe.training import (
    FROZEN,
    Sources,
    begun,
    below,
    init,
    layout,
    objective,
    optimizer,
    state_shapes,
    train_step,
    turned,
)

__all__ = [
    "PARAMETERIZATIONS",
    "PIXELS",
    "SAMPLERS",
    "SCHEDULES",
    "SPACINGS",
    "Codec",
    "FROZEN",
    "Sources",
    "Vae",
    "WEIGHTS",
    "begun",
    "below",
    "check_teacher",
    "student_levels",
    "turned",
    "check_cascade",
    "check_guiding",
    "check_latents",
    "codec",
    "conditional",
    "generator",
    "init",
    "measured",
    "nearest_codes",
    "labeller",
    "layout",
    "learned_logsnr",
    "levels",
    "noisy_classifier",
    "objective",
    "optimizer",
    "prior_generator",
    "sampling_schedule",
    "stages",
    "state_shapes",
    "train_step",
    "unet",
    "vae",
]
