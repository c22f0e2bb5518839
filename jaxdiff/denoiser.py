"""Denoisers, `(x, level) -> x0`, and the parameterizations that turn a network into one.

Samplers, losses, guidance and distillation use a network through its denoiser only. One extension of it is told where the step
goes, `(x, t, s)`: the average denoiser of a flow map.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from jaxdiff.arguments import check
from jaxdiff.process import Level
from jaxdiff.process.levels import fresh_share

Denoiser = Callable[[Array, Level], Array]
AverageDenoiser = Callable[[Array, Level, Level], Array]  # (x, t, s) -> the x0 with which `transfer` goes along the flow to s
Network = Callable[[Array, Array], Array]  # (scaled x [B, ...], logsnr [B]) -> output [B, ...]
ReverseKernel = Callable[[Array, Level, Level], tuple[Array, Array]]  # (x, t, s) -> x0, std of the fresh noise in a step to s


class Coefficients(NamedTuple):
    """`x0 = skip * x + out * network(scale * x, logsnr)`: how x0 follows from a network's output."""

    skip: Array
    out: Array
    scale: Array


Parameterization = Callable[[Level], Coefficients]
JumpNetwork = Callable[[Array, Array, Array], Array]  # (scaled x, logsnr of t [B], logsnr of s [B]) -> output
CLEANEST = 15.0  # logsnr of s that a network is told where s has less noise, or none: the end of the schedules


def predict_x0(level: Level) -> Coefficients:
    """The network predicts x0: `x0 = F`."""
    one = jnp.ones_like(level.sigma)
    return Coefficients(jnp.zeros_like(one), one, one)


def predict_noise(level: Level) -> Coefficients:
    """The network predicts the noise: `x0 = (x - sigma F) / alpha` (Ho et al. 2020, eq. 15). Fails where alpha = 0."""
    return Coefficients(1 / level.alpha, -level.sigma / level.alpha, jnp.ones_like(level.sigma))


def predict_score(level: Level) -> Coefficients:
    """The network predicts grad log q(x): `x0 = (x + sigma^2 F) / alpha`, Tweedie's formula. Fails where alpha = 0."""
    return Coefficients(1 / level.alpha, level.sigma**2 / level.alpha, jnp.ones_like(level.sigma))


def predict_v(level: Level) -> Coefficients:
    """The network predicts `v = alpha noise - sigma x0`: `x0 = (alpha x - sigma F) / (alpha^2 + sigma^2)`.

    Salimans & Ho (2022), section 4; the divisor is 1 on their variance-preserving schedules.
    """
    total = level.alpha**2 + level.sigma**2
    return Coefficients(level.alpha / total, -level.sigma / total, jnp.ones_like(level.sigma))


def predict_velocity(level: Level) -> Coefficients:
    """The network predicts `noise - x0`, the velocity of rectified flow: `x0 = (x - sigma F) / (alpha + sigma)`.

    Liu et al. (2022), eq. 1, with time from data to noise; the divisor is 1 on their straight path.
    """
    total = level.alpha + level.sigma
    return Coefficients(1 / total, -level.sigma / total, jnp.ones_like(level.sigma))


def edm(sigma_data: float = 0.5, sigma_min: float = 0.0) -> Parameterization:
    """The preconditioning of Karras et al. (2022), table 1, in (alpha, sigma), for any schedule.

    With `sigma_min` it is the boundary condition of a consistency model, x0 = x / alpha at `sigma = sigma_min * alpha`
    (Song et al. 2023, appendix C).
    """
    _check_edm("edm", sigma_data, sigma_min)

    def coefficients(level: Level) -> Coefficients:
        noise = level.sigma - sigma_min * level.alpha
        size = jnp.sqrt(level.sigma**2 + (sigma_data * level.alpha) ** 2)
        skip = level.alpha * sigma_data**2 / (noise**2 + (sigma_data * level.alpha) ** 2)
        return Coefficients(skip, sigma_data * noise / size, 1 / size)

    return coefficients


def bounded(parameterization: Parameterization, sigma_min: float = 0.0, sigma_data: float = 0.5) -> Parameterization:
    """The parameterization blended with `x / alpha`, its value at `sigma = sigma_min * alpha`: for consistency models.

    `x0 = skip * x + rest * x0_before` with `edm`'s skip and `rest = noise / sqrt(noise^2 + sigma_data^2)`,
    `noise = sigma / alpha - sigma_min` (Luo et al. 2023, eq. 9; Song et al. 2023, eq. 25 for edm). Predicted v, velocity, noise
    and edm do not need it where sigma_min = 0: they already are `x / alpha` at sigma = 0.
    """
    _check_edm("bounded", sigma_data, sigma_min)

    def coefficients(level: Level) -> Coefficients:
        skip, out, scale = parameterization(level)
        noise = level.sigma - sigma_min * level.alpha
        size2 = noise**2 + (sigma_data * level.alpha) ** 2
        rest = noise / jnp.sqrt(size2)
        return Coefficients(level.alpha * sigma_data**2 / size2 + rest * skip, rest * out, scale)

    return coefficients


def _check_edm(where: str, sigma_data: float, sigma_min: float) -> None:
    rule = "sigma_data > 0 and sigma_min >= 0"
    check(where, rule, lambda data, least: data > 0 and least >= 0, sigma_data=sigma_data, sigma_min=sigma_min)


def denoiser(network: Network, parameterization: Parameterization) -> Denoiser:
    """The denoiser `skip * x + out * network(scale * x, logsnr)` of a network from any framework.

    The sum is computed in x's dtype, whatever dtype the network uses.

    Raises:
        ValueError: the network's output has another shape than x, for example twice the channels, or x has no batch axis.

    >>> import jax.numpy as jnp
    >>> from jaxdiff import cosine, denoiser, predict_v
    >>> denoise = denoiser(lambda x, logsnr: jnp.zeros_like(x), predict_v)
    >>> denoise(jnp.ones((2, 8, 8, 1)), cosine()(0.5)).shape
    (2, 8, 8, 1)
    """

    def denoise(x: Array, level: Level) -> Array:
        skip, out, scale = parameterization(level)
        output = _output(network, scale, x, level)
        if output.shape != x.shape:
            more = "; of a network that learns the variance too, give the first half of the channels, or see with_variance"
            twice = output.shape == (*x.shape[:-1], 2 * x.shape[-1])
            raise ValueError(f"denoiser: the network returned shape {output.shape} for x of shape {x.shape}{more * twice}")
        return skip * x + out * output.astype(x.dtype)

    return denoise


def average_denoiser(network: JumpNetwork, parameterization: Parameterization) -> AverageDenoiser:
    """`skip * x + out * network(scale * x, logsnr_t, logsnr_s)`: the denoiser of a network that is told where it jumps to.

    It is the x0 of the step from t to s: `transfer(x, x0, t, s)` is the probability flow's x at s, a flow map (Boffi et al. 2024).
    For predicted velocity on straight levels the network is the average velocity of MeanFlow (Geng et al. 2025, eq. 3). At s = t
    it is the denoiser, for clean s a consistency function.
    """

    def average(x: Array, t: Level, s: Level) -> Array:
        until = jnp.broadcast_to(jnp.ravel(jnp.minimum(s.logsnr, CLEANEST)), x.shape[:1])
        return denoiser(lambda scaled, logsnr: network(scaled, logsnr, until), parameterization)(x, t)

    return average


def towards(average: AverageDenoiser, s: Level) -> Denoiser:
    """The denoiser of jumps to one level s."""
    return lambda x, t: average(x, t, s)


def instantaneous(average: AverageDenoiser) -> Denoiser:
    """The denoiser of jumps of no length, which is that of the data."""
    return lambda x, t: average(x, t, t)


def with_variance(network: Network, parameterization: Parameterization) -> ReverseKernel:
    """The kernel of a network that learned the variance too: x0 by the first half of its channels, by v in the second the std.

    `log std = f log forward_std + (1 - f) log posterior_std`, `f = (v + 1) / 2`, of each value of x, between the small variance
    of DDPM (v = -1) and the large one (v = 1): Nichol & Dhariwal (2021), eq. 15, as ADM and DiT are trained. The sampler
    `ddpm_learned` calls it once a step; `carried` guides and clips its x0.

    Raises:
        ValueError: the network's output has not twice the channels of x, or x has no batch axis.
    """

    def kernel(x: Array, t: Level, s: Level) -> tuple[Array, Array]:
        skip, out, scale = parameterization(t)
        output = _output(network, scale, x, t)
        if output.shape != (*x.shape[:-1], 2 * x.shape[-1]):
            raise ValueError(
                f"with_variance: the network returned shape {output.shape} for x of shape {x.shape}, not twice its channels"
            )
        first, v = jnp.split(output.astype(x.dtype), 2, axis=-1)
        share = (v + 1) / 2
        return skip * x + out * first, fresh_share(t, s) * t.sigma**share * s.sigma ** (1 - share)

    return kernel


def carried(transform: Callable[[Denoiser], Denoiser], kernel: ReverseKernel) -> ReverseKernel:
    """The kernel with its x0 changed as a denoiser is changed, without a second call of it, and with its std as it is.

    For `clip`, and for guidance: `carried(lambda denoise: guide(denoise, reference, scale), kernel)` takes the std of the labelled
    call, as ADM and DiT are sampled. The transform must call its denoiser at the kernel's own x and level alone, as all of this
    library's do. `classifier_guide` moves the mean of the step by `scale * (alpha_s / alpha_t) * forward_std^2 * grad`, where
    Dhariwal & Nichol (2021), algorithm 1, take the learned variance: the two agree in small steps.
    """

    def changed(x: Array, t: Level, s: Level) -> tuple[Array, Array]:
        x0, std = kernel(x, t, s)
        return transform(lambda x, level: x0)(x, t), std

    return changed


def _output(network: Network, scale: Array, x: Array, level: Level) -> Array:
    if not x.ndim:
        raise ValueError("denoiser: x must have a batch axis, got a number")
    return network(scale * x, jnp.broadcast_to(jnp.ravel(level.logsnr), x.shape[:1]))


def clip(denoise: Denoiser, low: float = -1.0, high: float = 1.0) -> Denoiser:
    """The denoiser with x0 clipped to the range of the data, as DDPM samples images (Ho et al. 2020)."""
    check("clip", "low < high", lambda low, high: low < high, low=low, high=high)
    return lambda x, level: jnp.clip(denoise(x, level), low, high)
