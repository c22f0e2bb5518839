"""Distillation, progressive and guided, and its sampler: held to Gaussians, whose DDIM steps, flow and guidance are known."""

import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import MEAN, SCHEDULES, STD, along, ddim_end

import jaxdiff as jd
from jaxdiff import losses, objectives, oracles, samplers, training

each_schedule = pytest.mark.parametrize("schedule", ["cosine", "karras", "rectified_flow"])


def data(dtype=jnp.float64):
    return oracles.gaussian(jnp.array(MEAN, dtype), jnp.array(STD, dtype))


def nothing(batch, key):
    return None


def cast(tree, dtype):
    return jax.tree.map(lambda leaf: leaf.astype(dtype), tree)


def deviations(level):
    """Standard deviations of the Gaussian at levels `[...]`, `[..., 2]`."""
    alpha, sigma = (np.asarray(value, np.float64)[..., None] for value in (level.alpha, level.sigma))
    return np.hypot(alpha * STD, sigma)


def progressive_loss_by_hand(levels, x, level, stride, scale):
    """Which of the levels the examples are at, and their mean loss for the student `scale * x` with the weight 1."""
    first = np.argmin(np.abs(np.asarray(levels.sigma)[None] - np.asarray(level.sigma)), axis=1)
    t, m, s = (jax.tree.map(np.float64, levels[np.minimum(first + k * stride, 16)]) for k in range(3))
    x, ratio = np.float64(x), (s.sigma / t.sigma)[:, None]
    x_s = ddim_end(ddim_end(x, t, m), m, s)
    return first, np.mean((scale * x - (x_s - ratio * x) / (s.alpha[:, None] - ratio * t.alpha[:, None])) ** 2)


@functools.cache
def observed(every_level):
    """`step -> loss, x, level` of the progressive objective with the student `0.7 x`, and how it is seen."""
    seen = []

    def student(params, given, key):
        return lambda x, level: (seen.append((x, level)), params * x)[1]

    objective = objectives.progressive(
        student,
        lambda frozen, given: oracles.denoiser(frozen),
        jd.grid(jd.cosine(), 16),
        losses.x0_weight,
        condition=nothing,
        halvings=lambda step: step // 10,
        every_level=every_level,
    )
    batch = {"image": oracles.draw(data(jnp.float32), jax.random.key(1), 160), "index": jnp.arange(160)}

    def run(step):
        state = SimpleNamespace(step=step, frozen=data(jnp.float32))
        return objective(jnp.float32(0.7), state, batch, jax.random.key(2)), *seen.pop()

    return jax.jit(run)


@pytest.mark.parametrize("every_level", [False, True])
@pytest.mark.parametrize("step", [0, 9, 10, 25])
def test_progressive_draws_its_levels_evenly_and_takes_the_teachers_steps(every_level, step):
    """Every second level of the teacher's list, or all; a halving doubles the stride; the loss by hand at what was seen."""
    loss, x, level = observed(every_level)(jnp.int32(step))
    stride = 2 ** (step // 10)
    first, by_hand = progressive_loss_by_hand(jd.grid(jd.cosine(), 16), x, level, stride, 0.7)
    np.testing.assert_allclose(loss, by_hand, rtol=1e-4)
    expected = np.arange(0, 16, stride if every_level else 2 * stride)
    places, counts = np.unique(first, return_counts=True)
    np.testing.assert_array_equal(places, expected)
    assert np.max(np.abs(counts - 160 / len(expected))) <= 3


@pytest.mark.parametrize("steps", [1, 3, 12])
def test_progressive_wants_a_power_of_two(steps):
    with pytest.raises(ValueError, match=f"the number of steps must be a power of two above 1, got {steps}"):
        objectives.progressive(None, None, jd.grid(jd.cosine(), steps), losses.truncated_snr, condition=nothing)


LABEL, PLAIN = ([0.9, 0.1], [0.3, 0.6]), ([0.0, -0.2], [0.7, 0.5])
LOW, HIGH = 1.0, 4.0


def guided_teacher(frozen, given):
    label, plain = (oracles.denoiser(oracles.gaussian(*each)) for each in frozen)
    return jd.guide(label, plain, given[:, None])


def guided_exactly(x, level, scale):
    """The denoiser whose score is `scale * score of the label + (1 - scale) * score of all`, by Tweedie's formula."""
    label, plain = (oracles.score(oracles.gaussian(*each))(x, level) for each in (LABEL, PLAIN))
    return (x + level.sigma**2 * (scale * label + (1 - scale) * plain)) / level.alpha


def few_levels(t):
    """Three levels of the cosine schedule, each equally often."""
    return jd.cosine()(0.2 + 0.3 * jnp.floor(jnp.clip(t * 3, 0, 2.99)))


def head(params, given, key):
    """A gain and an offset for each level and each of two powers of the scale: enough for two guided Gaussians, along the axes."""

    def denoise(x, level):
        near = jnp.argmin(jnp.abs(few_levels(jnp.array([0.0, 0.4, 0.8])).sigma[None] - jnp.ravel(level.sigma)[:, None]), axis=1)
        powers = jnp.stack([jnp.ones_like(given), (given - 2.5) / 1.5], axis=1)
        gain, offset = (jnp.einsum("bpd,bp->bd", params[name][jnp.broadcast_to(near, given.shape)], powers) for name in params)
        return gain * x + offset

    return denoise


def test_a_student_of_guidance_learns_every_scale():
    """An affine head, from nothing: at both ends of the scales, in their middle, and not at scales beyond them by accident."""
    objective = objectives.guided(
        head, guided_teacher, few_levels, losses.x0_weight, condition=objectives.guidance_scales(LOW, HIGH)
    )
    optimizer = optax.adam(optax.cosine_decay_schedule(0.1, 800))
    step = training.train_step(objective, optimizer, {})

    def body(state, key):
        rows = {"image": oracles.draw(oracles.gaussian(*PLAIN), key, 128), "index": jnp.arange(128)}
        return step(state, rows, jax.random.key(1))

    start = training.initial_state({name: jnp.zeros((3, 2, 2)) for name in ("gain", "offset")}, optimizer, {}, (LABEL, PLAIN))
    state, metrics = jax.jit(lambda start: jax.lax.scan(body, start, jax.random.split(jax.random.key(0), 800)))(start)
    assert metrics["loss"][-1] < 1e-6 * metrics["loss"][0]

    @jax.jit
    def relative_error(scale, time):
        level, x = jd.cosine()(time), jax.random.normal(jax.random.key(3), (100, 2))
        right = guided_exactly(x, level, scale)
        error = head(state.params, jnp.full((100,), scale), None)(x, level) - right
        return jnp.sqrt(jnp.mean(error**2) / jnp.mean(right**2))

    assert max(float(relative_error(scale, time)) for scale in (LOW, 2.2, HIGH) for time in (0.2, 0.5, 0.8)) < 1e-2


def test_guidance_scales_are_uniform_and_each_examples_own():
    condition = objectives.guidance_scales(LOW, HIGH)
    index, key = jnp.arange(4000), jax.random.key(3)
    scales = np.asarray(condition({"index": index}, key))
    assert scales.shape == (4000,)
    assert LOW <= scales.min() < LOW + 0.01
    assert HIGH - 0.01 < scales.max() <= HIGH
    counts, _ = np.histogram(scales, bins=10, range=(LOW, HIGH))
    assert np.sum((counts - 400) ** 2 / 400) < 27.9  # the 0.999 quantile of chi-square with 9 degrees of freedom
    np.testing.assert_array_equal(condition({"index": index[7:20]}, key), scales[7:20])
    assert np.all(condition({"index": index}, jax.random.key(4)) != scales)
    assert np.all(objectives.guidance_scales(2.0, 2.0)({"index": index}, key) == 2)
    with pytest.raises(ValueError, match="guidance_scales: must have low <= high, got low = 3, high = 2"):
        objectives.guidance_scales(3.0, 2.0)


@each_schedule
def test_overshoot_goes_to_the_level_after_next_and_comes_back(schedule, float64):
    """Mean and variance of one step from a given x, by hand, at every step of the list; the last ends at the denoiser's x0."""
    levels, exact = jd.grid(SCHEDULES[schedule], 6), oracles.denoiser(data())
    sampler, num = samplers.overshoot(levels), 20000
    step = jax.jit(lambda x, memory, t, s: sampler.step(exact, x, memory, t, s, jax.random.key(5)))
    memory = sampler.init(jnp.zeros((1, 2)))
    for number in range(6):
        t, s, beyond = (levels[min(number + k, 6)] for k in range(3))
        x = np.asarray(t.alpha) * MEAN + deviations(t) * np.array([1.0, -2.0])
        moved, memory = step(jnp.broadcast_to(jnp.asarray(x)[None], (num, 2)), memory, t, s)
        mean = float(s.alpha / beyond.alpha) * ddim_end(x, t, beyond)
        std = np.sqrt(float(s.sigma**2 - (s.alpha * beyond.sigma / beyond.alpha) ** 2)) if number < 5 else 0
        np.testing.assert_allclose(np.mean(moved, 0), mean, rtol=1e-9, atol=5 * std / num**0.5 + 1e-12)
        np.testing.assert_allclose(np.std(moved, 0), std, rtol=0.03, atol=1e-9)
    assert memory == 6


@each_schedule
def test_overshoot_keeps_the_marginals_of_a_student_that_steps_along_the_flow(schedule):
    """Which is exact at any number of steps: the moments of 6 steps' samples are the data's, within their own error."""
    levels, num = jd.grid(SCHEDULES[schedule], 6), 20000
    student = along(data(jnp.float32), levels, 2)
    first = jnp.asarray(deviations(levels[0]), jnp.float32)[None] * jax.random.normal(jax.random.key(1), (num, 2))
    first = first + levels.alpha[0] * jnp.asarray(MEAN, jnp.float32)[None]
    sample = np.asarray(jax.jit(lambda x: jd.sample(jd.overshoot(levels), student, x, levels, jax.random.key(2)))(first))
    assert np.all(np.abs(np.mean(sample, 0) - MEAN) < 4 * STD / num**0.5)
    assert np.all(np.abs(np.std(sample, 0) / STD - 1) < 4 / (2 * num) ** 0.5)


def test_overshoot_with_one_step_is_ddim():
    levels, exact = jd.grid(jd.cosine(), 1), oracles.denoiser(data(jnp.float32))
    x = jax.random.normal(jax.random.key(1), (5, 2))
    one, other = (jd.sample(each, exact, x, levels, jax.random.key(0)) for each in (jd.overshoot(levels), jd.ddim()))
    np.testing.assert_array_equal(one, other)


def test_gradients_of_overshoot_in_x_and_levels_are_finite():
    exact = oracles.denoiser(data(jnp.float32))

    def total(x, levels):
        return jnp.sum(jd.sample(jd.overshoot(levels), exact, x, levels, jax.random.key(0)) ** 2)

    gradients = jax.jit(jax.grad(total, argnums=(0, 1)))(jnp.ones((3, 2)), jd.grid(jd.cosine(-10.0), 6))
    assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(gradients))
