"""Samplers: `(init, step)` pairs, and the one loop over levels that runs them all.

`lam` below is `log(alpha / sigma)`, half of logsnr, in which the papers of DPM-Solver and UniPC measure a step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax import Array

from jaxdiff.denoiser import Denoiser
from jaxdiff.process import Level, transfer

Memory = Any  # what a multistep sampler remembers between steps: a pytree
Std = Callable[[Level, Level], Array]  # of the fresh noise in a step from t to s


class Sampler(NamedTuple):
    """Two pure functions: `init(x) -> memory` and `step(denoise, x, memory, t, s, key) -> (x, memory)` from t to s."""

    init: Callable[[Array], Memory]
    step: Callable[[Denoiser, Array, Memory, Level, Level, Array], tuple[Array, Memory]]


def sample(sampler: Sampler, denoise: Denoiser, x: Array, levels: Level, key: Array) -> Array:
    """The clean image x0 that the sampler reaches from x, a draw at `levels[0]`, along `levels [N + 1]`.

    x is `levels[0].sigma * noise` for levels that begin in pure noise. Pure: compiles under `jax.jit`, and memory does
    not grow with the number of steps.

    >>> import jax
    >>> from jaxdiff import cosine, ddim, grid, oracles, sample
    >>> cloud = oracles.gaussian(mean=[1.0, -1.0], std=0.1)
    >>> x = jax.random.normal(jax.random.key(0), (1000, 2))
    >>> sample(ddim(), oracles.denoiser(cloud), x, grid(cosine(), 50), jax.random.key(1)).mean(0).round(1).tolist()
    [1.0, -1.0]
    """
    (x, _), _ = _run(sampler, denoise, (x, sampler.init(x)), levels, key, jnp.arange(levels.sigma.size - 1))
    return x


def trajectory(sampler: Sampler, denoise: Denoiser, x: Array, levels: Level, key: Array, every: int = 1) -> Array:
    """The states `[N / every + 1, B, ...]` on the way of `sample`, from x itself to x0: all, or every k-th.

    Raises:
        ValueError: `every` does not divide the number of steps N.
    """
    num_steps = levels.sigma.size - 1
    if every < 1 or num_steps % every:
        raise ValueError(f"trajectory: every must divide the number of steps, {num_steps}, got {every}")

    def leg(carry, indices):
        carry, _ = _run(sampler, denoise, carry, levels, key, indices)
        return carry, carry[0]

    _, states = jax.lax.scan(leg, (x, sampler.init(x)), jnp.arange(num_steps).reshape(-1, every))
    return jnp.concatenate([x[None], states])


def _run(sampler, denoise, carry, levels, key, indices):
    chex.assert_rank((levels.alpha, levels.sigma), 1)

    def body(carry, index):
        x, memory = carry
        return sampler.step(denoise, x, memory, levels[index], levels[index + 1], jax.random.fold_in(key, index)), None

    return jax.lax.scan(body, carry, indices)


# --- one call of the denoiser a step, nothing remembered


def ddim(eta: float | Array = 0.0) -> Sampler:
    """Aims at D(x, t) with fresh noise of std `eta * posterior_std`: eta = 0 is the probability-flow ODE, eta = 1 DDPM.

    Song, Meng & Ermon (2021), eq. 12 and 16, for eta in [0, 1]. With eta = 0 it is Euler's rule on the ODE of Karras et
    al. (2022), eq. 4, and DPM-Solver++(1). A literal 0 draws no noise at all; a traced eta does not recompile.
    """
    return _stateless(lambda denoise, x, t, s, key: _renewed(x, denoise(x, t), t, s, eta, key))


def posterior_std(t: Level, s: Level) -> Array:
    """Std of q(x_s given x_t, x0): `sigma_s * sqrt(1 - snr_t / snr_s)`, DDPM's small variance (Ho et al. 2020, eq. 7)."""
    return s.sigma * _fresh_share(t, s)


def forward_std(t: Level, s: Level) -> Array:
    """Std of q(x_t given x_s): `sigma_t * sqrt(1 - snr_t / snr_s)`, DDPM's large variance, sqrt(beta)."""
    return t.sigma * _fresh_share(t, s)


def ddpm(std: Std = posterior_std) -> Sampler:
    """Ancestral sampling: the mean of q(x_s given x_t, x0) at x0 = D(x, t), and noise of `std(t, s)`.

    Ho et al. (2020), algorithm 2, which adds no noise in the last step. `ddpm()` is `ddim(eta=1)`;
    `ddpm(forward_std)` is the large-variance form, right for data of unit variance.
    """

    def step(denoise, x, t, s, key):
        kept = Level(s.alpha, s.sigma * s.sigma * t.alpha / (t.sigma * s.alpha))
        noise = jax.random.normal(key, x.shape, x.dtype)
        return transfer(x, denoise(x, t), t, kept) + jnp.where(s.sigma > 0, std(t, s), 0) * noise

    return _stateless(step)


def euler_maruyama() -> Sampler:
    """Euler-Maruyama on the reverse SDE, `x + f + g^2 score + g noise`; the last step goes to D(x, t).

    Song et al. (2021), eq. 6 and appendix D, for any list of levels: `f = log(alpha_s / alpha_t) x`, and
    `g^2 = alpha_s sigma_t^2 / alpha_t - alpha_t sigma_s^2 / alpha_s`, the SDE's integrals over the step to second order.
    Unstable where a step is long in logsnr; fails where alpha_t = 0.
    """

    def step(denoise, x, t, s, key):
        ratio = s.alpha / t.alpha
        x0, g2 = denoise(x, t), ratio * t.sigma**2 - s.sigma**2 / ratio
        score = (t.alpha * x0 - x) / t.sigma**2
        moved = (1 + jnp.log(ratio)) * x + g2 * score + jnp.sqrt(g2) * jax.random.normal(key, x.shape, x.dtype)
        return jnp.where(s.sigma > 0, moved, x0)

    return _stateless(step)


def full_std(t: Level, s: Level) -> Array:
    """All of the noise at s, `sigma_s`: nothing of x is kept but x0."""
    return s.sigma


def excess_std(t: Level, s: Level, sigma_min: float = 0.002) -> Array:
    """`sqrt(sigma_s^2 - (sigma_min alpha_s)^2)`: what is missing where x0 still has the noise sigma_min."""
    excess = s.sigma**2 - (sigma_min * s.alpha) ** 2
    return jnp.where(excess > 0, jnp.sqrt(jnp.where(excess > 0, excess, 1)), 0)


def consistency(noise: Std = excess_std) -> Sampler:
    """Multistep consistency sampling: `alpha_s * D(x, t) + noise(t, s) * z`, where D is a consistency function.

    Song et al. (2023), algorithm 1, with its sigma_min; `consistency(noise=full_std)` is that of latent consistency models
    (Luo et al. 2023, algorithm 3).
    """

    def step(denoise, x, t, s, key):
        return s.alpha * denoise(x, t) + noise(t, s) * jax.random.normal(key, x.shape, x.dtype)

    return _stateless(step)


# --- two calls a step


def heun() -> Sampler:
    """Aims at `D + w (D(euler, s) - D)`, `w = exp(lam_s - lam_t) / 2`: the trapezoidal rule, of order 2. Levels are `[]`.

    Karras et al. (2022), algorithm 1: one call in the last step, and where alpha_t = 0. It wants steps short in logsnr
    (`karras_spaced`).
    """

    def step(denoise, x, t, s, key):
        x0 = denoise(x, t)
        euler = transfer(x, x0, t, s)
        inner = (s.sigma > 0) & (t.alpha > 0)

        def corrected():
            t_, s_ = (jax.tree.map(lambda leaf: jnp.where(inner, leaf, 1), level) for level in (t, s))  # finite under vmap
            weight = t_.sigma * s_.alpha / (2 * t_.alpha * s_.sigma)
            return transfer(x, x0 + weight * (denoise(euler, s_) - x0), t_, s_)

        return jax.lax.cond(inner, corrected, lambda: euler)

    return _stateless(step)


# --- multistep: one call a step, and the clean images of earlier steps


def dpmpp_2m() -> Sampler:
    """DPM-Solver++(2M): aims at `D + w (D - D_prev)`, `w = h / (2 h_prev)` in steps h of lam; order 2.

    Lu et al. (2022), "DPM-Solver++", algorithm 2. The first step and the last one are DDIM's.
    """
    return dpmpp_2m_sde(eta=0.0)


def dpmpp_2m_sde(eta: float | Array = 1.0) -> Sampler:
    """SDE-DPM-Solver++(2M): the aim of `dpmpp_2m` with the fresh noise of `ddim(eta)`.

    Lu et al. (2022), "DPM-Solver++", section 5. Between 0 and 1 eta is that of DDIM, not k-diffusion's.
    """

    def step(denoise, x, memory, t, s, key):
        x0 = denoise(x, t)
        return _renewed(x, _extrapolated(x0, memory, t, s), t, s, eta, key), (x0, t)

    return Sampler(_nothing_before, step)


def dpmpp_3m() -> Sampler:
    """DPM-Solver++(3M): aims at the mean over the step of the parabola through the last three clean images; order 3.

    Lu et al. (2022), "DPM-Solver++", section 4, in multistep form. The weight of the second difference is that of the
    exact integral; published code has half of it, which is of order 2. The second step is that of `dpmpp_2m`.
    """

    def step(denoise, x, memory, t, s, key):
        x0 = denoise(x, t)
        (one, level_one), two = memory
        aim = _parabola_mean(_stride(t, s), x0, one, -_stride(level_one, t), two[0], -_stride(two[1], t))
        return transfer(x, aim, t, s), ((x0, t), (one, level_one))

    return Sampler(lambda x: (_nothing_before(x), _nothing_before(x)), step)


def unipc() -> Sampler:
    """UniPC of order 2, B2(h): the step of `dpmpp_2m`, mended at the next one by the clean image found there.

    Zhao et al. (2023), algorithm 1 and 2 (UniP-2 and UniC-2 on clean images), one call a step.
    """

    def step(denoise, x, memory, t, s, key):
        x0 = denoise(x, t)
        aim_before, (one, level_one), (two, level_two) = memory
        h = _stride(level_one, t)
        better = _parabola_mean(h, one, x0, h, two, -_stride(level_two, level_one))
        gain = t.alpha - level_one.alpha * t.sigma / level_one.sigma  # of the aim in transfer from level_one to t
        x = x + jnp.where(jnp.isfinite(h), gain, 0) * (better - aim_before)
        aim = _extrapolated(x0, (one, level_one), t, s)
        return transfer(x, aim, t, s), (aim, (x0, t), (one, level_one))

    return Sampler(lambda x: (jnp.zeros_like(x), _nothing_before(x), _nothing_before(x)), step)


# --- samplers of samplers


def churn(
    sampler: Sampler,
    gamma: float | Array = 2**0.5 - 1,
    *,
    sigma_min: float = 0.0,
    sigma_max: float = jnp.inf,
    noise: float = 1.0,
    size: Callable[[Array, Array], Array] = jnp.hypot,
) -> Sampler:
    """The sampler, each step begun from a level raised by fresh noise, where `sigma / alpha` grows by `1 + gamma`.

    Karras et al. (2022), algorithm 2: gamma = min(S_churn / N, sqrt(2) - 1), sigma_min and sigma_max (of sigma / alpha)
    S_tmin and S_tmax, noise S_noise. `size(alpha, sigma)` is what the raise keeps, as in `process.shifted`: hypot on
    variance-preserving levels, `lambda alpha, sigma: alpha` on EDM's own, `jnp.add` on straight ones.
    """

    def step(denoise, x, memory, t, s, key):
        noise_key, step_key = jax.random.split(key)
        ratio = t.sigma / t.alpha
        raised = t.sigma * (1 + jnp.where((sigma_min <= ratio) & (ratio <= sigma_max), gamma, 0))
        fresh = noise * jnp.sqrt(raised**2 - t.sigma**2) * jax.random.normal(noise_key, x.shape, x.dtype)
        scale = size(t.alpha, t.sigma) / size(t.alpha, raised)
        return sampler.step(denoise, scale * (x + fresh), memory, Level(scale * t.alpha, scale * raised), s, step_key)

    return Sampler(sampler.init, step)


def watched(sampler: Sampler, callback: Callable[[Array, Array], None]) -> Sampler:
    """The sampler, which calls `callback(number, x)` on the host after each step, number from 1: progress, previews.

    A sampler that is not watched is compiled without it. Calls may arrive late, and under `jax.vmap` one an element.
    """

    def step(denoise, x, memory, t, s, key):
        number, memory = memory
        x, memory = sampler.step(denoise, x, memory, t, s, key)
        jax.debug.callback(callback, number + 1, x)
        return x, (number + 1, memory)

    return Sampler(lambda x: (jnp.zeros((), jnp.int32), sampler.init(x)), step)


# --- the shared pieces


def _renewed(x: Array, x0: Array, t: Level, s: Level, eta: float | Array, key: Array) -> Array:
    """`transfer` with fresh noise of std `eta * posterior_std` in the place of as much of the kept."""
    if isinstance(eta, int | float) and eta == 0:
        return transfer(x, x0, t, s)
    fresh = eta * _fresh_share(t, s)
    rest = 1 - fresh**2
    kept = Level(s.alpha, s.sigma * jnp.where(rest > 0, jnp.sqrt(jnp.where(rest > 0, rest, 1)), 0))  # grad at 0 is finite
    return transfer(x, x0, t, kept) + s.sigma * fresh * jax.random.normal(key, x.shape, x.dtype)


def _fresh_share(t: Level, s: Level) -> Array:
    """`sqrt(1 - snr_t / snr_s)`, between 0 (s = t) and 1 (s is clean)."""
    ratio = t.alpha * s.sigma / (t.sigma * s.alpha)
    return jnp.sqrt((1 - ratio) * (1 + ratio))


def _stride(t: Level, s: Level) -> Array:
    """`lam_s - lam_t`; infinite from pure noise (alpha = 0), to clean (sigma = 0), and between equal levels."""
    ratio = s.alpha * t.sigma / jnp.where(t.alpha * s.sigma > 0, t.alpha * s.sigma, jnp.inf)
    finite = (ratio > 0) & (ratio != 1)
    return jnp.where(finite, jnp.log(jnp.where(finite, ratio, 1)), jnp.inf)


def _nothing_before(x: Array) -> tuple[Array, Level]:
    """The memory of a clean image that there is not: at pure noise, an infinite step away."""
    return jnp.zeros_like(x), Level(jnp.zeros((), x.dtype), jnp.ones((), x.dtype))


def _extrapolated(x0: Array, memory: tuple[Array, Level], t: Level, s: Level) -> Array:
    """`x0 + h / (2 h_prev) (x0 - x0_prev)`: the clean image in the middle of the step; x0 where h or h_prev is infinite."""
    before, level_before = memory
    h, h_prev = _stride(t, s), _stride(level_before, t)
    usable = jnp.isfinite(h) & jnp.isfinite(h_prev)
    weight = jnp.where(usable, jnp.where(usable, h, 0) / (2 * jnp.where(usable, h_prev, 1)), 0)
    return x0 + weight * (x0 - before)


def _parabola_mean(h: Array, x0: Array, one: Array, a: Array, two: Array, b: Array) -> Array:
    """Mean over lam in [0, h], weighted by `exp(lam)`, of the parabola through x0 at 0, one at a, two at b.

    Where b is infinite the value of the straight line at h / 2, and x0 where h or a is infinite.
    """
    straight = jnp.isfinite(h) & jnp.isfinite(a)
    curved = straight & jnp.isfinite(b)
    h, a, b = jnp.where(straight, h, 1), jnp.where(straight, a, 1), jnp.where(curved, b, jnp.where(straight, 2 * a, 2))
    first, second = _exponential_moments(h)
    slope = (one - x0) / a
    bend = ((two - x0) / b - slope) / (b - a)
    weight = jnp.where(curved, h * first, jnp.where(straight, h / 2, 0))
    return x0 + weight * slope + jnp.where(curved, h**2 * second - a * h * first, 0) * bend


def _exponential_moments(h: Array) -> tuple[Array, Array]:
    """Means of `u` and `u^2` over u in [0, 1] weighted by `exp(h u)`; by their series where h is small."""
    small = jnp.abs(h) < 0.1
    safe = jnp.where(small, 1, h)
    whole = -1 / jnp.expm1(-safe)
    first = whole - 1 / safe
    first_series = 1 / 2 + h / 12 - h**3 / 720 + h**5 / 30240
    second_series = 1 / 3 + h / 12 + h**2 / 360 - h**3 / 720 - h**4 / 15120 + h**5 / 30240
    return jnp.where(small, first_series, first), jnp.where(small, second_series, whole - 2 * first / safe)


def _stateless(step) -> Sampler:
    """A sampler that remembers nothing, from `step(denoise, x, t, s, key) -> x`."""

    def with_memory(denoise, x, memory, t, s, key):
        return step(denoise, x, t, s, key), memory

    return Sampler(init=lambda x: (), step=with_memory)
