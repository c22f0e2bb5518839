"""jaxdiff: diffusion models on JAX, from a noise schedule to a trained and sampled network.

The core (process to objectives) is pure functions over arrays; any framework's network is a function to it.
"""

from jaxdiff import guidance, losses, objectives, oracles, process, samplers, targets
from jaxdiff.denoiser import (
    Coefficients,
    Denoiser,
    Parameterization,
    clip,
    denoiser,
    edm,
    predict_noise,
    predict_score,
    predict_v,
    predict_velocity,
    predict_x0,
)
from jaxdiff.guidance import guide
from jaxdiff.losses import regression_loss
from jaxdiff.process import (
    Level,
    Schedule,
    cosine,
    diffuse,
    from_betas,
    from_logsnr,
    grid,
    implied_x0,
    karras,
    linear,
    lognormal,
    rectified_flow,
    shifted,
    transfer,
)
from jaxdiff.samplers import Sampler, ddim, ddpm, sample, trajectory

__version__ = "0.1.0"

__all__ = [
    "Coefficients",
    "Denoiser",
    "Level",
    "Parameterization",
    "Sampler",
    "Schedule",
    "clip",
    "cosine",
    "ddim",
    "ddpm",
    "denoiser",
    "diffuse",
    "edm",
    "from_betas",
    "from_logsnr",
    "grid",
    "guidance",
    "guide",
    "implied_x0",
    "karras",
    "linear",
    "lognormal",
    "losses",
    "objectives",
    "oracles",
    "predict_noise",
    "predict_score",
    "predict_v",
    "predict_velocity",
    "predict_x0",
    "process",
    "rectified_flow",
    "regression_loss",
    "sample",
    "samplers",
    "shifted",
    "targets",
    "trajectory",
    "transfer",
]
