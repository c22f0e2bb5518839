"""The functions that a config stands for: network, objective, optimizer, state, layout, sampler."""

from jaxdiff.app.build.checks import check_source
from jaxdiff.app.build.networks import (
    FROZEN,
    NONE,
    Sources,
    codec,
    conditional_denoiser,
    flow_denoiser,
    frozen_places,
    measure_latents,
    nearest_codes,
    space,
    unet,
    vae,
)
from jaxdiff.app.build.sampling import (
    cascade_stages,
    denoising_trajectory,
    evenly_spaced_steps,
    image_generator,
    noisy_labels,
    rounded,
)
from jaxdiff.app.build.students import adapted, adapted_place, sampling_levels, sampling_schedule, student_levels
from jaxdiff.app.build.tables import PARAMETERIZATIONS, SAMPLERS, SCHEDULES, SPACINGS, WEIGHTS
from jaxdiff.app.build.texts import TEXTS, check_texts, encoded, has_text, null_states, nulls, states, text_configs, text_encoder
from jaxdiff.app.build.train_step import init, layout, next_round_state, objective, optimizer, state_shapes, train_step
