"""Distributions whose denoiser is known exactly, and `verify`, which tests any sampler on them."""

from jaxdiff.oracles.comparison import Check, compare
from jaxdiff.oracles.mixtures import (
    Mixture,
    average_denoiser,
    class_log_prob,
    conditional,
    correlated,
    denoiser,
    draw,
    flow_map,
    gaussian,
    guided,
    log_density,
    mixture,
    moments,
    posterior,
    score,
)
from jaxdiff.oracles.verification import Report, verify

__all__ = [
    "Check",
    "Mixture",
    "Report",
    "average_denoiser",
    "class_log_prob",
    "compare",
    "conditional",
    "correlated",
    "denoiser",
    "draw",
    "flow_map",
    "gaussian",
    "guided",
    "log_density",
    "mixture",
    "moments",
    "posterior",
    "score",
    "verify",
]
