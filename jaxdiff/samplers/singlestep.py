"""Samplers without memory between steps."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from jaxdiff.arguments import check
from jaxdiff.process import Level, Std, posterior_std, transfer
from jaxdiff.process.levels import fresh_share, safe_sqrt
from jaxdiff.samplers.exponential import exponential_moments
from jaxdiff.samplers.loop import Sampler, stateless


def ddim(eta: float | Array = 0.0) -> Sampler:
    """Aims at D(x, t) with fresh noise of std `eta * posterior_std`: eta = 0 is the probability-flow ODE, eta = 1 DDPM.

    Song, Meng & Ermon (2021), eq. 12 and 16, for eta in [0, 1]. With eta = 0 it is Euler's rule on the ODE of Karras et
    al. (2022), eq. 4, and DPM-Solver++(1). A literal 0 draws no noise; a traced eta does not recompile.

    Raises:
        ValueError: eta is a number outside [0, 1].
    """
    check("ddim", "0 <= eta <= 1", lambda eta: 0 <= eta <= 1, eta=eta)
    return stateless(lambda denoise, x, t, s, key: ddim_step(x, denoise(x, t), t, s, eta, key))


def ddpm(std: Std = posterior_std) -> Sampler:
    """Ancestral sampling: the mean of q(x_s given x_t, x0) at x0 = D(x, t), and noise of `std(t, s)`.

    Ho et al. (2020), algorithm 2, which adds no noise in the last step. `ddpm()` is `ddim(eta=1)`;
    `ddpm(forward_std)` is the large-variance form, exact for data of unit variance.
    """

    def step(denoise, x, t, s, key):
        kept = Level(s.alpha, s.sigma * s.sigma * t.alpha / (t.sigma * s.alpha))
        noise = jax.random.normal(key, x.shape, x.dtype)
        return transfer(x, denoise(x, t), t, kept) + jnp.where(s.sigma > 0, std(t, s), 0) * noise

    return stateless(step)


def ddpm_learned() -> Sampler:
    """`ddpm` with noise of the std that a reverse kernel `(x, t, s) -> (x0, std)` returns, in the place of a denoiser.

    Nichol & Dhariwal (2021), section 3.1; `with_variance` makes the kernel of a network. One call a step.
    """

    def step(kernel, x, t, s, key):
        x0, std = kernel(x, t, s)
        return ddpm(lambda t, s: std).step(lambda x, t: x0, x, (), t, s, key)[0]

    return stateless(step)


def euler_maruyama() -> Sampler:
    """Euler-Maruyama on the reverse SDE, `x + f + g^2 score + g noise`; the last step goes to D(x, t).

    Song et al. (2021), eq. 6 and section 4.1, on any list of levels: `f = log(alpha_s / alpha_t) x`, and
    `g^2 = alpha_s sigma_t^2 / alpha_t - alpha_t sigma_s^2 / alpha_s`, the SDE's integrals over the step to second order.
    Unstable where a step is long in logsnr; fails where alpha_t = 0.
    """

    def step(denoise, x, t, s, key):
        ratio, x0 = s.alpha / t.alpha, denoise(x, t)
        g2 = ratio * t.sigma**2 - s.sigma**2 / ratio
        pull = g2 / t.sigma**2  # g^2 score = pull (alpha_t x0 - x)
        mean = (1 + jnp.log(ratio) - pull) * x + pull * t.alpha * x0
        moved = mean + jnp.sqrt(g2) * jax.random.normal(key, x.shape, x.dtype)
        return jnp.where(s.sigma > 0, moved, x0)

    return stateless(step)


def full_std(t: Level, s: Level) -> Array:
    """All of the noise at s, `sigma_s`: x enters through x0 alone."""
    return s.sigma


def excess_std(t: Level, s: Level, sigma_min: float = 0.002) -> Array:
    """`sqrt(sigma_s^2 - (sigma_min alpha_s)^2)`: the noise that is missing at s where x0 has noise of std sigma_min already."""
    return safe_sqrt(s.sigma**2 - (sigma_min * s.alpha) ** 2)


def consistency(noise: Std = full_std) -> Sampler:
    """Multistep consistency sampling: `alpha_s * D(x, t) + noise(t, s) * z`, where D is a consistency function.

    Luo et al. (2023), algorithm 3: right for consistency functions that are the identity at sigma = 0, as all that this library
    trains. Those of Song et al. (2023) are the identity at sigma_min, so that their x0 has that much noise: their algorithm 1
    is `consistency(excess_std)`.
    """

    def step(denoise, x, t, s, key):
        return s.alpha * denoise(x, t) + noise(t, s) * jax.random.normal(key, x.shape, x.dtype)

    return stateless(step)


def flow_map(gamma: float | Array = 0.0) -> Sampler:
    """Jumps along a flow map: `transfer(x, D(x, t, s'), t, s')` with `sigma_s' = sqrt(1 - gamma^2) sigma_s`, then noise up to s.

    `sample` is given an average denoiser, `(x, t, s) -> x0`. gamma = 0 follows the flow (Geng et al. 2025, algorithm 2), gamma = 1
    is `consistency()`; the gamma-sampling of Kim et al. (2023).

    Raises:
        ValueError: gamma is a number outside [0, 1].
    """
    check("flow_map", "0 <= gamma <= 1", lambda gamma: 0 <= gamma <= 1, gamma=gamma)

    def step(denoise, x, t, s, key):
        kept = Level(s.alpha, s.sigma * safe_sqrt(jnp.asarray(1 - gamma**2, x.dtype)))
        return transfer(x, denoise(x, t, kept), t, kept) + gamma * s.sigma * jax.random.normal(key, x.shape, x.dtype)

    return stateless(step)


def overshoot(levels: Level) -> Sampler:
    """Steps to the level after next of its list, then noises back to the next: the stochastic sampler of Meng et al. (2023).

    Their section 3.2, for a student of half as many steps that was trained at all of `levels` (`objectives.progressive` with
    `every_level`). It counts its steps, so `sample` must be given the same `levels [N + 1]` from their beginning.
    """
    last = levels.sigma.size - 1

    def step(denoise, x, number, t, s, key):
        beyond = jax.tree.map(lambda leaf: jnp.asarray(leaf, x.dtype)[jnp.minimum(number + 2, last)], levels)
        x = transfer(x, denoise(x, t), t, beyond)
        ratio = s.alpha / beyond.alpha
        std = safe_sqrt(s.sigma**2 - (ratio * beyond.sigma) ** 2)
        return ratio * x + std * jax.random.normal(key, x.shape, x.dtype), number + 1

    return Sampler(lambda x: jnp.zeros((), jnp.int32), step)


def exponential_trapezoid(t: Level, s: Level) -> Array:
    """`(h - 1 + exp(-h)) / (h (1 - exp(-h)))` with `h = lam_s - lam_t`, half the step in logsnr: between 1/2 and 1.

    The mean over the step, weighted by `exp(lam)`, of a straight line in lam from 0 at t to 1 at s: the exponential integrator
    ETD2RK of Cox & Matthews (2002), on x0.
    """
    return exponential_moments(jnp.log(s.alpha / s.sigma) - jnp.log(t.alpha / t.sigma))[0]


def edm_trapezoid(t: Level, s: Level) -> Array:
    """`exp((logsnr_s - logsnr_t) / 2) / 2`: the trapezoidal rule in sigma / alpha of Karras et al. (2022), algorithm 1."""
    return t.sigma * s.alpha / (2 * t.alpha * s.sigma)


def heun(rule: Callable[[Level, Level], Array] = exponential_trapezoid) -> Sampler:
    """Aims at `D + w (D(euler, s) - D)`, `w = rule(t, s)`: the trapezoidal rule, of order 2, in 2 N - 1 calls for N steps.

    Karras et al. (2022), algorithm 1, is `heun(edm_trapezoid)`, for levels of `karras_spaced`: its weight has no bound in a step
    that is long in logsnr, such as the first ones of cosine and rectified flow, where its errors are tens of times DDIM's. The
    default weight is at most 1. Euler's rule in the last step, and where alpha_t = 0; there `step` makes the second call and
    discards it, as a branch costs more than it saves, and `last` does not make it.
    """

    def step(denoise, x, t, s, key):
        x0 = denoise(x, t)
        euler = transfer(x, x0, t, s)
        inner = (s.sigma > 0) & (t.alpha > 0)
        t, s = (jax.tree.map(lambda leaf: jnp.where(inner, leaf, 1), level) for level in (t, s))  # finite in the other steps
        return jnp.where(inner, transfer(x, x0 + rule(t, s) * (denoise(euler, s) - x0), t, s), euler)

    return stateless(step)._replace(last=ddim().step)


def ddim_step(x: Array, x0: Array, t: Level, s: Level, eta: float | Array, key: Array) -> Array:
    """`transfer` with fresh noise of std `eta * posterior_std` replacing that much of the implied noise."""
    if isinstance(eta, int | float) and eta == 0:
        return transfer(x, x0, t, s)
    fresh = eta * fresh_share(t, s)
    kept = Level(s.alpha, s.sigma * safe_sqrt(1 - fresh**2))
    return transfer(x, x0, t, kept) + s.sigma * fresh * jax.random.normal(key, x.shape, x.dtype)
