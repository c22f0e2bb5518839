"""Consistency, distilled, trained and in continuous time: held to the flow of one Gaussian, which is its consistency function."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import PARAMETERIZATIONS

import jaxdiff as jd
from jaxdiff import losses, objectives, oracles, targets, training

WIDTH, MEAN, STD, STEPS = 16, 0.3, 0.6, 500  # values of an example, all of one law, so that a batch says more


def data(mean=MEAN, std=STD):
    return oracles.gaussian(jnp.full((WIDTH,), mean), std)


def heun(denoise, x, t, s):
    return jd.heun().step(denoise, x, (), t, s, None)[0]


def nothing(batch, key):
    return None


def wave(params, x, logsnr):
    """A gain and an offset that are polynomials of the angle of degree 5: all that the flow of one Gaussian needs."""
    u = jnp.arctan(jnp.exp(-logsnr / 2)) * 4 / jnp.pi - 1  # from -1 to 1
    legendre = jnp.stack([u**power for power in range(6)], axis=1) @ jnp.array(LEGENDRE, x.dtype)
    return (legendre @ params["gain"])[:, None] * x + (legendre @ params["offset"])[:, None]


LEGENDRE = np.stack([np.pad(c := np.polynomial.legendre.leg2poly(row), (0, 6 - len(c))) for row in np.eye(6)], axis=1)
NOTHING_YET = {"gain": np.zeros(6, np.float32), "offset": np.zeros(6, np.float32)}


def student(params, given, key):
    return jd.denoiser(functools.partial(wave, params), jd.predict_v)


def taught(frozen, given):
    return oracles.denoiser(frozen)


def angle(level):
    return jnp.arctan(level.sigma / level.alpha)


def even(power):
    """v's weight to a power, over the step's angle: the gradient is the same with ever more levels."""
    return lambda t, s: losses.v_weight(t) ** power / (angle(t) - angle(s))


def distilled(solver, num):
    pairs = objectives.steps_of(jd.grid(jd.cosine(), num))
    return objectives.consistency(student, taught, pairs, even(1), condition=nothing, solver=solver)


def trained_alone():
    pairs = objectives.steps_of(jd.grid(jd.cosine(), 512), objectives.doubling(8, 512, STEPS // 2))
    return objectives.consistency(student, None, pairs, even(0.5), condition=nothing)


def continuous(teacher):
    return objectives.continuous_consistency(student, teacher, jd.cosine(), condition=nothing, warmup_steps=100, floor=10.0)


# Objective, size of the batch, rate and number of steps of gradient descent, under which these weights make the semi-gradient of
# any linear head a contraction (Adam does not). With N of Euler's steps, or data's own, the fixed point is 1.5 / N of the std from
# the flow, so N is large; without a teacher the rest is the gradient's noise, and the batch is. A floor of 10 divides the slope;
# the rate makes up.
LEARNERS = {
    "distillation": (lambda: distilled(targets.euler, 256), 32, 0.1, STEPS),
    "distillation_heun": (lambda: distilled(heun, 128), 32, 0.1, STEPS),
    "training": (trained_alone, 256, 0.1, STEPS),
    "continuous_distillation": (lambda: continuous(taught), 32, 1.0, 2 * STEPS),
    "continuous_training": (lambda: continuous(None), 128, 1.0, 2 * STEPS),
}


NOISE = np.random.default_rng(8).normal(size=(2, 256, WIDTH))


@jax.jit
def flow_errors(params):
    """The root of the mean square of the student less the flow, over the data's std, at levels from end to end."""
    x0, noise = jnp.asarray(MEAN + STD * NOISE[0], jnp.float32), jnp.asarray(NOISE[1], jnp.float32)

    def error(time):
        level = jd.cosine()(time)
        x = jd.diffuse(x0, noise, level)
        return jnp.sqrt(jnp.mean((student(params, None, None)(x, level) - oracles.flow_map(data())(x, level)) ** 2)) / STD

    return jax.vmap(error)(jnp.linspace(0.0, 1.0, 21))


@pytest.mark.parametrize("name", LEARNERS)
def test_a_student_with_an_optimal_head_learns_the_flow(name):
    """From nothing, through train_step, to 1e-2 of the data's std at the worst of all levels."""
    build, size, rate, steps = LEARNERS[name]
    optimizer = optax.sgd(optax.cosine_decay_schedule(rate, steps))
    step = training.train_step(build(), optimizer, {})

    def body(state, key):
        rows = {"image": oracles.draw(data(), key, size), "index": jnp.arange(size)}
        return step(state, rows, jax.random.key(1))[0], None

    start = training.initial_state(jax.tree.map(jnp.asarray, NOTHING_YET), optimizer, {}, data())
    state, _ = jax.jit(lambda start: jax.lax.scan(body, start, jax.random.split(jax.random.key(0), steps)))(start)
    before, after = (float(jnp.max(flow_errors(each.params))) for each in (start, state))
    assert before > 0.3
    assert after < 1e-2


def bent(p, x, level):
    """A denoiser that is x where there is no noise and is not affine in x, for which data is no worse a teacher than the exact."""
    return level.alpha * x + level.sigma * jnp.tanh(p[0] * x + p[1] * level.sigma)


def expected_gradient(teacher_of):
    """A function of times and num, compiled once.

    Of consistency at steps of 1 / num, over data and noise of one Gaussian, by Gauss-Hermite quadrature.
    """
    nodes, weights = np.polynomial.hermite_e.hermegauss(40)
    z, noise = (jnp.asarray(axis.reshape(-1, 1)) for axis in np.meshgrid(nodes, nodes))
    share = jnp.asarray(np.outer(weights, weights).reshape(-1, 1) / (2 * np.pi))
    x0, one = MEAN + STD * z, oracles.gaussian(jnp.array([MEAN]), jnp.array(STD))

    def loss(p, time, num):
        t, s = jd.cosine()(time), jd.cosine()(time - 1 / num)
        x = jd.diffuse(x0, noise, t)
        target = targets.ahead(functools.partial(bent, p), teacher_of(x0, one), s)(x, t)
        return jnp.sum(share * (bent(p, x, t) - jax.lax.stop_gradient(target)) ** 2) * even(0)(t, s)

    gradients = jax.vmap(jax.grad(loss), in_axes=(None, 0, None))
    return jax.jit(lambda times, num: jnp.mean(gradients(jnp.array([0.8, -0.5]), times, num), axis=0))


def test_trainings_gradient_becomes_distillations_with_ever_more_levels(float64):
    """As 1 / N (Song et al. 2023, theorem 2), where neither vanishes: for squared errors and the exact teacher."""
    times, counts = jnp.linspace(0.2, 0.95, 8), np.array([16, 32, 64, 128, 256])
    of_data, of_teacher = map(expected_gradient, (lambda x0, one: targets.data(x0), lambda x0, one: oracles.denoiser(one)))
    alone, taught = ([np.asarray(gradient(times, num)) for num in counts] for gradient in (of_data, of_teacher))
    apart = [np.linalg.norm(a - b) for a, b in zip(alone, taught, strict=True)]
    slopes = np.diff(np.log2(apart)) / np.diff(np.log2(counts))
    assert np.all(np.abs(slopes + 1) < 0.2)
    assert apart[-1] < 0.0005 * np.linalg.norm(taught[-1])
    assert apart[0] > 0.004 * np.linalg.norm(taught[0])


def test_weights_of_pairs_by_hand():
    """Of a step from 0.7 to 0.6 of rectified flow, `sigma / alpha` from 7 / 3 to 3 / 2."""
    t, s = jd.rectified_flow()(0.7), jd.rectified_flow()(0.6)
    np.testing.assert_allclose(objectives.inverse_gap(t, s), 1.2, rtol=1e-5)
    np.testing.assert_allclose(objectives.of_noisier(losses.noise_weight)(t, s), 9 / 49, rtol=1e-5)


LEAST = 0.002
CLEANEST = {  # alpha of the level sigma = LEAST * alpha on three schedules
    "cosine": 1 / np.hypot(1, LEAST),
    "karras": 1.0,
    "rectified_flow": 1 / (1 + LEAST),
}


def loud(x, logsnr):
    return 3 * jnp.sin(5 * x) + logsnr[:, None]


@pytest.mark.parametrize("schedule", CLEANEST)
@pytest.mark.parametrize("prediction", [*PARAMETERIZATIONS, "edm_with_its_own"])
def test_a_bounded_denoiser_is_x_at_the_least_noise_whatever_its_network_says(schedule, prediction, float64):
    own = prediction == "edm_with_its_own"
    kind = jd.edm(0.5, LEAST) if own else jd.bounded(PARAMETERIZATIONS[prediction][0], LEAST)
    alpha = jnp.float64(CLEANEST[schedule])
    x = jax.random.normal(jax.random.key(1), (6, 2))
    at = jd.denoiser(loud, kind)(x, jd.Level(alpha, LEAST * alpha))
    np.testing.assert_allclose(at, x / alpha, rtol=1e-12)
    plain = jd.denoiser(loud, jd.edm(0.5) if own else PARAMETERIZATIONS[prediction][0])(x, jd.Level(alpha, LEAST * alpha))
    assert np.min(np.abs(plain - x / alpha)) > 1e-6  # score's is 4e-6 of its network's output


@pytest.mark.parametrize("prediction", PARAMETERIZATIONS)
def test_a_bounded_denoiser_blends_x_with_the_denoiser_as_it_was(prediction, float64):
    """Song et al. (2023), eq. 25, in y = x / alpha at `sigma / alpha`: nearly all of the denoiser where the noise is large."""
    x, kind = jax.random.normal(jax.random.key(1), (6, 2)), PARAMETERIZATIONS[prediction][0]
    for alpha, ratio in ((1.0, 0.01), (0.9, 0.5), (0.2, 3.0), (1.0, 80.0)):
        level = jd.Level(jnp.float64(alpha), jnp.float64(alpha * ratio))
        was, now = (jd.denoiser(loud, each)(x, level) for each in (kind, jd.bounded(kind, LEAST, 0.7)))
        skip, out = (0.49 / ((ratio - LEAST) ** 2 + 0.49), (ratio - LEAST) / np.sqrt((ratio - LEAST) ** 2 + 0.49))
        np.testing.assert_allclose(now, skip * x / alpha + out * was, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(now, was, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("prediction", ["v", "velocity", "noise", "edm"])
def test_without_bounds_these_are_x_where_the_noise_ends(prediction, float64):
    x, alpha = jax.random.normal(jax.random.key(1), (6, 2)), jnp.float64(0.8)
    for sigma in (1e-4, 1e-8):
        at = jd.denoiser(loud, PARAMETERIZATIONS[prediction][0])(x, jd.Level(alpha, jnp.float64(sigma)))
        np.testing.assert_allclose(at, x / alpha, atol=100 * sigma)


def test_pseudo_huber_is_that_of_song_and_dhariwal_over_the_root_of_the_size(float64):
    a, b = jax.random.normal(jax.random.key(1), (2, 7, 4, 3))
    size = 12
    for c in (0.00054, 1.0, 30.0):
        norm2 = np.sum(np.asarray(a - b) ** 2, axis=(1, 2))
        theirs = np.sqrt(norm2 + (c * size**0.5) ** 2) - c * size**0.5
        np.testing.assert_allclose(losses.pseudo_huber(c)(a, b), theirs / size**0.5, rtol=1e-10)
    near = losses.pseudo_huber()(a, a + 1e-6)
    np.testing.assert_allclose(near, 1e-12 / (2 * 0.00054), rtol=1e-3)
    slope = jax.grad(lambda a: jnp.sum(losses.pseudo_huber()(a, b)))
    np.testing.assert_array_equal(slope(b), 0)
