"""Pairs of levels of consistency: which list, how fine at which step, how often each level, how far apart in continuous time."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdiff as jd
from jaxdiff import objectives

NUM = 20000


def drawn(pairs, levels, step=0):
    """Rows of t and s in the list, which they are taken from unchanged, `[NUM]`; s has less noise."""
    t, s = jax.jit(lambda step: pairs(step, jax.random.key(3), jnp.arange(NUM), 4))(jnp.int32(step))
    assert t.alpha.shape == t.sigma.shape == s.alpha.shape == s.sigma.shape == (NUM, 1, 1, 1)
    places = []
    for level in (t, s):
        row = np.argmin(np.abs(np.asarray(levels.sigma)[None] - np.ravel(level.sigma)[:, None]), axis=1)
        np.testing.assert_array_equal(np.asarray(levels.sigma)[row], np.ravel(level.sigma))
        np.testing.assert_array_equal(np.asarray(levels.alpha)[row], np.ravel(level.alpha))
        places.append(row)
    assert np.all(places[0] < places[1])
    return places


def assert_shares(places, shares):
    """The examples are spread more evenly than by chance: a handful from each share."""
    counts = np.bincount(places, minlength=len(shares))
    assert np.max(np.abs(counts - NUM * np.asarray(shares))) < 10


@pytest.mark.parametrize("skip", [1, 3, 20])
def test_each_level_but_the_last_is_drawn_equally_often(skip):
    levels = jd.grid(jd.cosine(), 12)
    t, s = drawn(objectives.steps_of(levels, skip=skip), levels)
    np.testing.assert_array_equal(s, np.minimum(t + skip, 12))
    assert_shares(t, [1 / 12] * 12 + [0])


def test_doubling_takes_parts_of_the_list_in_equal_intervals():
    """Song & Dhariwal (2023), eq. 9, less one: `levels[::k]`, the number of them as in the paper at every step."""
    levels, curriculum = jd.grid(jd.cosine(), 16), objectives.doubling(2, 16, 41)
    length = math.floor(41 / (math.log2(16 / 2) + 1))
    for step in range(60):
        assert curriculum(jnp.int32(step)) == min(2 * 2 ** (step // length), 16)
    for step, stride in ((0, 8), (length - 1, 8), (length, 4), (2 * length, 2), (3 * length, 1), (1000, 1)):
        t, s = drawn(objectives.steps_of(levels, curriculum), levels, step)
        assert_shares(t, [1 / (16 // stride) if row % stride == 0 else 0 for row in range(16)])
        np.testing.assert_array_equal(s, t + stride)


def test_square_root_is_that_of_song_et_al():
    """Song et al. (2023), appendix C, less one: `ceil(sqrt(k / K ((s1 + 1)^2 - s0^2) + s0^2) - 1) + 1` levels, N(k) - 1 steps."""
    total, first, last = 997, 2, 150
    curriculum = jax.jit(objectives.square_root(first, last, total))
    for step in (0, 1, 2, 5, 17, 100, 313, 500, 800, 996, 997):
        levels = math.ceil(math.sqrt(step / total * ((last + 1) ** 2 - first**2) + first**2) - 1) + 1
        assert curriculum(jnp.int32(step)) == max(levels - 1, 1)
    assert curriculum(jnp.int32(5000)) == last


@pytest.mark.parametrize("skip", [1, 2])
def test_a_number_that_does_not_divide_takes_the_nearest_levels(skip):
    levels = jd.grid(jd.karras(), 16)
    t, s = drawn(objectives.steps_of(levels, objectives.constant(7), skip=skip), levels)
    nearest = np.floor(np.arange(8) * 16 / 7 + 0.5).astype(int)
    assert_shares(t, [1 / 7 if row in nearest[:-1] else 0 for row in range(16)])
    np.testing.assert_array_equal(s, nearest[np.minimum(np.searchsorted(nearest, t) + skip, 7)])
    assert s.max() == 16


def lognormal_share(low, high, mean, std):
    """The probability that the logarithm of a lognormal variable's value lies between those of two values."""
    below = [0.0 if value == 0 else 0.5 * (1 + math.erf((math.log(value) - mean) / (std * math.sqrt(2)))) for value in (low, high)]
    return below[1] - below[0]


@pytest.mark.parametrize("schedule", [jd.karras(), jd.cosine(-8.0, 8.0)])
@pytest.mark.parametrize("stride", [1, 4])
def test_lognormal_measure_draws_levels_by_the_noise_between_them(schedule, stride):
    """Song & Dhariwal (2023), eq. 10, of the list as long as the curriculum has made it."""
    levels = jd.grid(schedule, 20)
    pairs = objectives.steps_of(levels, objectives.constant(20 // stride), measure=objectives.lognormal_measure(-0.5, 1.2))
    t, s = drawn(pairs, levels)
    np.testing.assert_array_equal(s, t + stride)
    ratio = np.asarray(levels.sigma, np.float64) / np.asarray(levels.alpha, np.float64)
    shares = [lognormal_share(ratio[k + stride], ratio[k], -0.5, 1.2) if k % stride == 0 else 0 for k in range(20)]
    assert_shares(t, np.array(shares) / sum(shares))


def test_the_measure_has_the_papers_mean_and_std():
    measure = objectives.lognormal_measure()
    level = jd.Level(jnp.ones((3,)), jnp.exp(jnp.array([-1.1, 0.9, -3.1])))
    np.testing.assert_allclose(measure(level), [0.5, 0.8413447, 0.1586553], rtol=1e-5)


@pytest.mark.parametrize(
    ("schedule", "size"), [(jd.cosine(), jnp.hypot), (jd.karras(), lambda alpha, sigma: alpha), (jd.rectified_flow(), jnp.add)]
)
@pytest.mark.parametrize(("step", "a"), [(0, 1), (9, 1), (10, 2), (35, 4), (500, 12)])
def test_shrinking_is_that_of_geng_et_al_on_any_schedule(schedule, size, step, a):
    """`sigma_s = sigma_t (1 - (1 + 8 sigmoid(-sigma_t)) / 2^a)` in `sigma / alpha`, clean below 0; what stays, stays; a <= 12."""
    pairs = objectives.shrinking(schedule, 10, size=size)
    t, s = pairs(jnp.int32(step), jax.random.key(1), jnp.arange(1000), 2)
    assert t.sigma.shape == s.sigma.shape == (1000, 1)
    ratio = np.asarray(t.sigma, np.float64) / np.asarray(t.alpha, np.float64)
    closer = ratio * np.maximum(1 - (1 + 8 * np.exp(-ratio) / (1 + np.exp(-ratio))) / 2**a, 0)
    np.testing.assert_allclose(s.sigma / s.alpha, closer, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(size(s.alpha, s.sigma), size(t.alpha, t.sigma), rtol=1e-5)
    assert np.all(s.sigma / s.alpha < t.sigma / t.alpha)
    assert np.any(np.asarray(s.sigma) == 0) == (a < 4)  # 9 / 16 at most is taken off where a is 4
    assert ratio.max() > 20 * np.median(ratio)


def test_shrinking_takes_its_own_factor_and_sigmoid():
    t, s = objectives.shrinking(jd.karras(), 10, factor=4.0, k=2.0, b=0.5)(jnp.int32(0), jax.random.key(1), jnp.arange(100), 2)
    ratio = np.asarray(t.sigma, np.float64)
    closer = ratio * (1 - (1 + 2 / (1 + np.exp(0.5 * ratio))) / 4)
    np.testing.assert_allclose(s.sigma, np.hypot(1, ratio) / np.hypot(1, closer) * closer, rtol=1e-4)


def test_pairs_are_keyed_by_the_examples_index():
    for pairs in (objectives.steps_of(jd.grid(jd.cosine(), 16)), objectives.shrinking(jd.cosine(), 10)):
        pairs = jax.jit(pairs, static_argnums=3)
        whole, part = (pairs(jnp.int32(0), jax.random.key(1), index, 2) for index in (jnp.arange(40), jnp.arange(11, 30)))
        jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[11:30], b), whole, part)
        other, _ = pairs(jnp.int32(0), jax.random.key(2), jnp.arange(40), 2)
        assert np.any(other.sigma != whole[0].sigma)


def test_pairs_that_do_not_fit_are_said():
    with pytest.raises(ValueError, match="skip must be at least 1, got 0"):
        objectives.steps_of(jd.grid(jd.cosine(), 4), skip=0)
    for first, last in ((2, 12), (0, 8), (8, 4)):
        with pytest.raises(ValueError, match=rf"last must be first \({first}\) times a power of two, got {last}"):
            objectives.doubling(first, last, 100)
