"""Samplers: `(init, step)` pairs, and the one loop over levels that runs them all."""

from jaxdiff.samplers.loop import Sampler, sample, trajectory
from jaxdiff.samplers.multistep import dpmpp_2m, dpmpp_2m_sde, dpmpp_3m, unipc
from jaxdiff.samplers.singlestep import (
    consistency,
    ddim,
    ddpm,
    ddpm_learned,
    edm_trapezoid,
    euler_maruyama,
    excess_std,
    exponential_trapezoid,
    flow_map,
    full_std,
    heun,
    overshoot,
)
from jaxdiff.samplers.transforms import churn, with_callback

__all__ = [
    "Sampler",
    "churn",
    "consistency",
    "ddim",
    "ddpm",
    "ddpm_learned",
    "dpmpp_2m",
    "dpmpp_2m_sde",
    "dpmpp_3m",
    "edm_trapezoid",
    "euler_maruyama",
    "excess_std",
    "exponential_trapezoid",
    "flow_map",
    "full_std",
    "heun",
    "overshoot",
    "sample",
    "trajectory",
    "unipc",
    "with_callback",
]
