"""Distances of features against closed forms and loops, and the coverage of their intervals."""

import functools
from statistics import NormalDist

import numpy as np
import pytest

from jaxdiff import evaluate
from jaxdiff.evaluate import statistics


def rng(seed=0):
    return np.random.default_rng(seed)


def test_frechet_distance_of_gaussians_is_the_closed_form():
    """Dowson & Landau (1982): commuting covariances, so that the square root is known."""
    x = rng().normal(size=(200_000, 3))
    x = (x - x.mean(0)) @ np.linalg.inv(np.linalg.cholesky(np.cov(x.T))).T  # mean 0 and covariance 1 exactly
    a, b = x * [1.0, 2.0, 0.5] + [0, 0, 1], x * [3.0, 1.0, 0.5] + [1, 0, 0]
    assert evaluate.frechet_distance(a, b) == pytest.approx(1 + 1 + (1 - 3) ** 2 + (2 - 1) ** 2, rel=1e-9)
    assert evaluate.frechet_distance(a, a) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("num", [500, 6])
def test_frechet_distance_equals_scipys_square_root(num):
    """Also of fewer images than features."""
    linalg = pytest.importorskip("scipy.linalg")
    a, b = rng().normal(size=(num, 8)) @ rng(1).normal(size=(8, 8)), rng(2).normal(size=(400, 8)) + 0.5
    cov_a, cov_b = np.cov(a.T), np.cov(b.T)
    expected = np.sum((a.mean(0) - b.mean(0)) ** 2) + np.trace(cov_a + cov_b - 2 * linalg.sqrtm(cov_a @ cov_b).real)
    assert evaluate.frechet_distance(a, b) == pytest.approx(expected, rel=1e-6)


def expected_kernel(mean_a, std_a, mean_b, std_b):
    """`E (x y + 1)^3` of independent Gaussians in one dimension, from their moments."""

    def moments(mean, std):
        return mean, mean**2 + std**2, mean**3 + 3 * mean * std**2

    (a1, a2, a3), (b1, b2, b3) = moments(mean_a, std_a), moments(mean_b, std_b)
    return a3 * b3 + 3 * a2 * b2 + 3 * a1 * b1 + 1


@pytest.mark.parametrize(("shift", "scale"), [(0.0, 0.5), (0.3, 0.6)])
def test_kernel_distance_is_unbiased(shift, scale):
    """Over many draws of few images: zero of equal laws, else the distance by moments."""
    kernels = (expected_kernel(0, 0.5, 0, 0.5), expected_kernel(shift, scale, shift, scale), expected_kernel(0, 0.5, shift, scale))
    wanted = kernels[0] + kernels[1] - 2 * kernels[2]
    assert (wanted == 0) == (shift == 0)
    draws = rng().normal(size=(4000, 2, 12, 1))
    found = [evaluate.kernel_distance(0.5 * a, shift + scale * b[:9]) for a, b in draws]
    error = np.std(found) / np.sqrt(len(found))
    assert abs(np.mean(found) - wanted) < 3 * error
    assert error < max(wanted, 0.5) / 10


def test_kernel_distance_is_the_sum_over_pairs():
    a, b = rng().normal(size=(7, 3)), rng(1).normal(size=(5, 3)) + 0.5

    def k(x, y):
        return (x @ y / 3 + 1) ** 3

    def own(z):
        return np.mean([k(x, y) for i, x in enumerate(z) for j, y in enumerate(z) if i != j])

    expected = own(a) + own(b) - 2 * np.mean([k(x, y) for x in a for y in b])
    assert evaluate.kernel_distance(a, b) == pytest.approx(expected, rel=1e-12)


def test_pairs_are_the_same_in_parts(monkeypatch):
    a, b = rng().normal(size=(25, 3)), rng(1).normal(size=(40, 3))
    whole = evaluate.kernel_distance(a, b), evaluate.precision_recall(a, b)
    monkeypatch.setattr(statistics, "CHUNK", 7)
    assert evaluate.kernel_distance(a, b) == pytest.approx(whole[0], rel=1e-12)
    assert evaluate.precision_recall(a, b) == whole[1]


def brute_force(generated, real, k):
    def near(points, centres):
        hits = 0
        for point in points:
            covered = False
            for number, centre in enumerate(centres):
                others = [np.linalg.norm(centre - other) for at, other in enumerate(centres) if at != number]
                covered = covered or np.linalg.norm(point - centre) <= sorted(others)[k - 1]
            hits += covered
        return hits / len(points)

    return near(generated, real), near(real, generated)


@pytest.mark.parametrize("k", [1, 3])
def test_precision_and_recall_equal_loops(k):
    real, generated = rng().normal(size=(40, 4)), 0.8 * rng(1).normal(size=(40, 4)) + 0.7
    found = evaluate.precision_recall(generated, real, k)
    assert found == brute_force(generated, real, k)
    assert 0 < found[1] < found[0] < 1
    assert statistics.coverage(generated, real, k)(np.arange(40)) == found[1]
    few = np.arange(3, 40, 2)
    assert statistics.coverage(generated, real, k)(few) == brute_force(generated[few], real, k)[1]


def test_precision_and_recall_where_they_are_known():
    left, right = rng().normal(size=(2, 100, 2)) + np.array([[[-10.0, 0]], [[10.0, 0]]])
    both = np.concatenate([left[:50], right[:50]])
    assert evaluate.precision_recall(left, right) == (0, 0)
    assert evaluate.precision_recall(left, left) == (1, 1)
    precision, recall = evaluate.precision_recall(np.concatenate([left[:50], left[:50] + 1e-6]), both)
    assert (precision, recall) == (1, 0.5)  # one mode is dropped


def test_inception_score_of_known_probabilities():
    assert evaluate.inception_score(np.full((30, 7), 1 / 7)) == pytest.approx(1)
    assert evaluate.inception_score(np.eye(7)) == pytest.approx(7)
    assert evaluate.inception_score(np.tile(np.eye(7), (4, 1)), splits=4) == pytest.approx(7)
    assert evaluate.inception_score(np.repeat(np.eye(8), 2, axis=0), splits=4) == pytest.approx(2)  # a part sees two classes
    p = rng().dirichlet(np.ones(5), size=50)
    divergence = np.mean([sum(q * np.log(q / m) for q, m in zip(row, p.mean(0), strict=True)) for row in p])
    assert evaluate.inception_score(p) == pytest.approx(np.exp(divergence))


def coverage(interval, tries):
    """How often an interval holds the mean of its values over the draws that it is tried with."""
    found = [interval(seed) for seed in range(tries)]
    wanted = np.mean([each.value for each in found])
    return np.mean([each.low <= wanted <= each.high for each in found])


def bounds(confidence, tries, wider):
    """Between which shares of that many tries lie but for one in a thousand on each side; by intervals as wide, or wider."""
    normal = NormalDist()
    most = 2 * normal.cdf(wider * normal.inv_cdf((1 + confidence) / 2)) - 1
    ends = zip((confidence, most), (-3.1, 3.1), strict=True)
    return [share + z * np.sqrt(share * (1 - share) / tries) for share, z in ends]


REAL = np.random.default_rng(7).normal(size=(400, 4))
SETS = np.arange(100)[None]
STATISTICS = {
    "fid": lambda x: statistics.frechet(x, statistics.gaussian(REAL)),
    "kid": lambda x: statistics.kernel(x, REAL, 0.0),
    "recall": lambda x: statistics.coverage(x, REAL[:100]),
    "inception": lambda x: statistics.inception(np.exp(x) / np.exp(x).sum(1, keepdims=True)),
}


@functools.cache
def statistic_of(name, seed):
    """A statistic of the set of that seed, computed once for the same rows."""
    statistic = STATISTICS[name](rng(1000 + seed).normal(size=(100, 4)) * [0.7, 1.3, 1.0, 1.0] + [0.6, 0, 0, 0])
    known = functools.cache(lambda rows: statistic(np.array(rows)))
    return lambda rows: known(tuple(rows))


@pytest.mark.parametrize("confidence", [0.8, 0.95])
@pytest.mark.parametrize("name", STATISTICS)
def test_intervals_cover_at_the_stated_rate(name, confidence):
    """Of sets whose law is not the reference's, against the mean over sets."""
    tries = 150

    def interval(seed):
        return evaluate.bootstrap(statistic_of(name, seed), SETS, confidence=confidence, draws=40)

    low, high = bounds(confidence, tries, 1.4 if name == "recall" else 1.0)  # as neighbours change, its jackknife errs upwards
    assert low <= coverage(interval, tries) <= high


def test_intervals_over_several_sets_are_of_their_mean():
    x = rng().normal(size=(400, 4)) + 0.5
    statistic = STATISTICS["fid"](x)
    sets = np.arange(400).reshape(4, 100)
    many, one = evaluate.bootstrap(statistic, sets), evaluate.bootstrap(statistic, sets[:1])
    assert many.value == pytest.approx(np.mean([statistic(rows) for rows in sets]))
    assert (many.high - many.low) / (one.high - one.low) == pytest.approx(0.5, rel=0.3)


def test_intervals_of_means_cover_at_the_stated_rate():
    """Of values as CLIP scores are, of which some are 0; of one value all that it could be."""
    draws = (rng().normal(size=(4000, 100)) * 20 + 15).clip(0, 100)
    found = [evaluate.mean(values, 0, 100) for values in draws]
    truth = draws.mean()
    assert 0.93 <= np.mean([each.low <= truth <= each.high for each in found]) <= 0.965
    assert found[0].value == pytest.approx(draws[0].mean())
    assert evaluate.mean(np.array([3.0]), 0, 100) == (3, 0, 100)
    assert evaluate.mean(np.array([0.0, 2.0]), 0, 100).low == 0
    assert evaluate.mean(np.array([98.0, 100.0]), 0, 100).high == 100


@pytest.mark.parametrize("truth", [0.5, 0.97])
def test_intervals_of_shares_cover_at_the_stated_rate(truth):
    draws = rng().random((4000, 200)) < truth
    found = [evaluate.share(hits) for hits in draws]
    rate = np.mean([each.low <= truth <= each.high for each in found])
    assert 0.93 <= rate <= 0.98  # it cannot be even: hits are whole numbers
    certain = evaluate.share(np.ones(200, bool))
    assert certain.value == certain.high == 1
    assert 0.97 < certain.low < 0.99
