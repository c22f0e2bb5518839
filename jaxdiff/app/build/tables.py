"""What the strings of a config stand for."""

from collections.abc import Callable
from typing import Any, get_args

import jax
import jax.numpy as jnp
from jax import Array

from jaxdiff import likelihood, losses, objectives, process, samplers, targets
from jaxdiff.app.config import FAMILIES, Betas, Experiment, SamplerName
from jaxdiff.denoiser import Parameterization, edm, predict_noise, predict_score, predict_v, predict_velocity, predict_x0
from jaxdiff.interop import chains

SCHEDULES: dict[str, Callable[[Betas], process.Schedule]] = {  # of the config's betas
    **{name: lambda c, name=name: getattr(process, name)() for name in FAMILIES if name not in ("learned", "betas")},
    "betas": lambda c: process.from_betas(chains.betas(**vars(c))),
}
SIZES: dict[str, Callable[[Array, Array], Array]] = {  # of alpha and sigma: what stays the same along the schedules of a family
    "variance preserving": jnp.hypot,
    "variance exploding": lambda alpha, sigma: alpha,
    "straight": jnp.add,
}
PARAMETERIZATIONS: dict[str, Callable[[float], Parameterization]] = {  # of the boundary of edm
    "x0": lambda boundary: predict_x0,
    "noise": lambda boundary: predict_noise,
    "score": lambda boundary: predict_score,
    "v": lambda boundary: predict_v,
    "velocity": lambda boundary: predict_velocity,
    "edm": lambda boundary: edm(sigma_min=boundary),
}
TOLD: dict[str, Callable[[Experiment], Callable[[Array], Array]]] = {  # what a network is told for a logsnr
    "logsnr": lambda config: lambda logsnr: logsnr,
    "step": lambda config: process.timestep_of(chains.betas(**vars(config.betas))),
    "log_sigma": lambda config: lambda logsnr: -logsnr / 2,
    "time": lambda config: lambda logsnr: jax.nn.sigmoid(-logsnr / 2),
    "data_time": lambda config: lambda logsnr: jax.nn.sigmoid(logsnr / 2),
}
WEIGHTS: dict[str, losses.Weight] = {
    "x0": losses.x0_weight,
    "noise": losses.noise_weight,
    "score": losses.score_weight,
    "v": losses.v_weight,
    "velocity": losses.velocity_weight,
    "edm": losses.edm_weight(),
    "truncated_snr": losses.truncated_snr,
    "min_snr": losses.min_snr(),
}
SAMPLERS: dict[str, Callable[[float, process.Level], samplers.Sampler]] = {  # of eta and the levels
    **{name: lambda eta, levels, name=name: getattr(samplers, name)() for name in get_args(SamplerName)},
    "ddim": lambda eta, levels: samplers.ddim(eta),
    "ddpm_large": lambda eta, levels: samplers.ddpm(process.forward_std),
    "heun_edm": lambda eta, levels: samplers.heun(samplers.edm_trapezoid),
    "overshoot": lambda eta, levels: samplers.overshoot(levels),
    "flow_map": lambda eta, levels: samplers.flow_map(eta),
}


def _solver(sampler: samplers.Sampler) -> targets.Solver:
    """One step of a sampler that uses neither memory nor key."""
    return lambda denoise, x, t, s: sampler.step(denoise, x, (), t, s, jax.random.key(0))[0]


SOLVERS = {"ddim": targets.euler, "heun": _solver(samplers.heun()), "heun_edm": _solver(samplers.heun(samplers.edm_trapezoid))}


FLOW_METHODS: dict[str, Callable[[Callable[[Array, Array], Array]], objectives.FlowMethod]] = {  # of the family's size
    "mean_flow": objectives.mean_flow,
    "improved_mean_flow": objectives.improved_mean_flow,
    "alpha_flow": lambda size: objectives.alpha_flow,
    "shortcut": lambda size: objectives.shortcut,
}


def _paced(pace: Callable[[process.Schedule], process.Schedule] = lambda schedule: schedule, t_min: float | None = None) -> Any:
    return lambda config, schedule, steps: process.grid(pace(schedule), steps, t_min)


def _timesteps(spacing: str) -> Any:
    def levels(config: Experiment, schedule: process.Schedule, steps: int) -> process.Level:
        return process.from_timesteps(chains.betas(**vars(config.betas)), steps, spacing, config.sampling.steps_offset)

    return levels


SPACINGS: dict[str, Callable[[Experiment, process.Schedule, int], process.Level]] = {  # the levels of so many steps
    "time": _paced(),
    "logsnr": _paced(process.uniform_logsnr, 0.0),
    "karras": _paced(process.karras_spaced, 0.0),
    "quadratic": _paced(process.quadratic),
    **{name: _timesteps(name) for name in process.TIMESTEPS},
}
PIXELS: dict[str, Callable[[float], likelihood.Pixels]] = {
    "logistic": lambda std: likelihood.logistic_pixels(),
    "binary": lambda std: likelihood.binary_pixels(),
    "gaussian": likelihood.gaussian_pixels,
}
