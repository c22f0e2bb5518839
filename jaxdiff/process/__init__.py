"""The forward process `x = alpha * x0 + sigma * noise`: levels, schedules, and moving between levels.

Time exists only inside a schedule, a function from `t` in [0, 1] (0 is clean) to a `Level`.
"""

from jaxdiff.process.betas import cosine_betas, linear_betas, scaled_linear_betas, timestep_of
from jaxdiff.process.grids import (
    TIMESTEPS,
    from_timesteps,
    grid,
    karras_spaced,
    level_and_rate,
    linear_zero_snr,
    quadratic,
    respaced,
    time_of,
    uniform_logsnr,
    zero_terminal_snr,
)
from jaxdiff.process.levels import Level, Schedule, Std, diffuse, forward_std, from_logsnr, implied_x0, posterior_std, transfer
from jaxdiff.process.schedules import cosine, from_betas, karras, linear, linear_logsnr, lognormal, rectified_flow, shifted

__all__ = [
    "Level",
    "Schedule",
    "Std",
    "TIMESTEPS",
    "cosine",
    "cosine_betas",
    "diffuse",
    "forward_std",
    "from_betas",
    "from_logsnr",
    "from_timesteps",
    "grid",
    "implied_x0",
    "karras",
    "karras_spaced",
    "linear",
    "linear_betas",
    "linear_logsnr",
    "linear_zero_snr",
    "lognormal",
    "level_and_rate",
    "posterior_std",
    "quadratic",
    "rectified_flow",
    "respaced",
    "scaled_linear_betas",
    "shifted",
    "time_of",
    "timestep_of",
    "transfer",
    "uniform_logsnr",
    "zero_terminal_snr",
]
