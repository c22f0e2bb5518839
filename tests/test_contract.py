"""The tables: every parameterization, weight and sampler against every property that it must have."""

import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import DETERMINISTIC, GUIDANCES, PARAMETERIZATIONS, SAMPLERS, SCHEDULES, clouds

import jaxdiff as jd
from jaxdiff import losses, oracles, process, targets

ENDS = (0.0, 1e-3, 0.3, 0.7, 1 - 1e-3, 1.0)
each_parameterization = pytest.mark.parametrize("prediction", PARAMETERIZATIONS)
each_schedule = pytest.mark.parametrize("schedule", SCHEDULES)
each_sampler = pytest.mark.parametrize("sampler", SAMPLERS)


def example(schedule, times):
    """x0, noise and level at the times, [T, 5, 4]."""
    return example_of(schedule, times, jax.dtypes.canonicalize_dtype(float))


@functools.cache
def example_of(schedule, times, dtype):
    x0, noise = np.random.default_rng(0).normal(size=(2, len(times), 5, 4)).astype(dtype)
    return jnp.asarray(x0), jnp.asarray(noise), jax.jit(lambda: SCHEDULES[schedule](jnp.array(times)).expand(3))()


@functools.cache
def grid(schedule, num_steps):
    """A list of levels in float32, arrays of numpy."""
    return jax.tree.map(np.asarray, jax.jit(lambda: jd.grid(schedule, num_steps))())


COSINE, TO_MINUS_10 = SCHEDULES["cosine"], jd.cosine(-10.0)


def normal(*shape):
    return np.random.default_rng(1).normal(size=shape).astype(np.float32)


@each_parameterization
@each_schedule
def test_own_weight_times_out_squared_is_one(prediction, schedule, float64):
    parameterization, weight, _ = PARAMETERIZATIONS[prediction]
    level = SCHEDULES[schedule](jnp.linspace(0, 1, 101))
    np.testing.assert_allclose(weight(level) * parameterization(level).out ** 2, 1, rtol=1e-9)


@each_parameterization
@each_schedule
def test_the_right_output_gives_back_x0(prediction, schedule, float64):
    parameterization, _, right = PARAMETERIZATIONS[prediction]
    x0, noise, level = example(schedule, ENDS)
    output = right(x0, noise, level.alpha, level.sigma)
    denoise = jd.denoiser(lambda x, logsnr: output, parameterization)
    np.testing.assert_allclose(denoise(jd.diffuse(x0, noise, level), level), x0, rtol=1e-6, atol=1e-6)


@each_parameterization
@each_schedule
def test_own_weight_makes_the_plain_error_of_the_output(prediction, schedule, float64):
    """The weighted x0 loss of any network equals the squared error of its output to the right one, by the papers' formulas."""
    parameterization, weight, right = PARAMETERIZATIONS[prediction]
    x0, noise, level = example(schedule, ENDS[1:-1])
    output = jnp.asarray(np.random.default_rng(5).normal(size=x0.shape))
    denoise = jd.denoiser(lambda x, logsnr: output, parameterization)
    weighted = weight(level).ravel() * losses.squared_error(denoise(jd.diffuse(x0, noise, level), level), x0)
    plain = losses.squared_error(output, right(x0, noise, level.alpha, level.sigma))
    np.testing.assert_allclose(weighted, plain, rtol=1e-6)


NORMAL = np.array([0.3, -0.2]), np.array([0.5, 0.25])  # mean and std


@functools.cache
def round_trip(prediction):
    """From x0, noise and level: the loss of the exact denoiser as a network, its floor, and what the network and it denoise."""
    parameterization, weight, _ = PARAMETERIZATIONS[prediction]
    data = oracles.gaussian(*NORMAL)
    exact = oracles.denoiser(data)

    def losses_and_images(x0, noise, level):
        skip, out, scale = parameterization(level)
        denoise = jd.denoiser(lambda x, logsnr: (exact(x / scale, level) - skip * x / scale) / out, parameterization)
        levels = jd.Level(*(jnp.full((len(x0), 1), value) for value in (level.alpha, level.sigma)))
        loss = jd.regression_loss(denoise, targets.data(x0), x0, levels, jax.random.key(2), weight)
        variance = data.stds[0] ** 2
        floor = weight(level) * jnp.mean(variance * level.sigma**2 / (level.alpha**2 * variance + level.sigma**2))
        x = jd.diffuse(x0, noise, levels)
        return loss, floor, denoise(x, level), exact(x, level)

    return jax.jit(losses_and_images)


@each_parameterization
@each_schedule
def test_any_denoiser_survives_the_round_trip_through_a_network(prediction, schedule, float64):
    """The exact denoiser's output as a network's, and back: with the loss at its closed-form floor."""
    random = np.random.default_rng(0)
    x0, noise = NORMAL[0] + NORMAL[1] * random.normal(size=(4000, 2)), random.normal(size=(4000, 2))
    for time in jnp.array([0.1, 0.5, 0.9]):
        loss, floor, denoised, exact = round_trip(prediction)(x0, noise, SCHEDULES[schedule](time))
        assert abs(np.mean(loss) - floor) < 5 * np.std(loss) / loss.size**0.5
        np.testing.assert_allclose(denoised, exact, rtol=1e-7, atol=1e-7)


@functools.cache
def scaled_loss(prediction, dtype):
    """The loss, and its gradient in the scale, of a network that multiplies by a scale and computes in `dtype`."""
    parameterization, weight, _ = PARAMETERIZATIONS[prediction]

    def loss(scale, x0, noise, level):
        denoise = jd.denoiser(lambda x, logsnr: (scale * x + jnp.sin(logsnr)[:, None, None]).astype(dtype), parameterization)
        assert denoise(jd.diffuse(x0, noise, level), level).dtype == jnp.float32
        return jnp.mean(jd.regression_loss(denoise, targets.data(x0), x0, level, jax.random.key(1), weight))

    return jax.jit(jax.value_and_grad(loss))


@each_parameterization
@each_schedule
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_no_nan_at_both_ends(prediction, schedule, dtype):
    assert np.isfinite(scaled_loss(prediction, dtype)(jnp.float32(0.5), *example(schedule, ENDS))).all()


@each_parameterization
def test_loss_is_zero_at_the_optimum_and_the_gradient_stops_at_the_target(prediction):
    parameterization, weight, right = PARAMETERIZATIONS[prediction]
    x0, noise, level = example("cosine", ENDS[1:-1])
    x = jd.diffuse(x0, noise, level)

    def loss(student_scale, target_scale):
        return jnp.sum(
            jd.regression_loss(
                lambda x, level: student_scale * x, lambda x, level: target_scale * x, x0, level, jax.random.key(0), weight
            )
        )

    assert loss(0.5, 0.5) == 0
    assert loss(0.5, 0.6) > 0
    student, target = jax.grad(loss, argnums=(0, 1))(jnp.float32(0.5), jnp.float32(0.6))
    assert student != 0
    assert target == 0
    output = right(x0, noise, level.alpha, level.sigma)
    denoise = jd.denoiser(lambda x, logsnr: output, parameterization)
    np.testing.assert_allclose(losses.squared_error(denoise(x, level), x0), 0, atol=1e-4)


def run(sampler, x, levels, key):
    return jd.sample(SAMPLERS[sampler], oracles.denoiser(clouds()), x, levels, key)


@functools.cache
def compiled(sampler) -> Any:
    """`run` of a sampler: one program for all tests that draw samples of one shape."""
    return jax.jit(functools.partial(run, sampler))


@each_sampler
@pytest.mark.parametrize("schedule", ["cosine", "linear", "karras", "rectified_flow"])
def test_sampler_ends_at_clean_finite_data(sampler, schedule):
    levels = grid(SCHEDULES[schedule], 64)
    with jax.debug_nans(True):
        x0 = compiled(sampler)(levels.sigma[0] * normal(256, 2), levels, jax.random.key(0))
    means, stds = (np.asarray(values) for values in (clouds().means, clouds().stds))
    nearest = np.linalg.norm(np.asarray(x0)[:, None] - means, axis=-1) / stds[:, 0]
    assert np.quantile(nearest.min(-1), 0.99) < 5


NETWORKS = [(number, rounded) for number in range(len(PARAMETERIZATIONS)) for rounded in (False, True)]


def network(number, rounded):
    """The exact denoiser of the clouds as a network of the parameterization of that number, and if so in bfloat16's precision."""
    exact, each = oracles.denoiser(clouds()), [parameterization for parameterization, *_ in PARAMETERIZATIONS.values()]

    def parameterization(level):
        return jax.tree.map(lambda *values: jnp.stack(values)[number], *(one(level) for one in each))

    def precise(values):
        return jnp.where(rounded, jax.lax.reduce_precision(values, exponent_bits=8, mantissa_bits=7), values)

    def predict(scaled, logsnr):
        level = process.from_logsnr(logsnr).expand(2)
        skip, out, scale = parameterization(level)
        scaled = precise(scaled)
        return precise((exact(scaled / scale, level) - skip * scaled / scale) / out)

    return jd.denoiser(predict, parameterization)


@each_sampler
def test_every_parameterization_of_a_network_is_sampled(sampler):
    """To within the network's precision: the worst case divides bfloat16's error by a small alpha."""

    def end(denoise, x, levels):
        return jd.sample(SAMPLERS[sampler], jd.clip(denoise, -2, 2), x, levels, jax.random.key(0))

    @jax.jit
    def exact_and_each(x, levels, *networks):
        each = jax.vmap(lambda number, rounded: end(network(number, rounded), x, levels))(*networks)
        return end(oracles.denoiser(clouds()), x, levels), each

    with jax.debug_nans(True):
        networks = map(np.array, zip(*NETWORKS, strict=True))
        exact, ends = exact_and_each(normal(128, 2), grid(TO_MINUS_10, 48), *networks)
    assert ends.dtype == jnp.float32
    errors = np.median(np.linalg.norm(np.asarray(ends) - np.asarray(exact), axis=-1), axis=-1)
    assert np.all(errors < np.where(np.array(NETWORKS)[:, 1], 0.3, 1e-3))


def guided(name, scale, dtype=jnp.float32):
    one = [1.0, 0.0, 0.0]
    label, plain = (
        jd.denoiser(
            lambda x, logsnr, d=d: oracles.denoiser(d)(x, process.from_logsnr(logsnr).expand(2)).astype(dtype), jd.predict_x0
        )
        for d in (oracles.conditional(clouds(), one), clouds())
    )
    return GUIDANCES[name](label, plain, oracles.class_log_prob(clouds(), one), scale)


@pytest.mark.parametrize("name", GUIDANCES)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_guidance_keeps_float32_is_finite_and_compiles_once(name, dtype):
    calls = []

    @jax.jit
    def sample(x, levels, scale):
        calls.append(None)
        return jd.sample(jd.ddim(), guided(name, scale, dtype), x, levels, jax.random.key(0))

    with jax.debug_nans(True):
        ends = [sample(normal(256, 2), grid(COSINE, 20), np.float32(scale)) for scale in (1.0, 1.5, 3.0)]
    assert len(calls) == 1
    assert all(end.dtype == jnp.float32 for end in ends)
    near = np.linalg.norm(ends[0] - np.asarray(clouds().means[:1]), axis=-1) < 1.0
    assert np.mean(near) > 0.95  # at scale 1 each of them is the label's own denoiser


@pytest.mark.parametrize("name", GUIDANCES)
def test_gradients_through_guidance_are_finite(name):
    level, x = jd.cosine()(0.4), jnp.array([[0.3, -2.0], [0.0, 0.0]])
    end = jax.jit(jax.grad(lambda x, scale: jnp.sum(guided(name, scale)(x, level) ** 2), argnums=(0, 1)))
    gradients = end(x, jnp.float32(1.5))
    assert all(np.all(np.isfinite(leaf)) for leaf in gradients)


@pytest.mark.parametrize("name", GUIDANCES)
def test_guidance_takes_a_level_an_example_and_keeps_float64(name, float64):
    x = jax.random.normal(jax.random.key(1), (5, 2))
    levels = jd.cosine()(jnp.linspace(0.1, 0.9, 5))
    denoise = jax.jit(guided(name, 2.0, jnp.float64))
    together = denoise(x, levels.expand(2))
    alone = [denoise(x[i : i + 1], levels[i])[0] for i in range(5)]
    assert together.dtype == jnp.float64
    np.testing.assert_allclose(together, np.stack(alone), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("sampler", [name for name in SAMPLERS if name != "churn"])  # which adds its noise before the call
def test_the_step_to_clean_adds_no_noise(sampler):
    """Ho et al. (2020), algorithm 2: the last step returns the clean image that it aims at."""
    levels, x = jd.grid(jd.cosine(), 4), jnp.ones((3, 2))
    denoise, kind = oracles.denoiser(clouds()), SAMPLERS[sampler]
    x0, _ = kind.step(denoise, x, kind.init(x), levels[-2], levels[-1], jax.random.key(0))
    np.testing.assert_array_equal(x0, denoise(x, levels[-2]))


@each_sampler
def test_gradients_in_x_and_levels_are_finite(sampler):
    """With a level that comes twice, too: nothing is fresh between the two. The denoiser is that of standard normal data."""
    levels = grid(TO_MINUS_10, 6)
    levels = jax.tree.map(lambda leaf: np.concatenate([leaf[:3], leaf[2:]]), levels) if sampler != "euler_maruyama" else levels

    def square(x, levels):
        x0 = jd.sample(SAMPLERS[sampler], lambda x, t: t.alpha / (t.alpha**2 + t.sigma**2) * x, x, levels, jax.random.key(0))
        return jnp.sum(x0**2)

    gradients = jax.jit(jax.grad(square, argnums=(0, 1)))(np.ones((3, 2), np.float32), levels)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(gradients))


@each_sampler
def test_sampler_keeps_float64(sampler, float64):
    levels = jax.eval_shape(lambda: jd.grid(COSINE, 4))
    x0 = jax.eval_shape(functools.partial(run, sampler), np.ones((3, 2)), levels, jax.random.key(0))
    assert x0.dtype == levels.sigma.dtype == jnp.float64


@each_sampler
def test_sampler_keeps_float32_and_compiles_once(sampler):
    x0 = compiled(sampler)(np.ones((3, 2), np.float32), grid(COSINE, 5), jax.random.key(0))
    programs = compiled(sampler)._cache_size()
    compiled(sampler)(np.zeros((3, 2), np.float32), grid(SCHEDULES["linear"], 5), jax.random.key(1))
    assert x0.dtype == jnp.float32
    assert compiled(sampler)._cache_size() == programs


@each_sampler
def test_sampler_uses_its_key_or_not(sampler):
    levels, x = grid(COSINE, 5), np.ones((3, 2), np.float32)
    a, b, c = (np.asarray(compiled(sampler)(x, levels, jax.random.key(seed))) for seed in (0, 0, 1))
    np.testing.assert_array_equal(a, b)
    assert np.all(a == c) == (sampler in DETERMINISTIC)


@each_sampler
def test_sampler_under_vmap_equals_a_batch(sampler):
    levels, x = grid(COSINE, 5), normal(4, 3, 2)
    keys = jax.random.split(jax.random.key(2), 4)
    mapped = jax.jit(jax.vmap(lambda x, key: run(sampler, x, levels, key)))(x, keys)
    alone = [compiled(sampler)(*args) for args in zip(x, [levels] * 4, keys, strict=True)]
    np.testing.assert_allclose(mapped, np.stack(alone), atol=1e-5)


@each_sampler
def test_trajectory_begins_at_x_and_ends_at_the_sample(sampler):
    levels, x = grid(COSINE, 5), np.ones((3, 2), np.float32)
    states = jax.jit(functools.partial(jd.trajectory, SAMPLERS[sampler], oracles.denoiser(clouds())))(x, levels, jax.random.key(0))
    assert states.shape == (6, 3, 2)
    np.testing.assert_array_equal(states[0], x)
    np.testing.assert_array_equal(states[-1], compiled(sampler)(x, levels, jax.random.key(0)))


class Variants(chex.TestCase):
    """Without jit, of each sampler with a loop of its own kind: two calls, noise and memory, memory alone. With it, all above."""

    @chex.variants(without_jit=True, with_device=True, with_pmap=True)
    def test_samplers_in_every_variant(self):
        args = jnp.ones((3, 2)), jax.tree.map(jnp.asarray, grid(COSINE, 5)), jax.random.key(0)
        for name in ("churn", "dpmpp_2m_sde", "unipc"):
            sample = self.variant(functools.partial(run, name))
            np.testing.assert_allclose(sample(*args), compiled(name)(*args), rtol=1e-5, atol=1e-5)
