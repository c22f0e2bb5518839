"""The loss: a student denoiser regresses onto a target denoiser. Weights, distances, draws of times.

Losses are computed in x0 space. As `x0_hat - x0 = out * (F - F*)`, the plain squared error of a network's own output is the
x0 error with the weight `1 / out^2`, given here for every parameterization.
"""

from __future__ import annotations

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
from jax import Array

from jaxdiff.arguments import check, is_one_key
from jaxdiff.denoiser import Denoiser
from jaxdiff.process import Level, Schedule, diffuse, level_and_rate, time_of

Weight = Callable[[Level], Array]
Distance = Callable[[Array, Array], Array]  # two images [B, ...] -> [B]


def squared_error(a: Array, b: Array) -> Array:
    """Mean over an example's values of `(a - b)^2`, `[B]`."""
    chex.assert_equal_shape((a, b))
    return jnp.mean((a - b) ** 2, axis=tuple(range(1, a.ndim)))


def pseudo_huber(c: float = 0.00054) -> Distance:
    """`sqrt(mean((a - b)^2) + c^2) - c`, `[B]`: quadratic where small, linear where large.

    Song & Dhariwal (2023), section 3.3, divided by the root of the number of values, with which they scale c.
    """
    check("pseudo_huber", "c > 0", lambda c: c > 0, c=c)
    return lambda a, b: jnp.sqrt(squared_error(a, b) + c**2) - c


def adaptive_error(power: float = 1.0, c: float = 1e-3) -> Distance:
    """`e / stop_gradient(e + c)^power` of the squared error e, `[B]`: every example's gradient has about the same size.

    Geng et al. (2025), section 4.3, with the mean over an example's values where they take the sum: their c is this times their
    number. On errors of x0; at power 1 those of another prediction differ in c alone, so weigh levels by `x0_weight`.
    """
    check("adaptive_error", "0 <= power <= 1 and c > 0", lambda power, c: 0 <= power <= 1 and c > 0, power=power, c=c)

    def distance(a: Array, b: Array) -> Array:
        error = squared_error(a, b)
        return error / jax.lax.stop_gradient(error + c) ** power

    return distance


def regression_loss(
    student: Denoiser,
    target: Denoiser,
    x0: Array,
    level: Level,
    key: Array,
    weight: Weight,
    distance: Distance = squared_error,
) -> Array:
    """`weight(level) * distance(student(x, level), stop_gradient(target(x, level)))` at x = alpha x0 + sigma noise, `[B]`.

    Training methods differ in the target. `key` is one key, or `[B]` keys so that an example's noise
    does not depend on the batch around it.
    """
    chex.assert_rank(level.alpha, {0, x0.ndim})
    x = diffuse(x0, noise_like(key, x0), level)
    error = distance(student(x, level), jax.lax.stop_gradient(target(x, level)))
    return jnp.broadcast_to(jnp.ravel(weight(level)), error.shape) * error


def noise_like(key: Array, x: Array) -> Array:
    """Standard normal noise of x's shape and dtype, from one key or from `[B]` keys, one an example."""
    if is_one_key(key):
        return jax.random.normal(key, x.shape, x.dtype)
    return jax.vmap(lambda k: jax.random.normal(k, x.shape[1:], x.dtype))(key)


def spread_times(key: Array, index: Array) -> Array:
    """Times in [0, 1], `frac(u + index * golden ratio)` with one uniform u: each uniform, together evenly spread, `[B]`.

    The low-discrepancy sampler of Kingma et al. (2021), appendix I.1, with the golden ratio instead of 1 / B, so that
    an example's time depends only on its index in the batch, not on how the batch is split over devices.
    """
    golden = jnp.uint32(2654435769)  # 2^32 / ((1 + sqrt(5)) / 2): exact arithmetic modulo 1
    bits = jax.random.bits(key, (), jnp.uint32) + index.astype(jnp.uint32) * golden
    return bits.astype(jnp.float32) * 2.0**-32


def x0_weight(level: Level) -> Array:
    """1: the plain error of a network that predicts x0."""
    return jnp.ones_like(level.sigma)


def noise_weight(level: Level) -> Array:
    """`snr`: the plain error of predicted noise, DDPM's simple loss (Ho et al. 2020, eq. 14)."""
    return level.alpha**2 / level.sigma**2


def score_weight(level: Level) -> Array:
    """`alpha^2 / sigma^4`: the plain error of a predicted score; `noise_weight` is usually the better choice."""
    return level.alpha**2 / level.sigma**4


def v_weight(level: Level) -> Array:
    """`(alpha^2 + sigma^2)^2 / sigma^2`, on variance-preserving schedules `1 + snr`: the plain error of predicted v."""
    return (level.alpha**2 + level.sigma**2) ** 2 / level.sigma**2


def velocity_weight(level: Level) -> Array:
    """`(alpha + sigma)^2 / sigma^2`: the plain error of the velocity, flow matching's loss (Lipman et al. 2022)."""
    return (level.alpha + level.sigma) ** 2 / level.sigma**2


def edm_weight(sigma_data: float = 0.5) -> Weight:
    """`snr + 1 / sigma_data^2`: the plain error of EDM's network (Karras et al. 2022, table 1)."""
    check("edm_weight", "sigma_data > 0", lambda data: data > 0, sigma_data=sigma_data)
    return lambda level: noise_weight(level) + 1 / sigma_data**2


def elbo_weight(schedule: Schedule) -> Weight:
    """`-(d logsnr / dt) * snr / 2` at the schedule's own times: the mean loss is the variational bound, in nats per value.

    Kingma et al. (2021), section 5: `likelihood.continuous_bound` without its prior and reconstruction terms, which do
    not depend on the network. It is 0 where the schedule is constant.
    """

    def weight(level: Level) -> Array:
        t = time_of(schedule, lambda level: level.logsnr, level.logsnr)
        return level_and_rate(schedule, t)[1] * noise_weight(level) / 2

    return weight


def truncated_snr(level: Level) -> Array:
    """`max(snr, 1)` (Salimans & Ho 2022, section 4)."""
    return jnp.maximum(noise_weight(level), 1)


def min_snr(gamma: float = 5.0) -> Weight:
    """`min(snr, gamma)` (Hang et al. 2023, section 3.4)."""
    check("min_snr", "gamma > 0", lambda gamma: gamma > 0, gamma=gamma)
    return lambda level: jnp.minimum(noise_weight(level), gamma)
