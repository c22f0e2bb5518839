"""Multistep samplers: one call a step, using the x0 of earlier steps. `lam` is `log(alpha / sigma)`, half of logsnr."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array

from jaxdiff.arguments import check
from jaxdiff.process import Level, transfer
from jaxdiff.samplers.exponential import exponential_moments, stride
from jaxdiff.samplers.loop import Sampler
from jaxdiff.samplers.singlestep import ddim_step


def dpmpp_2m() -> Sampler:
    """DPM-Solver++(2M): aims at `D + w (D - D_prev)`, `w = h / (2 h_prev)` in steps h of lam; order 2.

    Lu et al. (2022), "DPM-Solver++", algorithm 2. The first and the last step are DDIM's.
    """
    return dpmpp_2m_sde(eta=0.0)


def dpmpp_2m_sde(eta: float | Array = 1.0) -> Sampler:
    """SDE-DPM-Solver++(2M): the aim of `dpmpp_2m` with the fresh noise of `ddim(eta)`.

    Lu et al. (2022), "DPM-Solver++", section 5. An eta between 0 and 1 is that of DDIM, not of k-diffusion.

    Raises:
        ValueError: eta is a number outside [0, 1].
    """
    check("dpmpp_2m_sde", "0 <= eta <= 1", lambda eta: 0 <= eta <= 1, eta=eta)

    def step(denoise, x, memory, t, s, key):
        x0 = denoise(x, t)
        return ddim_step(x, _extrapolated(x0, memory, t, s), t, s, eta, key), (x0, t)

    return Sampler(_nothing_before, step)


def dpmpp_3m() -> Sampler:
    """DPM-Solver++(3M): aims at the mean over the step of the parabola through the last three x0; order 3.

    Lu et al. (2022), "DPM-Solver++", section 4, in multistep form. The second difference has the weight of the exact
    integral; published code has half of it, which gives order 2. The second step is that of `dpmpp_2m`.
    """

    def step(denoise, x, memory, t, s, key):
        x0 = denoise(x, t)
        (one, level_one), two = memory
        aim = _parabola_mean(stride(t, s), x0, one, -stride(level_one, t), two[0], -stride(two[1], t))
        return transfer(x, aim, t, s), ((x0, t), (one, level_one))

    return Sampler(lambda x: (_nothing_before(x), _nothing_before(x)), step)


def unipc() -> Sampler:
    """UniPC of order 2, B2(h): the step of `dpmpp_2m`, corrected at the next step by the x0 evaluated there.

    Zhao et al. (2023), algorithm 1 and 2 (UniP-2 and UniC-2 on x0), one call a step.
    """

    def step(denoise, x, memory, t, s, key):
        x0 = denoise(x, t)
        aim_before, (one, level_one), (two, level_two) = memory
        h = stride(level_one, t)
        corrected = _parabola_mean(h, one, x0, h, two, -stride(level_two, level_one))
        gain = t.alpha - level_one.alpha * t.sigma / level_one.sigma  # of the aim in transfer from level_one to t
        x = x + jnp.where(jnp.isfinite(h), gain, 0) * (corrected - aim_before)
        aim = _extrapolated(x0, (one, level_one), t, s)
        return transfer(x, aim, t, s), (aim, (x0, t), (one, level_one))

    return Sampler(lambda x: (jnp.zeros_like(x), _nothing_before(x), _nothing_before(x)), step)


def _nothing_before(x: Array) -> tuple[Array, Level]:
    """The memory before the first step: an x0 at pure noise, an infinite step away."""
    return jnp.zeros_like(x), Level(jnp.zeros((), x.dtype), jnp.ones((), x.dtype))


def _extrapolated(x0: Array, memory: tuple[Array, Level], t: Level, s: Level) -> Array:
    """`x0 + h / (2 h_prev) (x0 - x0_prev)`: x0 extrapolated to the middle of the step; x0 itself where h or h_prev is infinite."""
    before, level_before = memory
    h, h_prev = stride(t, s), stride(level_before, t)
    usable = jnp.isfinite(h) & jnp.isfinite(h_prev)
    weight = jnp.where(usable, jnp.where(usable, h, 0) / (2 * jnp.where(usable, h_prev, 1)), 0)
    return x0 + weight * (x0 - before)


def _parabola_mean(h: Array, x0: Array, one: Array, a: Array, two: Array, b: Array) -> Array:
    """Mean over lam in [0, h], weighted by `exp(lam)`, of the parabola through x0 at 0, one at a, two at b.

    Where b is infinite, the straight line's value at h / 2; where h or a is infinite, x0.
    """
    straight = jnp.isfinite(h) & jnp.isfinite(a)
    curved = straight & jnp.isfinite(b) & (a != b)
    h, a, b = jnp.where(straight, h, 1), jnp.where(straight, a, 1), jnp.where(curved, b, jnp.where(straight, 2 * a, 2))
    first, second = exponential_moments(h)
    slope = (one - x0) / a
    bend = ((two - x0) / b - slope) / (b - a)
    weight = jnp.where(curved, h * first, jnp.where(straight, h / 2, 0))
    return x0 + weight * slope + jnp.where(curved, h**2 * second - a * h * first, 0) * bend
