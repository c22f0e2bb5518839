"""Objectives: networks and losses bound into the functions that training minimizes.

An objective is a pure function `(params, state, batch, key) -> loss []`. A batch is a mapping of arrays: `image`
`[B, H, W, C]` in [-1, 1], `label` `[B]`, and `index` `[B]`, an example's position in the whole batch. Times, noise and
dropped conditions are keyed by that index, so they do not depend on how the batch is split. Dropout masks do: they are drawn
for the rows that a device holds, so a run with dropout repeats exactly only on as many devices, in as many parts.
"""

from jaxdiff.objectives import codebook
from jaxdiff.objectives.adapted import adapted
from jaxdiff.objectives.classification import class_log_probs, classifier, label_log_prob
from jaxdiff.objectives.compression import (
    Adversary,
    codebook_bottleneck,
    compression,
    kl_bottleneck,
    perceptual_distance,
    pixel_distance,
    psnr,
    weighted,
)
from jaxdiff.objectives.conditions import Condition, contexts, drop, drop_label, guidance_scales, joint, labels, texts
from jaxdiff.objectives.consistency import PairWeight, consistency, continuous_consistency, inverse_gap, of_noisier
from jaxdiff.objectives.denoising import conditional, diffusion
from jaxdiff.objectives.distribution_matching import Critic, Players, distribution_matching
from jaxdiff.objectives.elbo import vae
from jaxdiff.objectives.encoded import encoded
from jaxdiff.objectives.flow_maps import (
    FlowMethod,
    FlowStudent,
    FlowTeacher,
    alpha_flow,
    conditional_average,
    flow_map,
    guided_data,
    improved_mean_flow,
    mean_flow,
    of_data,
    shortcut,
)
from jaxdiff.objectives.guided import guided
from jaxdiff.objectives.intervals import (
    Interval,
    Intervals,
    annealed,
    any_intervals,
    dyadic_intervals,
    logit_normal,
    whole,
)
from jaxdiff.objectives.latent import latent
from jaxdiff.objectives.level_pairs import (
    Curriculum,
    Measure,
    Pairs,
    constant,
    doubling,
    lognormal_measure,
    shrinking,
    square_root,
    steps_of,
)
from jaxdiff.objectives.progressive import progressive
from jaxdiff.objectives.super_resolution import augmented, downsampled, low_resolution, upsampled
from jaxdiff.objectives.types import ClassifierNetwork, ConditionalNetwork, Objective, Params, Student, Teacher
from jaxdiff.objectives.variational import variational_diffusion

__all__ = [
    "Adversary",
    "codebook",
    "codebook_bottleneck",
    "compression",
    "kl_bottleneck",
    "latent",
    "perceptual_distance",
    "pixel_distance",
    "psnr",
    "weighted",
    "whole",
    "ClassifierNetwork",
    "Condition",
    "Critic",
    "Curriculum",
    "FlowMethod",
    "FlowStudent",
    "FlowTeacher",
    "Interval",
    "Intervals",
    "Measure",
    "PairWeight",
    "Pairs",
    "Players",
    "Student",
    "Teacher",
    "adapted",
    "alpha_flow",
    "annealed",
    "any_intervals",
    "conditional_average",
    "consistency",
    "constant",
    "continuous_consistency",
    "doubling",
    "dyadic_intervals",
    "flow_map",
    "guided_data",
    "improved_mean_flow",
    "logit_normal",
    "mean_flow",
    "of_data",
    "shortcut",
    "guidance_scales",
    "guided",
    "inverse_gap",
    "lognormal_measure",
    "of_noisier",
    "progressive",
    "shrinking",
    "square_root",
    "steps_of",
    "ConditionalNetwork",
    "Objective",
    "Params",
    "augmented",
    "class_log_probs",
    "classifier",
    "conditional",
    "contexts",
    "diffusion",
    "distribution_matching",
    "downsampled",
    "drop",
    "drop_label",
    "encoded",
    "joint",
    "label_log_prob",
    "labels",
    "texts",
    "low_resolution",
    "upsampled",
    "vae",
    "variational_diffusion",
]
