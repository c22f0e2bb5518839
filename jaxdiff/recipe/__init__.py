"""The functions that a config stands for: network, objective, optimizer, state, layout, sampler."""

from jaxdiff.recipe.networks import Vae, labelled, learned_logsnr, noisy_classifier, unet, vae
from jaxdiff.recipe.sampling import check_guiding, generator, labeller, levels, prior_generator, sampling_schedule
from jaxdiff.recipe.tables import PARAMETERIZATIONS, PIXELS, SAMPLERS, SCHEDULES, SPACINGS, WEIGHTS
from jaxdiff.recipe.training import init, layout, objective, optimizer, state_shapes

__all__ = [
    "PARAMETERIZATIONS",
    "PIXELS",
    "SAMPLERS",
    "SCHEDULES",
    "SPACINGS",
    "Vae",
    "WEIGHTS",
    "check_guiding",
    "generator",
    "init",
    "labelled",
    "labeller",
    "layout",
    "learned_logsnr",
    "levels",
    "noisy_classifier",
    "objective",
    "optimizer",
    "prior_generator",
    "sampling_schedule",
    "state_shapes",
    "unet",
    "vae",
]
