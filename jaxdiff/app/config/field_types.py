"""Types of fields: names by which configs and flags choose functions (`build/tables.py` finds these), and bounded numbers."""

from typing import Annotated, Literal, get_args

from pydantic import Field

PositiveInt = Annotated[int, Field(ge=1)]
Workers = Annotated[int, Field(ge=-1)]
UpToOne = Annotated[float, Field(ge=0, le=1)]
BelowOne = Annotated[float, Field(ge=0, lt=1)]

StudentName = Literal["guided", "progressive", "consistency", "flow_map", "distribution_matching"]
STUDENTS = get_args(StudentName)
DENOISERS = ("diffusion", *STUDENTS)  # objectives that train what samplers need
Deterministic = Literal["ddim", "dpmpp_2m", "dpmpp_3m", "heun", "unipc"]
Stochastic = Literal["ddpm", "ddpm_large", "dpmpp_2m_sde", "euler_maruyama", "ddpm_learned"]
SamplerName = Literal[Deterministic, Stochastic, "heun_edm", "consistency", "overshoot", "flow_map"]
KERNELS = ("ddpm_learned", "flow_map")  # samplers that tell their denoiser where the step goes, (x, t, s)
TWO_CALLS = ("heun", "heun_edm")  # samplers that call the network twice a step, but once in the last
Spacing = Literal["time", "logsnr", "karras", "quadratic", "leading", "linspace", "trailing", "lcm"]
Prediction = Literal["x0", "noise", "score", "v", "velocity", "edm"]
ScheduleName = Literal["cosine", "linear", "linear_logsnr", "linear_zero_snr", "karras", "rectified_flow", "betas"]
# Schedules between which a network that does not scale its input may change: x has the same size at the same logsnr.
FAMILIES = {
    **dict.fromkeys(("cosine", "linear", "linear_logsnr", "linear_zero_snr", "betas", "learned"), "variance preserving"),
    **dict.fromkeys(("karras", "lognormal"), "variance exploding"),
    "rectified_flow": "straight",
}
