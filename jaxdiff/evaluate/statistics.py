"""Statistics of a set of images, by their features or class probabilities: numpy alone, in float64.

The functions of whole sets come first. Behind each stands a `Statistic`, which is prepared once and asked for many subsets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from jaxdiff.io import count

Statistic = Callable[[np.ndarray], float]  # of those rows [n] of a set
CHUNK = 1000  # rows of a matrix of pairs that are computed at once
ROUNDING = 1e-14  # of a squared distance, as a share of the squares that it is the difference of


class Gaussian(NamedTuple):
    """Mean `[F]` and covariance `[F, F]`."""

    mean: np.ndarray
    covariance: np.ndarray


def gaussian(features: np.ndarray) -> Gaussian:
    """The Gaussian fitted to features `[N, F]`, with the unbiased covariance: NaN for one image."""
    features = np.asarray(features, np.float64)
    mean, num = features.mean(0), features.shape[1]
    covariance = np.atleast_2d(np.cov(features, rowvar=False, ddof=1)) if len(features) > 1 else np.full((num, num), np.nan)
    return Gaussian(mean, covariance)


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """`|mean_a - mean_b|^2 + tr(A + B - 2 sqrt(A B))` of Gaussians fitted to features `[N, F]` (Heusel et al. 2017, eq. 6).

    Its mean over sets of N exceeds that of larger ones: compare at equal N.

    Raises:
        ValueError: one set has fewer than 2 images, as any of these functions does where there are too few.
    """
    _check_number(2, a, b)
    return frechet(a, gaussian(b))(np.arange(len(a)))


def kernel_distance(a: np.ndarray, b: np.ndarray) -> float:
    """The squared maximum mean discrepancy of features `[N, F]` by the kernel `(x.y / F + 1)^3` (Binkowski et al. 2018, KID).

    The unbiased estimate, of all pairs, which may be below 0: its mean is the same for every N.
    """
    _check_number(2, a, b)
    return kernel(a, b)(np.arange(len(a)))


def precision_recall(generated: np.ndarray, real: np.ndarray, k: int = 3) -> tuple[float, float]:
    """Shares of generated features that are near real ones, and of real ones near generated ones (Kynkaanniemi et al. 2019).

    Near is within the distance of one of the others to its k-th nearest neighbour among its like. Both sets count: `[N, F]`
    each, of equal size.
    """
    _check_number(k + 1, generated, real)
    return float(covered(generated, real, k).mean()), float(covered(real, generated, k).mean())


def inception_score(probabilities: np.ndarray, splits: int = 1) -> float:
    """`exp(E KL(p(y | x) || p(y)))` of class probabilities `[N, K]` (Salimans et al. 2016): from 1 to K.

    The mean of that of so many parts, one after another; theirs are 10.
    """
    _check_number(splits, probabilities)
    score = inception(probabilities)
    return float(np.mean([score(rows) for rows in np.array_split(np.arange(len(probabilities)), splits)]))


def frechet(features: np.ndarray, reference: Gaussian) -> Statistic:
    """`frechet_distance` of rows of the features from a reference."""
    features, root = np.asarray(features, np.float64), _root(reference.covariance)
    turned = features @ root

    def distance(rows: np.ndarray) -> float:
        x, y = features[rows], turned[rows] - turned[rows].mean(0)
        gram = (y.T @ y if len(y) > y.shape[1] else y @ y.T) / (len(y) - 1)  # root A root, or the smaller of equal eigenvalues
        cross = np.sqrt(np.clip(np.linalg.eigvalsh(gram), 0, None)).sum()
        gap = np.sum((x.mean(0) - reference.mean) ** 2)
        return max(float(gap + x.var(0, ddof=1).sum() + np.trace(reference.covariance) - 2 * cross), 0.0)  # but for rounding

    return distance


def kernel(features: np.ndarray, reference: np.ndarray, own: float | None = None) -> Statistic:
    """`kernel_distance` of rows of the features from a reference, whose `mean_kernel` is computed if not given."""
    among = np.concatenate(list(_cubic(features, features)))
    np.fill_diagonal(among, 0)
    across = np.concatenate([part.mean(1) for part in _cubic(features, reference)])
    constant = mean_kernel(reference) if own is None else own

    def distance(rows: np.ndarray) -> float:
        pairs = among[np.ix_(rows, rows)].sum() / (len(rows) * (len(rows) - 1))
        return float(pairs + constant - 2 * across[rows].mean())

    return distance


def mean_kernel(features: np.ndarray) -> float:
    """The mean of the kernel of `kernel_distance` over all pairs of two different rows; NaN for one row."""
    if len(features) < 2:
        return np.nan
    diagonal = np.sum((np.sum(np.square(features, dtype=np.float64), axis=1) / features.shape[1] + 1) ** 3)
    total, num = sum(float(part.sum()) for part in _cubic(features, features)), len(features)
    return (total - float(diagonal)) / (num * (num - 1))


def covered(points: np.ndarray, centres: np.ndarray, k: int = 3) -> np.ndarray:
    """Which of the points `[N, F]` lie within the distance of a centre to its k-th nearest neighbour: bool `[N]`."""
    radii = np.concatenate([np.partition(part, k, axis=1)[:, k] for part in _squares(centres, centres)])  # 0 is itself
    return np.concatenate([(part <= radii).any(1) for part in _squares(points, centres)])


def coverage(centres: np.ndarray, points: np.ndarray, k: int = 3) -> Statistic:
    """The share of the points that rows of the centres cover: the recall of real points."""
    among, across = (np.concatenate(list(_squares(a, centres))) for a in (centres, points))

    def share(rows: np.ndarray) -> float:
        radii = np.partition(among[np.ix_(rows, rows)], k, axis=1)[:, k]
        return float((across[:, rows] <= radii).any(1).mean())

    return share


def inception(probabilities: np.ndarray) -> Statistic:
    """`inception_score` of rows of the probabilities, in one part."""
    probabilities = np.asarray(probabilities, np.float64)
    negentropy = _x_log_x(probabilities).sum(1)
    return lambda rows: float(np.exp(negentropy[rows].mean() - _x_log_x(probabilities[rows].mean(0)).sum()))


def _x_log_x(x: np.ndarray) -> np.ndarray:
    return x * np.log(np.where(x > 0, x, 1))


def _root(covariance: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(covariance)
    return (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T


def _cubic(a: np.ndarray, b: np.ndarray) -> Iterator[np.ndarray]:
    """The kernel of all pairs, some rows of a after another."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    for start in range(0, len(a), CHUNK):
        products = a[start : start + CHUNK] @ b.T / a.shape[1] + 1
        yield products * products * products


def _squares(a: np.ndarray, b: np.ndarray) -> Iterator[np.ndarray]:
    """The squared distances of all pairs, some rows of a after another, in float32 for the memory's sake.

    Those of equal rows are 0, not what rounding leaves of them.
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    norms = np.sum(b**2, axis=1)
    for start in range(0, len(a), CHUNK):
        part = a[start : start + CHUNK]
        sums = np.sum(part**2, axis=1)[:, None] + norms
        squares = sums - 2 * part @ b.T
        yield np.where(squares > ROUNDING * sums, squares, 0).astype(np.float32)


def _check_number(least: int, *sets: np.ndarray) -> None:
    if (fewest := min(map(len, sets))) < least:
        raise ValueError(f"this measure needs sets of at least {count(least, 'image')}, got {fewest}")
