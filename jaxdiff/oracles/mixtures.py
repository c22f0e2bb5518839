"""Mixtures of Gaussians, with denoiser, score and densities in closed form at every level."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
from jax import Array
from numpy.typing import ArrayLike  # jax's has no lists

from jaxdiff.denoiser import AverageDenoiser, Denoiser
from jaxdiff.oracles import flows
from jaxdiff.process import Level


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Mixture:
    """A mixture of K Gaussians in D dimensions: weights `[K]` that sum to 1, means `[K, D]`, stds `[K, D]` along the axes.

    The axes of component k are the columns of `axes[k]`, `[K, D, D]`; None: the coordinate axes.
    """

    weights: Array
    means: Array
    stds: Array
    axes: Array | None = None


def mixture(weights: ArrayLike, means: ArrayLike, stds: ArrayLike) -> Mixture:
    """A mixture from weights `[K]` (scaled to sum to 1), means `[K, D]` and stds `[K]` (isotropic) or `[K, D]`."""
    weights, means, stds = jnp.asarray(weights), jnp.asarray(means), jnp.asarray(stds)
    stds = stds[:, None] if stds.ndim == 1 else stds
    return Mixture(weights / jnp.sum(weights), means, jnp.broadcast_to(stds, means.shape))


def gaussian(mean: ArrayLike, std: ArrayLike) -> Mixture:
    """One Gaussian of mean `[D]` and std `[]` or `[D]`: a mixture with one component."""
    mean, std = jnp.asarray(mean), jnp.asarray(std)
    return mixture(jnp.ones((1,), mean.dtype), mean[None], jnp.broadcast_to(std, mean.shape)[None])


def correlated(weights: ArrayLike, means: ArrayLike, covariances: ArrayLike) -> Mixture:
    """A mixture from weights `[K]` (scaled to sum to 1), means `[K, D]` and covariances `[K, D, D]`."""
    variances, axes = jnp.linalg.eigh(jnp.asarray(covariances))
    return replace(mixture(weights, means, jnp.sqrt(jnp.maximum(variances, 0))), axes=axes)


def draw(data: Mixture, key: Array, num: int) -> Array:
    """Exact samples of the mixture, `[num, D]`."""
    component_key, noise_key = jax.random.split(key)
    component = jax.random.categorical(component_key, jnp.log(data.weights), shape=(num,))
    noise = data.stds[component] * jax.random.normal(noise_key, (num, data.means.shape[1]), data.means.dtype)
    if data.axes is not None:
        noise = jnp.einsum("bde,be->bd", data.axes[component], noise, precision="highest")
    return data.means[component] + noise


def log_density(data: Mixture, x: Array, level: Level) -> Array:
    """`log q(x)` of the mixture noised to that level, in nats, `[B]`, or `[]` of one x `[D]`. At Level(1, 0): of the data."""
    of_one = x.ndim == 1 < data.means.shape[1]
    return jax.nn.logsumexp(_joint(data, x, level)[0], axis=-1).reshape(() if of_one else (-1,))


def denoiser(data: Mixture) -> Denoiser:
    """The exact `E[x0 given x]` of a mixture, the denoiser of least squared error."""

    def denoise(x: Array, level: Level) -> Array:
        log_joint, offset, variance = _joint(data, x, level)
        gain = _column(level.alpha) * data.stds[None] ** 2 / variance
        return _average(log_joint, data.means[None] + _from_axes(data, gain * offset), x.shape)

    return denoise


def score(data: Mixture) -> Denoiser:
    """The exact `grad log q(x)` of the noised mixture, as a function of (x, level)."""

    def gradient(x: Array, level: Level) -> Array:
        log_joint, offset, variance = _joint(data, x, level)
        return _average(log_joint, -_from_axes(data, offset / variance), x.shape)

    return gradient


def moments(data: Mixture) -> tuple[Array, Array]:
    """The mixture's mean `[D]` and covariance `[D, D]`."""
    mean = jnp.einsum("k,kd->d", data.weights, data.means, precision="highest")
    offset = data.means - mean[None]
    second = offset[:, :, None] * offset[:, None, :] + _covariances(data)
    return mean, jnp.einsum("k,kde->de", data.weights, second, precision="highest")


def conditional(data: Mixture, likelihood: ArrayLike) -> Mixture:
    """The mixture given a label with probability `likelihood[k]` in component k, `[K]`; ones and zeros select components."""
    weights = data.weights * jnp.asarray(likelihood, data.weights.dtype)
    return replace(data, weights=weights / jnp.sum(weights))


def class_log_prob(data: Mixture, likelihood: ArrayLike) -> Callable[[Array, Level], Array]:
    """The exact classifier of noised data: `log p(label given x)` `[B]`, from the label's `likelihood` `[K]` in each component."""
    labelled = conditional(data, likelihood)
    prior = jnp.log(jnp.sum(data.weights * jnp.asarray(likelihood, data.weights.dtype)))
    return lambda x, level: prior + log_density(labelled, x, level) - log_density(data, x, level)


def guided(data: Mixture, likelihood: ArrayLike, scale: float | Array) -> Denoiser:
    """The denoiser whose score is that of `q(x given label)^scale q(x)^(1 - scale)`: the ideal of guidance by that scale.

    By the gradient of the log-densities. Fails where alpha = 0.
    """
    labelled = conditional(data, likelihood)

    def denoise(x: Array, level: Level) -> Array:
        def log_q(x):
            return jnp.sum(scale * log_density(labelled, x, level) + (1 - scale) * log_density(data, x, level))

        return (x + level.sigma**2 * jax.grad(log_q)(x)) / level.alpha

    return denoise


def posterior(data: Mixture, matrix: ArrayLike, observed: ArrayLike, std: float) -> Mixture:
    """The mixture of x0 given `observed = matrix @ x0 + std * noise`: matrix `[M, D]`, observed `[M]`, std above 0."""
    matrix, observed = jnp.asarray(matrix), jnp.asarray(observed)
    covariances = _covariances(data)
    cross = jnp.einsum("kde,me->kdm", covariances, matrix, precision="highest")
    observed_covariance = (
        jnp.einsum("md,kdn->kmn", matrix, cross, precision="highest") + std**2 * jnp.eye(len(observed), dtype=matrix.dtype)[None]
    )
    gain = jnp.swapaxes(jnp.linalg.solve(observed_covariance, jnp.swapaxes(cross, 1, 2)), 1, 2)
    residual = observed[None] - jnp.einsum("md,kd->km", matrix, data.means, precision="highest")
    means = data.means + jnp.einsum("kdm,km->kd", gain, residual, precision="highest")
    after = covariances - jnp.einsum("kdm,kem->kde", gain, cross, precision="highest")
    _, log_volume = jnp.linalg.slogdet(observed_covariance)
    distance = jnp.einsum(
        "km,km->k", residual, jnp.linalg.solve(observed_covariance, residual[..., None])[..., 0], precision="highest"
    )
    weights = jax.nn.softmax(jnp.log(data.weights) - (log_volume + distance) / 2)
    return correlated(weights, means, (after + jnp.swapaxes(after, 1, 2)) / 2)


def flow_map(data: Mixture) -> Callable[..., Array]:
    """The probability flow, `(x, t, s) -> x_s`; by default s is clean, which makes it a consistency function.

    Of one Gaussian `alpha_s mean + std_s / std_t (x - alpha_t mean)` along each axis, `std_t^2 = (alpha_t std)^2 + sigma_t^2`: the
    solution of the ODE of Song et al. (2021), eq. 13. Of a mixture see `flows.integrated`.
    """
    if data.means.shape[0] != 1:
        return flows.integrated(denoiser(data), score(data))

    def flow(x: Array, t: Level, s: Level | None = None) -> Array:
        s = Level(jnp.ones_like(t.alpha), jnp.zeros_like(t.sigma)) if s is None else s
        _, offset, variance = _joint(data, x, t)
        variance_s = (_column(s.alpha) * data.stds[None]) ** 2 + _column(s.sigma) ** 2
        moved = _from_axes(data, jnp.sqrt(variance_s / variance) * offset)
        return (_column(s.alpha) * data.means[None] + moved).reshape(x.shape)

    return flow


def average_denoiser(data: Mixture) -> AverageDenoiser:
    """The average of the denoiser along the probability flow from t to s, `(x, t, s) -> x0`, by the rise of `alpha / sigma`.

    The x0 with which `transfer` ends on `flow_map(data)`; for velocities on straight levels their average, that of MeanFlow.
    """
    return flows.average_denoiser(flow_map(data), denoiser(data))


def _joint(data: Mixture, x: Array, level: Level) -> tuple[Array, Array, Array]:
    """Log of weight * density `[B, K]`, and along the axes x minus the mean `[B, K, D]` and the variance `[B or 1, K, D]`."""
    variance = (_column(level.alpha) * data.stds[None]) ** 2 + _column(level.sigma) ** 2
    offset = x.reshape(-1, 1, data.means.shape[1]) - _column(level.alpha) * data.means[None]
    if data.axes is not None:
        offset = jnp.einsum("kde,bkd->bke", data.axes, offset, precision="highest")
    log_normal = -0.5 * jnp.sum(offset**2 / variance + jnp.log(2 * jnp.pi * variance), axis=-1)
    return jnp.log(data.weights)[None] + log_normal, offset, variance


def _from_axes(data: Mixture, values: Array) -> Array:
    """Coordinates `[B, K, D]` of vectors that are given along the components' axes."""
    return values if data.axes is None else jnp.einsum("kde,bke->bkd", data.axes, values, precision="highest")


def _covariances(data: Mixture) -> Array:
    axes = jnp.eye(data.means.shape[1], dtype=data.means.dtype)[None] if data.axes is None else data.axes
    return jnp.einsum(
        "kde,kfe->kdf",
        axes * data.stds[:, None, :] ** 2,
        jnp.broadcast_to(axes, (*data.stds.shape, axes.shape[-1])),
        precision="highest",
    )


def _average(log_joint: Array, values: Array, shape: tuple[int, ...]) -> Array:
    return jnp.einsum("bk,bkd->bd", jax.nn.softmax(log_joint, axis=-1), values, precision="highest").reshape(shape)


def _column(coefficient: ArrayLike) -> Array:
    """A level's alpha or sigma, `[]` or `[B, 1, ...]`, as `[1 or B, 1, 1]`."""
    return jnp.reshape(jnp.asarray(coefficient), (-1, 1, 1))
