"""What the strings of a config stand for."""

from collections.abc import Callable
from typing import get_args

import jax
import jax.numpy as jnp
from jax import Array

from jaxdiff import likelihood, losses, process, samplers, targets
from jaxdiff.app.config import FAMILIES, SamplerName
from jaxdiff.denoiser import Parameterization, edm, predict_noise, predict_score, predict_v, predict_velocity, predict_x0

SCHEDULES: dict[str, Callable[[], process.Schedule]] = {name: getattr(process, name) for name in FAMILIES if name != "learned"}
SIZES: dict[str, Callable[[Array, Array], Array]] = {  # of alpha and sigma: what stays the same along the schedules of a family
    "variance preserving": jnp.hypot,
    "variance exploding": lambda alpha, sigma: alpha,
    "straight": jnp.add,
}
PARAMETERIZATIONS: dict[str, Parameterization] = {
    "x0": predict_x0,
    "noise": predict_noise,
    "score": predict_score,
    "v": predict_v,
    "velocity": predict_velocity,
    "edm": edm(),
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
}


def _solver(sampler: samplers.Sampler) -> targets.Solver:
    """One step of a sampler that uses neither memory nor key."""
    return lambda denoise, x, t, s: sampler.step(denoise, x, (), t, s, jax.random.key(0))[0]


SOLVERS = {"ddim": targets.euler, "heun": _solver(samplers.heun()), "heun_edm": _solver(samplers.heun(samplers.edm_trapezoid))}
SPACINGS: dict[str, tuple[Callable[[process.Schedule], process.Schedule], float | None]] = {  # pace, and where it ends
    "time": (lambda schedule: schedule, None),
    "logsnr": (process.uniform_logsnr, 0.0),
    "karras": (process.karras_spaced, 0.0),
    "quadratic": (process.quadratic, None),
}
PIXELS: dict[str, Callable[[float], likelihood.Pixels]] = {
    "logistic": lambda std: likelihood.logistic_pixels(),
    "binary": lambda std: likelihood.binary_pixels(),
    "gaussian": likelihood.gaussian_pixels,
}
