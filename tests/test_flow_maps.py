"""Flow maps: identities in the step, unbiased targets, and students that learn the flow of one Gaussian."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import MEAN, STD, clouds
from test_consistency import LEGENDRE, nothing
from test_consistency import MEAN as MEAN_OF_ONE
from test_consistency import STD as SPREAD
from test_consistency import data as one_law

import jaxdiff as jd
from jaxdiff import losses, objectives, oracles, samplers, targets, training

SIZES = {"cosine": jnp.hypot, "karras": lambda alpha, sigma: alpha, "rectified_flow": jnp.add}
SCHEDULES = {"cosine": jd.cosine(), "karras": jd.karras(), "rectified_flow": jd.rectified_flow()}
each_schedule = pytest.mark.parametrize("schedule", SCHEDULES)


def wavy(x, t, s):
    """An average denoiser that is no flow's: of any value, smooth, and x / alpha nowhere."""
    one, other = (jnp.arctan2(level.sigma, level.alpha) for level in (t, s))
    return jnp.tanh(x * (1 + other)) * jnp.cos(2 * one) + 0.3 * one * other


def interval(schedule, share=0.5, equal=0.25, size=24):
    drawn = objectives.any_intervals(schedule, equal=equal, share=lambda step: share)
    each = drawn(jnp.int32(0), jax.random.key(3), jnp.arange(size), 2)
    return jax.tree.map(lambda leaf: leaf.astype(jax.dtypes.canonicalize_dtype(float)), each)  # times are float32


def noised(data, level, size=24, seed=5):
    x0 = oracles.draw(data, jax.random.key(seed), size)
    noise = jax.random.normal(jax.random.key(seed + 1), x0.shape, x0.dtype)
    return x0, jd.diffuse(x0, noise, level)


@each_schedule
def test_two_jumps_end_where_one_does(schedule, float64):
    """Of any network: by `transfer`, first to m and from there to s, at intervals that end in noise or without."""
    kind = SCHEDULES[schedule]
    for times in ((0.9, 0.4, 0.1), (0.9, 0.2, None), (0.7, None, None)):
        t, m, s = (kind(time) if time is not None else jd.Level(jnp.ones(()), jnp.zeros(())) for time in times)
        x = jax.random.normal(jax.random.key(0), (6, 2))
        x_m = jd.transfer(x, wavy(x, t, m), t, m)
        ends = x_m if times[1] is None else jd.transfer(x_m, wavy(x_m, m, s), m, s)
        target = targets.two_jumps(wavy, wavy, m, s)(x, t)
        np.testing.assert_allclose(jd.transfer(x, target, t, s), ends, rtol=1e-9, atol=1e-12)


@each_schedule
def test_a_step_of_data_and_a_jump_become_mean_flow_as_the_step_vanishes(schedule, float64):
    """alpha-Flow's target less the network, over the step, nears MeanFlow's of any network with order 1 (Zhang et al. 2025)."""
    kind, size = SCHEDULES[schedule], SIZES[schedule]
    teacher = oracles.denoiser(clouds())
    shares = np.array([0.04, 0.02, 0.01, 0.005])
    drawn = [interval(kind, share, equal=0.0) for share in shares]
    x = noised(clouds(), drawn[0].t)[1]
    here = wavy(x, drawn[0].t, drawn[0].s)
    limit = objectives.mean_flow(size)(wavy, teacher, drawn[0])(x, drawn[0].t) - here
    moved = [(objectives.alpha_flow(wavy, teacher, each)(x, each.t) - here) / step_of(each) for each in drawn]
    errors = [np.median(np.abs(each - limit)) for each in moved]
    slopes = np.diff(np.log(errors)) / np.diff(np.log(shares))
    assert np.all(np.abs(slopes - 1) < 0.15), (errors, slopes)


def step_of(each):
    """The step's share of the rise of `alpha / sigma` from t to s, over `sigma_s / sigma_t`."""
    t, m, s = (level.alpha / level.sigma for level in each[:3])
    return (m - t) / (s - t) * each.t.sigma / each.s.sigma


@pytest.mark.parametrize("improved", [False, True])
def test_mean_flow_on_straight_levels_is_that_of_velocities(improved, float64):
    """`u_target = v - (t - s) (w du/dx + du/dt)`, by central differences; w is v (Geng et al. 2025a), or one's own (2025b)."""
    each = interval(jd.rectified_flow())
    x0, x = noised(clouds(), each.t)
    t, s = each.t.sigma, each.s.sigma

    def velocity(x, t):
        return (x - wavy(x, jd.Level(1 - t, t), each.s)) / t

    v, h = (x - x0) / t, 1e-5
    w = (x - wavy(x, each.t, each.t)) / t if improved else v
    derivative = (velocity(x + h * w, t + h) - velocity(x - h * w, t - h)) / (2 * h)
    wanted = v - (t - s) * derivative
    method = objectives.improved_mean_flow if improved else objectives.mean_flow
    target = method(jnp.add)(wavy, targets.data(x0), each)(x, each.t)
    np.testing.assert_allclose((x - target) / t, wanted, rtol=1e-6, atol=1e-6)


def test_intervals_are_drawn_as_they_say():
    """Dyadic ones by hand: of one over a power of two, from multiples of it; others by their shares and their law."""
    size, straight = 20_000, jd.rectified_flow()
    drawn = objectives.dyadic_intervals(straight, finest=4, equal=0.5)(jnp.int32(0), jax.random.key(1), jnp.arange(size), 2)
    t, m, s = (np.asarray(level.sigma / (level.alpha + level.sigma)).ravel() for level in drawn[:3])
    jumps, smallest = t - s > 1e-3, np.asarray(drawn.smallest).ravel()
    number = np.round(1 / (t - s)[jumps])
    assert set(number) == {1, 2, 4}
    ends = t[jumps] * number
    np.testing.assert_allclose(ends, np.round(ends), atol=5e-3)
    np.testing.assert_allclose(m[jumps], (t + s)[jumps] / 2, atol=1e-3)
    np.testing.assert_array_equal(smallest[jumps], number == 4)
    assert abs(np.mean(jumps) - 0.5) < 0.02
    assert all(abs(np.mean(number == n) - 1 / 3) < 0.03 for n in (1, 2, 4))
    times = objectives.logit_normal(-0.4, 1.5)(jnp.linspace(0.001, 0.999, 999))
    np.testing.assert_allclose(np.quantile(np.log(times / (1 - times)), [0.1587, 0.5, 0.8413]), [-1.9, -0.4, 1.1], atol=0.01)


def test_halves_of_the_shortest_jumps_of_shortcut_models_are_of_no_length(float64):
    """As nothing teaches them (Frans et al. 2024): two steps of the network's own denoiser, by `targets.two_steps`."""
    each = interval(jd.cosine(), equal=0.0)
    x = noised(clouds(), each.t)[1]
    halved, short = (
        objectives.shortcut(wavy, targets.data(x), each._replace(smallest=jnp.array(smallest)))(x, each.t)
        for smallest in (False, True)
    )
    np.testing.assert_allclose(short, targets.two_steps(jd.instantaneous(wavy), each.m, each.s)(x, each.t), rtol=1e-12)
    np.testing.assert_allclose(halved, targets.two_jumps(wavy, wavy, each.m, each.s)(x, each.t), rtol=1e-12)
    assert np.max(np.abs(halved - short)) > 1e-2


def test_consistency_training_is_the_case_of_clean_s(float64):
    """A step of data and a jump to clean is `targets.ahead` of the network that jumps to clean."""
    t, m, clean = jd.cosine()(0.8), jd.cosine()(0.7), jd.Level(jnp.ones(()), jnp.zeros(()))
    x0, x = noised(clouds(), t)
    jumped = targets.two_jumps(lambda x, t, s: x0, wavy, m, clean)(x, t)
    np.testing.assert_allclose(jumped, targets.ahead(jd.towards(wavy, clean), targets.data(x0), m)(x, t), rtol=1e-12)
    levels = jd.grid(jd.cosine(), 4)
    ends = [
        jd.sample(sampler, denoise, x, levels, jax.random.key(0))
        for sampler, denoise in (
            (samplers.flow_map(1.0), wavy),
            (jd.consistency(), lambda x, t: wavy(x, t, clean)),
        )
    ]
    np.testing.assert_allclose(*ends, rtol=1e-12)


def test_flow_map_sampler_follows_the_flow_in_any_number_of_steps(float64):
    """With the exact average denoiser of a mixture, to the end of the flow; with fresh noise, to other samples."""
    average, flow = oracles.average_denoiser(clouds()), oracles.flow_map(clouds())
    x = jax.random.normal(jax.random.key(0), (8, 2))
    for steps in (1, 2, 4):
        levels = jd.grid(jd.cosine(), steps)
        x0 = jd.sample(samplers.flow_map(), average, levels.sigma[0] * x, levels, jax.random.key(1))
        np.testing.assert_allclose(x0, flow(levels.sigma[0] * x, levels[0]), atol=1e-6)
    again = jd.sample(samplers.flow_map(0.5), average, levels.sigma[0] * x, levels, jax.random.key(1))
    assert np.min(np.max(np.abs(again - x0), axis=1)) > 1e-3
    with pytest.raises(ValueError, match="flow_map: must have 0 <= gamma <= 1, got gamma = 2"):
        samplers.flow_map(2)


@pytest.mark.parametrize("gamma", [0.0, 0.6, 1.0])
def test_exact_jumps_with_any_share_of_fresh_noise_draw_the_data(gamma):
    """Of one Gaussian in four steps, to within four Monte Carlo errors of mean and std (Kim et al. 2023, gamma-sampling)."""
    data, levels, num = oracles.gaussian(MEAN, STD), jd.grid(jd.cosine(), 4), 40_000
    x = levels.sigma[0] * jax.random.normal(jax.random.key(0), (num, 2))
    x0 = jd.sample(samplers.flow_map(gamma), oracles.average_denoiser(data), x, levels, jax.random.key(1))
    assert np.all(np.abs(np.mean(x0, axis=0) - MEAN) < 4 * STD / num**0.5)
    assert np.all(np.abs(np.std(x0, axis=0) / STD - 1) < 4 / (2 * num) ** 0.5)


METHODS = {
    "mean_flow": lambda size: objectives.mean_flow(size),
    "improved_mean_flow": lambda size: objectives.improved_mean_flow(size),
    "shortcut": lambda size: objectives.shortcut,
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("schedule", ["cosine", "rectified_flow"])
def test_with_the_exact_denoiser_targets_are_the_exact_average(method, schedule, float64):
    """On a mixture, at the exact average denoiser: each method's target is the network itself, so its loss is zero."""
    each = interval(SCHEDULES[schedule], equal=0.0)
    average, exact = oracles.average_denoiser(clouds()), oracles.denoiser(clouds())
    x = noised(clouds(), each.t)[1]
    target = METHODS[method](SIZES[schedule])(average, exact, each)(x, each.t)
    np.testing.assert_allclose(target, average(x, each.t, each.s), atol=2e-5)


@pytest.mark.parametrize("method", METHODS)
def test_with_data_the_expected_gradient_is_zero_at_the_exact_average(method):
    """On one Gaussian, within four Monte Carlo errors, for gradients along four features; beside it, it is far from zero."""
    each, data = interval(jd.cosine(), equal=0.25, size=40_000), oracles.gaussian(MEAN, STD)
    x0, x = noised(data, each.t, 40_000)
    average = oracles.average_denoiser(data)
    features = jnp.stack([jnp.ones_like(x), x, jnp.cos(3 * x), each.s.sigma * x**2])

    def gradients(network):
        made = METHODS[method](jnp.hypot)(network, targets.data(x0), each)(x, each.t)
        target = jnp.where(each.t.sigma == each.s.sigma, x0, made)
        sides = losses.v_weight(each.t) * (network(x, each.t, each.s) - target)
        return sides[None] * features

    def errors(network):
        each = np.asarray(jax.jit(lambda: gradients(network))()).mean(axis=2)
        return np.abs(each.mean(axis=1)) / (each.std(axis=1) / len(x) ** 0.5)

    assert np.all(errors(average) < 4)
    assert np.max(errors(lambda x, t, s: average(x, t, s) + 0.1 * t.sigma)) > 10


def jump_wave(params, x, logsnr, given, key):
    """A gain and an offset that are polynomials of both angles of degree 5: all that the flow of one Gaussian needs."""

    def legendre(logsnr):
        u = jnp.arctan(jnp.exp(-logsnr / 2)) * 4 / jnp.pi - 1
        return jnp.stack([u**power for power in range(6)], axis=1) @ jnp.array(LEGENDRE, x.dtype)

    both = legendre(logsnr)[:, :, None] * legendre(given["until"])[:, None]
    gain, offset = (jnp.sum(both * params[name][None], axis=(1, 2))[:, None] for name in ("gain", "offset"))
    return gain * x + offset


def jumper(params, given, key):
    return objectives.conditional_average(jump_wave, jd.predict_v, params, {}, key)


LEARNERS = {  # the method, how intervals are drawn, the rate of gradient descent, and the largest error
    "mean_flow": (objectives.mean_flow(), {"equal": 0.25}, 0.3, 0.013),
    "improved_mean_flow": (objectives.improved_mean_flow(), {"equal": 0.5}, 0.3, 0.013),
    "alpha_flow": (objectives.alpha_flow, {"equal": 0.25, "share": objectives.annealed(640)}, 0.3, 0.013),
    "shortcut": (objectives.shortcut, {"equal": 0.25, "share": lambda step: 0.5}, 1.0, 0.03),
}
STEPS, SIZE = 800, 512


@pytest.mark.parametrize("name", LEARNERS)
def test_a_student_with_an_optimal_head_learns_the_flow_from_data(name):
    """From nothing, through train_step, as far as consistency training to clean, and from all t to all s; its average counts."""
    method, draws, rate, largest = LEARNERS[name]
    intervals = objectives.any_intervals(jd.cosine(), **draws)
    objective = objectives.flow_map(jumper, method, intervals, losses.v_weight, condition=nothing)
    optimizer, decay = optax.sgd(rate), {"ema": 0.995}
    step = training.train_step(objective, optimizer, decay)

    def body(state, key):
        rows = {"image": oracles.draw(one_law(), key, SIZE), "index": jnp.arange(SIZE)}
        return step(state, rows, jax.random.key(1))[0], None

    start = training.initial_state({name: jnp.zeros((6, 6)) for name in ("gain", "offset")}, optimizer, decay)
    state, _ = jax.jit(lambda start: jax.lax.scan(body, start, jax.random.split(jax.random.key(0), STEPS)))(start)
    before, after = (float(jnp.max(flow_errors(each.ema["ema"]))) for each in (start, state))
    assert before > 0.3
    assert after < largest


@jax.jit
def flow_errors(params):
    """The root of the mean square of where the student jumps less where the flow ends, over the data's std, from all t to all s."""
    x0, noise = (jax.random.normal(jax.random.key(seed), (256, 16)) for seed in (0, 1))

    def error(times):
        t, s = (jd.cosine()(time) for time in times)
        x = jd.diffuse(MEAN_OF_ONE + SPREAD * x0, noise, t)
        jumped = jd.transfer(x, jumper(params, None, None)(x, t, s), t, s)
        return jnp.sqrt(jnp.mean((jumped - oracles.flow_map(one_law())(x, t, s)) ** 2)) / SPREAD

    times = np.linspace(0.0, 1.0, 11, dtype=np.float32)
    pairs = jnp.array([(t, s) for t in times for s in times if s <= t])
    return jax.lax.map(error, pairs)
