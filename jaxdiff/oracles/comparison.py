"""Comparison of samples with the mixture that they should come from, with Monte Carlo errors."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import jax
import numpy as np
from jax import Array

from jaxdiff.oracles import mixtures
from jaxdiff.oracles.mixtures import Mixture

draw = jax.jit(mixtures.draw, static_argnames="num")
moments = jax.jit(mixtures.moments)
ALLOWANCE = 0.02  # of the data's standard deviation: allowed bias beyond the Monte Carlo error


class Check(NamedTuple):
    """One line of the table: the measurement, what is allowed, and whether it passed."""

    name: str
    measured: str
    allowed: str
    passed: bool


def compare(x0: Array, exact: Mixture, key: Array, allowance: float = ALLOWANCE) -> tuple[Check, ...]:
    """Three checks of samples `[num, D]` against a mixture: mean, covariance, sliced Wasserstein distance.

    Allowed is a bias of `allowance` times the data's largest standard deviation, plus four Monte Carlo standard errors.
    """
    draws = [np.asarray(draw(exact, k, len(x0)), np.float64) for k in jax.random.split(key, 6)]
    distances = [_sliced_wasserstein(a, b) for a, b in itertools.pairwise(draws)]
    return (
        *compare_moments(x0, exact, allowance),
        _bounded(
            "sliced Wasserstein",
            _sliced_wasserstein(np.asarray(x0, np.float64), draws[0]),
            float(np.mean(distances)),
            float(np.std(distances)),
            allowance * _scale(exact),
        ),
    )


def compare_moments(x0: Array, exact: Mixture, allowance: float = ALLOWANCE) -> tuple[Check, Check]:
    """The first two checks of `compare`: mean and covariance."""
    samples, num = np.asarray(x0, np.float64), len(x0)
    mean, covariance = (np.asarray(moment, np.float64) for moment in moments(exact))
    scale, centred = _scale(exact), samples - mean
    products = centred[:, :, None] * centred[:, None, :]
    return (
        _worst("bias of mean", centred.mean(0), np.sqrt(np.diag(covariance) / num), allowance * scale),
        _worst("bias of covariance", products.mean(0) - covariance, products.std(0) / num**0.5, 2 * allowance * scale**2),
    )


def _scale(exact: Mixture) -> float:
    """The mixture's largest standard deviation along an axis."""
    return float(np.sqrt(np.diag(np.asarray(moments(exact)[1], np.float64)).max()))


def _sliced_wasserstein(a: np.ndarray, b: np.ndarray, directions: int = 64) -> float:
    """`sqrt(mean over directions of W2^2)` between two sets of points of equal size (Bonneel et al. 2015, eq. 7)."""
    normals = np.random.default_rng(0).normal(size=(directions, a.shape[1]))
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    return float(np.sqrt(np.mean((np.sort(a @ normals.T, axis=0) - np.sort(b @ normals.T, axis=0)) ** 2)))


def _worst(name: str, bias: np.ndarray, error: np.ndarray, allowance: float) -> Check:
    """The check of the component of a bias that is largest relative to its allowance."""
    place = np.unravel_index(np.argmax(np.abs(bias) / (4 * error + allowance)), bias.shape)
    return _bounded(name, abs(float(bias[place])), 0.0, float(error[place]), allowance)


def _bounded(name: str, value: float, centre: float, error: float, allowance: float) -> Check:
    limit = centre + 4 * error + allowance
    return Check(name, f"{value:.4f} +- {error:.4f}", f"{limit:.4f}", bool(value <= limit))
