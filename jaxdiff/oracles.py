"""Data whose denoiser is known exactly: mixtures of Gaussians, at every level. The truth that the tests hold code to."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jaxdiff.denoiser import Denoiser
from jaxdiff.process import Level


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Mixture:
    """A mixture of K Gaussians in D dimensions: weights `[K]` that sum to 1, means and stds (per axis) `[K, D]`."""

    weights: Array
    means: Array
    stds: Array


def mixture(weights: ArrayLike, means: ArrayLike, stds: ArrayLike) -> Mixture:
    """A mixture from weights `[K]` (scaled to sum to 1), means `[K, D]` and stds `[K]` (round) or `[K, D]`."""
    weights, means, stds = jnp.asarray(weights), jnp.asarray(means), jnp.asarray(stds)
    stds = stds[:, None] if stds.ndim == 1 else stds
    return Mixture(weights / jnp.sum(weights), means, jnp.broadcast_to(stds, means.shape))


def gaussian(mean: ArrayLike, std: ArrayLike) -> Mixture:
    """One Gaussian of mean `[D]` and std `[]` or `[D]`: a mixture of one."""
    mean, std = jnp.asarray(mean), jnp.asarray(std)
    return mixture(jnp.ones((1,), mean.dtype), mean[None], jnp.broadcast_to(std, mean.shape)[None])


def draw(data: Mixture, key: Array, num: int) -> Array:
    """Exact samples of the mixture, `[num, D]`."""
    component_key, noise_key = jax.random.split(key)
    component = jax.random.categorical(component_key, jnp.log(data.weights), shape=(num,))
    noise = jax.random.normal(noise_key, (num, data.means.shape[1]), data.means.dtype)
    return data.means[component] + data.stds[component] * noise


def log_density(data: Mixture, x: Array, level: Level) -> Array:
    """`log q(x)` of the mixture noised to that level, in nats, `[B]`. At Level(1, 0): of the data itself."""
    return jax.nn.logsumexp(_joint(data, x, level)[0], axis=-1)


def denoiser(data: Mixture) -> Denoiser:
    """The exact `E[x0 given x]` of a mixture: no denoiser has a smaller squared error."""

    def denoise(x: Array, level: Level) -> Array:
        log_joint, offset, variance = _joint(data, x, level)
        gain = _column(level.alpha) * data.stds[None] ** 2 / variance
        return _average(log_joint, data.means[None] + gain * offset, x.shape)

    return denoise


def score(data: Mixture) -> Denoiser:
    """The exact `grad log q(x)` of the noised mixture, as a function of (x, level)."""

    def gradient(x: Array, level: Level) -> Array:
        log_joint, offset, variance = _joint(data, x, level)
        return _average(log_joint, -offset / variance, x.shape)

    return gradient


def moments(data: Mixture) -> tuple[Array, Array]:
    """The mixture's mean `[D]` and covariance `[D, D]`."""
    mean = jnp.einsum("k,kd->d", data.weights, data.means)
    offset = data.means - mean[None]
    between = jnp.einsum("k,kd,ke->de", data.weights, offset, offset)
    return mean, between + jnp.diag(jnp.einsum("k,kd->d", data.weights, data.stds**2))


def _joint(data: Mixture, x: Array, level: Level) -> tuple[Array, Array, Array]:
    """Log of weight * density `[B, K]`, x minus the component's mean `[B, K, D]`, the variance `[B or 1, K, D]`."""
    variance = (_column(level.alpha) * data.stds[None]) ** 2 + _column(level.sigma) ** 2
    offset = x.reshape(x.shape[0], 1, -1) - _column(level.alpha) * data.means[None]
    log_normal = -0.5 * jnp.sum(offset**2 / variance + jnp.log(2 * jnp.pi * variance), axis=-1)
    return jnp.log(data.weights)[None] + log_normal, offset, variance


def _average(log_joint: Array, values: Array, shape: tuple[int, ...]) -> Array:
    return jnp.einsum("bk,bkd->bd", jax.nn.softmax(log_joint, axis=-1), values).reshape(shape)


def _column(coefficient: ArrayLike) -> Array:
    """A level's alpha or sigma, `[]` or `[B, 1, ...]`, as `[1 or B, 1, 1]`."""
    return jnp.reshape(jnp.asarray(coefficient), (-1, 1, 1))
