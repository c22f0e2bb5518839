"""Log-densities and bounds against closed forms: Gaussians, mixtures, and distributions on 8-bit values."""

import functools
import itertools
from functools import partial

import cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import jaxdiff as jd
from jaxdiff import likelihood, losses, oracles, process

MEAN, STD = np.array([0.3, -0.5]), np.array([0.4, 0.7])
log_density = jax.jit(oracles.log_density)
draw = jax.jit(oracles.draw, static_argnums=2)
KINDS = {"cosine": jd.cosine(), "karras": jd.karras(5e-4), "rectified_flow": jd.rectified_flow()}  # VP, VE, the straight path


def selected(schedules, number):
    """The schedule of that number, which may be traced: one program for all of them."""

    def schedule(t):
        return jax.tree.map(lambda *parts: jnp.stack(parts)[number], *(each(t) for each in schedules))

    return schedule


def snr(level):
    return np.asarray((level.alpha / level.sigma) ** 2, np.float64)


def mean_error(x0, snr):
    """`E |x0 - D(x)|^2` over the noise, of the exact denoiser of N(MEAN, STD^2), by hand, `[B]`."""
    v, s2 = snr, STD**2
    return np.sum(((x0 - MEAN) ** 2 + v * s2**2) / (1 + v * s2) ** 2, axis=-1)


def diffusion_integral(x0, first, last):
    """`1/2 int E |x0 - D|^2 d snr` between two snr, by hand, `[B]`."""

    def primitive(v):
        grown = 1 + v * STD**2
        return np.sum(-((x0 - MEAN) ** 2) / (STD**2 * grown) + np.log(grown) + 1 / grown, axis=-1) / 2

    return primitive(last) - primitive(first)


def ends(x0, noisiest, cleanest):
    """Prior and reconstruction terms with a Gaussian of std 1 / sqrt(snr), by hand."""
    log_std = -np.log(cleanest) / 2
    reconstruction = -mean_error(x0, cleanest) * cleanest / 2 - x0.shape[1] * (log_std + np.log(2 * np.pi) / 2)
    return -noisiest * np.sum(x0**2, axis=-1) / 2, reconstruction


@pytest.fixture
def data(float64):
    exact = oracles.gaussian(MEAN, STD)
    return exact, draw(exact, jax.random.key(0), 1000)


@functools.cache
def discrete_bound(num_samples):
    """Of the Gaussian's denoiser, `(x0, levels, key) -> Estimate`."""
    denoise = oracles.denoiser(oracles.gaussian(MEAN, STD))
    return jax.jit(partial(likelihood.discrete_bound, denoise, reconstruction=likelihood.gaussian, num_samples=num_samples))


def grid(schedule, num_steps):
    """`jd.grid` down to the cleanest level, from one program."""
    return jax.jit(lambda: jd.grid(schedule, num_steps, t_min=0))()


@pytest.mark.parametrize("name", KINDS)
def test_discrete_bound_is_the_closed_form(data, name):
    exact, x0 = data
    levels = grid(jd.uniform_logsnr(KINDS[name]), 40)
    got = discrete_bound(8)(x0, levels, jax.random.key(1))
    v, x0 = snr(levels[:-1]), np.asarray(x0)
    steps = sum((after - before) * mean_error(x0, before) / 2 for before, after in itertools.pairwise(v))
    prior, reconstruction = ends(x0, v[0], v[-1])
    closed = {"prior": prior, "diffusion": -steps, "reconstruction": reconstruction}
    for term, value in closed.items():
        spread = np.std(got.terms[term] - value) / np.sqrt(len(x0))
        assert abs(np.mean(got.terms[term] - value)) <= 4 * spread + 1e-9
    errors = (got.value - sum(closed.values())) / got.standard_error
    assert 0.9 < np.std(errors) < 1.6  # a t-distribution of 7 degrees of freedom has 1.18
    assert np.mean(sum(closed.values())) < np.mean(log_density(exact, x0, jd.Level(1.0, 0.0)))
    assert got.unit == "nats"


def test_wide_steps_cost_what_their_variance_says(data):
    """The model's variance is the forward one: the KL of two Gaussians of different variance, by hand."""
    exact, x0 = data
    levels = jd.grid(jd.linear(), 20)
    terms = jax.jit(partial(likelihood.step_terms, oracles.denoiser(exact), std=process.forward_std, num_samples=16))
    got = terms(x0, levels, jax.random.key(1)).mean((1, 2))
    t, s = levels[:-2], levels[1:-1]
    post, forward = (np.asarray(std(t, s)) for std in (process.posterior_std, process.forward_std))
    gain = np.asarray(s.alpha - t.alpha * s.sigma**2 * t.alpha / (t.sigma**2 * s.alpha))  # of x0 in the mean of q(x_s | x_t, x0)
    error = np.array([mean_error(np.asarray(x0), v).mean() for v in snr(t)])
    by_hand = 2 * (np.log(forward / post) + post**2 / (2 * forward**2) - 0.5) + gain**2 * error / (2 * forward**2)
    np.testing.assert_allclose(got, by_hand, rtol=0.03)


def test_discrete_bound_converges_to_the_continuous_one(data):
    """At order 1 in the number of steps, as a left Riemann sum does."""
    _, x0 = data
    schedule = jd.linear_logsnr()
    first, last = snr(schedule(jnp.array([1.0, 0.0])))
    limit = sum(ends(np.asarray(x0), first, last)) - diffusion_integral(np.asarray(x0), first, last)
    one, two = (np.mean(limit - discrete_bound(4)(x0, grid(schedule, n), jax.random.key(n)).value) for n in (64, 256))
    assert -1.1 < np.log(two / one) / np.log(256 / 64) < -0.9


@functools.cache
def continuous_bound():
    """Of the Gaussian's denoiser, `(x0, number of the schedule, key) -> Estimate`."""
    denoise, schedules = oracles.denoiser(oracles.gaussian(MEAN, STD)), [jd.uniform_logsnr(kind) for kind in KINDS.values()]
    call = partial(likelihood.continuous_bound, denoise, reconstruction=likelihood.gaussian, num_times=50)
    return jax.jit(lambda x0, number, key: call(x0, selected(schedules, number), key))


@pytest.mark.parametrize("name", KINDS)
def test_continuous_bound_is_unbiased_with_honest_errors(data, name):
    exact, x0 = data
    schedule = jd.uniform_logsnr(KINDS[name])
    got = continuous_bound()(x0, list(KINDS).index(name), jax.random.key(1))
    first, last = snr(schedule(jnp.array([1.0, 0.0])))
    x0 = np.asarray(x0)
    closed = sum(ends(x0, first, last)) - diffusion_integral(x0, first, last)
    errors = (got.value - closed) / got.standard_error
    assert abs(np.mean(got.value - closed)) < 4 * np.std(got.value - closed) / np.sqrt(len(x0))
    assert 0.92 < np.mean(np.abs(errors) < 1.96) < 0.97
    np.testing.assert_allclose(np.mean(got.standard_error**2), np.mean((got.value - closed) ** 2), rtol=0.2)
    assert np.mean(closed) < np.mean(log_density(exact, x0, jd.Level(1.0, 0.0)))


def test_another_pace_is_importance_sampling(data):
    """The same value, less variance: 51 times less than uniform times of the cosine schedule have."""
    exact, x0 = data

    def bound(schedule):
        call = partial(likelihood.continuous_bound, oracles.denoiser(exact), schedule=schedule, reconstruction=likelihood.gaussian)
        return jax.jit(call)(x0, key=jax.random.key(1))

    plain, uniform = bound(jd.cosine()), bound(jd.uniform_logsnr(jd.cosine()))
    difference = plain.value - uniform.value
    assert abs(np.mean(difference)) < 4 * np.std(difference) / np.sqrt(len(x0))
    assert 5 < np.mean(plain.standard_error**2) / np.mean(uniform.standard_error**2) < 100


@pytest.mark.parametrize("name", cases.SCHEDULES)
def test_elbo_weight_integrates_to_the_bound(name, float64):
    schedule, x0 = cases.SCHEDULES[name], np.array([[0.5, 0.1]])
    root = (np.arange(20_000) + 0.5) / 20_000

    @jax.jit
    def weighted(t):
        return schedule(t), losses.elbo_weight(schedule)(schedule(t))

    level, weight = weighted(root**4)  # fine near 0, where logsnr has an infinite slope in two of the schedules
    loss = 4 * root**3 * weight * mean_error(x0, snr(level)[:, None]) / 2
    first, last = snr(schedule(jnp.array([1.0, 0.0])))
    np.testing.assert_allclose(np.mean(loss), diffusion_integral(x0, first, last) / 2, rtol=2e-3)


def model(kind):
    if kind == "gaussian":
        return oracles.gaussian([0.3, -0.5], [0.4, 0.7])
    return oracles.correlated([0.4, 0.6], [[0.5, -0.3], [-0.6, 0.4]], [[[0.2, 0.1], [0.1, 0.15]], [[0.1, -0.05], [-0.05, 0.3]]])


@functools.cache
def flow(kind):
    """The density of a model by the solver of order 3, `(x0, levels, key) -> Estimate`."""
    exact = model(kind)
    prior = partial(oracles.log_density, exact)
    call = partial(likelihood.flow_log_density, oracles.denoiser(exact), sampler=jd.dpmpp_3m())
    return jax.jit(partial(call, divergence=likelihood.exact(), prior=prior))


@pytest.mark.parametrize("kind", ["gaussian", "mixture"])
@pytest.mark.parametrize("name", KINDS)
def test_flow_log_density_is_the_closed_form(float64, name, kind):
    """To 1e-4 nats per dimension: of the data with the cleanest level's noise, and of the data itself."""
    exact, levels = model(kind), grid(jd.uniform_logsnr(KINDS[name]), 320)
    x0 = draw(exact, jax.random.key(0), 100)
    got = flow(kind)(x0, levels, jax.random.key(1))
    noisy = noisy_log_density(exact, x0, levels[-2])
    assert np.max(np.abs(got.value - noisy)) < 2e-4
    assert np.max(np.abs(got.value - log_density(exact, x0, jd.Level(1.0, 0.0)))) < 2e-4
    np.testing.assert_array_equal(got.standard_error, 0)


@jax.jit
def noisy_log_density(exact, x0, level):
    """Of data with that level's noise, at x0."""
    return oracles.log_density(exact, level.alpha * x0, level) + x0.shape[1] * jnp.log(level.alpha)


def test_adaptive_flow_log_density_is_the_closed_form(float64):
    exact, schedules = model("mixture"), list(KINDS.values())
    x0 = draw(exact, jax.random.key(0), 100)
    call = partial(likelihood.adaptive_flow_log_density, oracles.denoiser(exact), divergence=likelihood.exact(), tolerance=1e-8)
    prior = partial(oracles.log_density, exact)
    adaptive = jax.jit(lambda x0, number, key: call(x0, selected(schedules, number), key, prior=prior))
    for number, schedule in enumerate(schedules):
        got = adaptive(x0, number, jax.random.key(1))
        assert np.max(np.abs(got.value - noisy_log_density(exact, x0, schedule(0.0)))) < 1e-5


def test_flow_log_density_starts_at_noise(float64):
    """Without a prior of one's own: noise of std sigma, carried by the flow map of a Gaussian, in closed form."""
    exact = oracles.gaussian(MEAN, STD)
    levels = grid(jd.karras_spaced(jd.karras(0.002, 3.0)), 512)
    x0 = draw(exact, jax.random.key(0), 50)
    call = partial(likelihood.flow_log_density, oracles.denoiser(exact), sampler=jd.heun(), divergence=likelihood.exact())
    got = jax.jit(call)(x0, levels, jax.random.key(1))
    ratio = np.sqrt((STD**2 + 9.0) / (STD**2 + 0.002**2))
    moved = MEAN + ratio * (np.asarray(x0) - MEAN)
    closed = np.sum(stats.norm.logpdf(moved, 0, 3.0) + np.log(ratio), axis=-1)
    np.testing.assert_allclose(got.value, closed, atol=2e-4)


def test_hutchinson_error_bar_covers_the_truth(float64):
    """In 200 trials, 95% of the time: between 182 and 198 (four standard deviations is 12)."""
    key = jax.random.key(3)
    factor = jax.random.normal(key, (2, 4, 4)) / 2
    exact = oracles.correlated(
        [0.5, 0.5], jax.random.normal(key, (2, 4)), factor @ jnp.swapaxes(factor, 1, 2) + 0.05 * jnp.eye(4)[None]
    )
    levels, x0 = grid(jd.uniform_logsnr(jd.cosine()), 12), draw(exact, jax.random.key(0), 1)
    probes = 16

    @partial(jax.jit, static_argnums=0)
    def density(divergence, x0, key):
        return likelihood.flow_log_density(oracles.denoiser(exact), x0, levels, key, jd.heun(), divergence)

    truth = density(likelihood.exact(), x0, key).value[0]
    got = density(likelihood.hutchinson(probes), jnp.repeat(x0, 200, axis=0), key)
    assert np.min(got.standard_error) > 0
    covered = np.abs(got.value - truth) < stats.t.ppf(0.975, probes - 1) * got.standard_error
    assert 182 <= np.sum(covered) <= 198
    assert np.std(got.value - truth) < 1


@pytest.fixture(scope="module")
def pixels():
    """Four images of three 8-bit pixels with their probabilities, and the denoiser that knows them exactly."""
    values = np.array([[0, 0, 255], [255, 3, 40], [12, 200, 128], [13, 200, 128]]) / 127.5 - 1
    probabilities = np.array([0.4, 0.3, 0.2, 0.1])
    with jax.enable_x64(True):
        exact = oracles.mixture(probabilities, values, np.zeros(4))
    return oracles.denoiser(exact), values, np.log(probabilities)


def estimators(denoise):
    schedule = jd.linear_logsnr(-12.0, 15.0)
    levels = grid(schedule, 400)
    flow = partial(likelihood.flow_log_density, denoise, levels=levels, sampler=jd.dpmpp_3m(), divergence=likelihood.exact())
    dequantize = likelihood.diffused(denoise, levels[-2])
    return {
        "discrete": lambda x0, key: likelihood.discrete_bound(denoise, x0, levels, key, likelihood.discretized_gaussian),
        "continuous": lambda x0, key: likelihood.continuous_bound(
            denoise, x0, schedule, key, likelihood.discretized_gaussian, num_times=100
        ),
        "flow": lambda x0, key: likelihood.dequantized_bound(lambda x, key: flow(x, key=key), x0, key, dequantize, num_samples=8),
    }


@pytest.mark.parametrize("name", ["discrete", "continuous", "flow"])
def test_estimators_of_8_bit_data_agree_with_its_probability(float64, pixels, name):
    """Each is below log P within its error, and near it: the discrete bound pays for its steps."""
    denoise, values, log_prob = pixels
    x0 = jnp.repeat(jnp.asarray(values), 32, axis=0)
    got = jax.jit(estimators(denoise)[name])(x0, jax.random.key(0))
    np.testing.assert_allclose(sum(got.terms.values()), got.value, atol=1e-9)
    value, error = (np.asarray(a).reshape(4, 32) for a in (got.value, got.standard_error))
    bar = np.sqrt(np.mean(error**2, axis=1) / 32)
    gap = log_prob - value.mean(axis=1)
    assert np.all(gap > -4 * bar - 4e-3)  # alpha at the noisiest level is 2.5e-3, which the prior leaves out
    assert np.all(gap < 4 * bar + {"discrete": 0.25, "continuous": 0.02, "flow": 0.02}[name])
    assert np.all(bar < 0.15)


def test_uniform_dequantization_is_exact_for_a_density_flat_in_each_interval(float64):
    """A flat density is the worst and the best case: log P = log(density * volume), and no error at all."""
    x0 = jnp.asarray(np.array([[0, 17, 255], [3, 3, 90]]) / 127.5 - 1)

    def log_density(x, key):
        value = jnp.full(x.shape[:1], -3 * np.log(256 * 2 / 255))
        return likelihood.Estimate(value, jnp.zeros_like(value), {"density": value})

    got = likelihood.dequantized_bound(log_density, x0, jax.random.key(0), likelihood.uniform)
    np.testing.assert_allclose(likelihood.in_bits_per_dim(got, (3,)).value, 8, rtol=1e-12)
    np.testing.assert_allclose(got.standard_error, 0, atol=1e-12)
    x, _ = likelihood.uniform(jnp.zeros((20_000, 1)), jax.random.key(1))
    assert stats.kstest(np.asarray(x)[:, 0], stats.uniform(-1 / 255, 2 / 255).cdf).pvalue > 0.01


def test_variational_dequantization_beats_the_uniform_one(float64):
    """A Gaussian narrower than an interval: drawn from itself in the interval, the bound is its mass there, exactly."""
    std, x0 = 0.002, jnp.zeros((500, 1)) + 1 / 255
    half = likelihood.densities.BIN / 2
    inside = stats.norm(0, std).cdf(half) - stats.norm(0, std).cdf(-half)

    def draw(x0, key):
        noise = std * jax.random.truncated_normal(key, -half / std, half / std, x0.shape)
        return x0 + noise, jnp.sum(jax.scipy.stats.norm.logpdf(noise, 0, std) - np.log(inside), axis=-1)

    def log_density(x, key):
        value = likelihood.gaussian(x, x0, jnp.asarray(std))
        return likelihood.Estimate(value, jnp.zeros_like(value), {"density": value})

    bound = partial(likelihood.dequantized_bound, log_density, x0, jax.random.key(0))
    np.testing.assert_allclose(bound(likelihood.variational(draw)).value, np.log(inside), atol=1e-9)
    assert np.mean(bound(likelihood.uniform).value) < np.log(inside) - 0.1


def test_units():
    estimate = likelihood.Estimate(jnp.array([-4.0, -2.0]), jnp.array([0.1, 0.2]), {"a": jnp.array([-5.0, -3.0]), "b": jnp.ones(2)})
    bits = likelihood.in_bits_per_dim(estimate, (2, 2))
    np.testing.assert_allclose(bits.value, np.array([1, 0.5]) / np.log(2), rtol=1e-6)
    np.testing.assert_allclose(bits.standard_error, np.array([0.025, 0.05]) / np.log(2), rtol=1e-6)
    np.testing.assert_allclose(bits.terms["b"], -0.25 / np.log(2), rtol=1e-6)
    assert (estimate.unit, bits.unit) == ("nats", "bits/dim")
    np.testing.assert_allclose(likelihood.bits_per_dim(np.log(1 / 256) * 12, (2, 2, 3)), 8)
    with pytest.raises(ValueError, match="must be in nats, got bits/dim"):
        likelihood.in_bits_per_dim(bits, (2, 2))
    whole = likelihood.mean(estimate)
    assert whole.value == -3
    np.testing.assert_allclose(whole.standard_error, 1.0, rtol=1e-6)
    assert whole.terms["a"] == -4


EIGHT_BIT = np.array([[0, 17, 255]], np.float32) / 127.5 - 1
LEVELS = jd.grid(jd.cosine(), 4)
ZERO = lambda x, level: jnp.zeros_like(x)  # noqa: E731


@pytest.mark.parametrize(
    "call",
    [
        lambda x0, r: likelihood.discrete_bound(ZERO, x0, LEVELS, jax.random.key(0), r),
        lambda x0, r: likelihood.continuous_bound(ZERO, x0, jd.cosine(), jax.random.key(0), r),
    ],
    ids=["discrete", "continuous"],
)
def test_data_of_the_wrong_kind_is_refused(call):
    with pytest.raises(ValueError, match="is 8-bit data that is not dequantized"):
        call(EIGHT_BIT, likelihood.gaussian)
    with pytest.raises(ValueError, match="is not 8-bit data"):
        call(0.9 * EIGHT_BIT, likelihood.discretized_gaussian)
    with pytest.raises(ValueError, match=r"values from -2 to 1\.8; scale images to \[-1, 1\]"):
        call(np.array([[-2.0, 1.8]], np.float32), likelihood.discretized_gaussian)


def test_a_density_of_8_bit_data_is_refused():
    density = partial(
        likelihood.flow_log_density, ZERO, levels=LEVELS, key=jax.random.key(0), sampler=jd.ddim(), divergence=likelihood.exact()
    )
    with pytest.raises(ValueError, match="is 8-bit data that is not dequantized"):
        density(EIGHT_BIT)
    with pytest.raises(ValueError, match="is not 8-bit data"):
        likelihood.dequantized_bound(lambda x, key: density(x), 0.9 * EIGHT_BIT, jax.random.key(0), likelihood.uniform)
    bits = likelihood.Estimate(jnp.zeros(1), jnp.zeros(1), {"a": jnp.zeros(1)}, "bits/dim")
    with pytest.raises(ValueError, match="log-density must be in nats, got bits/dim"):
        likelihood.dequantized_bound(lambda x, key: bits, EIGHT_BIT, jax.random.key(0), likelihood.uniform)
    likelihood.check_data(EIGHT_BIT, lambda x0, mean, std: mean)  # a law of the user's own


@pytest.mark.parametrize(
    ("pixels", "x0", "message"),
    [
        (likelihood.gaussian_pixels(0.1), EIGHT_BIT, "8-bit data that is not dequantized"),
        (likelihood.logistic_pixels(), 0.9 * EIGHT_BIT, "is not 8-bit data"),
        (likelihood.logistic_pixels(), 100 * EIGHT_BIT, r"scale images to \[-1, 1\]"),
        (likelihood.binary_pixels(), 100 * EIGHT_BIT, r"scale images to \[-1, 1\]"),
    ],
    ids=["gaussian", "logistic", "logistic_range", "binary"],
)
def test_pixels_refuse_data_of_the_wrong_kind(pixels, x0, message):
    with pytest.raises(ValueError, match=message):
        pixels.log_prob(x0[..., None], jnp.zeros((1, 3, pixels.outputs)))


def test_one_sample_has_no_error_bar():
    """Not 0, which would be a lie."""
    exact, x0 = oracles.correlated([1.0], [[0.1, 0.2]], [[[0.3, 0.1], [0.1, 0.2]]]), jnp.array([[0.3, 0.1]])
    denoise, key = oracles.denoiser(exact), jax.random.key(0)
    one = jax.jit(lambda: likelihood.flow_log_density(denoise, x0, LEVELS, key, jd.ddim(), likelihood.hutchinson(1)))()
    assert np.isnan(one.standard_error[0])
    two = jax.jit(lambda: likelihood.adaptive_flow_log_density(denoise, x0, jd.cosine(), key, likelihood.hutchinson(64)))()
    truth = log_density(exact, x0, jd.Level(1.0, 0.0))
    assert abs(two.value[0] - truth[0]) < 4 * two.standard_error[0] + 2e-3
    assert two.standard_error[0] > 0


def test_noise_left_at_the_cleanest_level_counts(data):
    """At alpha far from 1, where a forgotten alpha is seen: closed forms, with two coarse intervals of random times."""
    exact, x0 = data
    schedule = jd.linear_logsnr(-4.0, 1.0)
    first, last = snr(schedule(jnp.array([1.0, 0.0])))
    by_hand = sum(ends(np.asarray(x0), first, last)) - diffusion_integral(np.asarray(x0), first, last)
    call = partial(likelihood.continuous_bound, oracles.denoiser(exact), reconstruction=likelihood.gaussian, num_times=2)
    got = jax.jit(lambda x0, key: call(x0, schedule, key))(jnp.repeat(x0, 20, axis=0), jax.random.key(1))
    gap = got.value - np.repeat(by_hand, 20)
    assert abs(np.mean(gap)) < 4 * np.std(gap) / np.sqrt(len(gap))
    levels = grid(schedule, 100)
    call = partial(likelihood.flow_log_density, oracles.denoiser(exact), sampler=jd.dpmpp_3m(), divergence=likelihood.exact())
    got = jax.jit(partial(call, prior=partial(oracles.log_density, exact)))(x0[:50], levels, jax.random.key(1))
    r2 = 1 / last
    closed = stats.norm.logpdf(np.asarray(x0[:50]), MEAN, np.sqrt(STD**2 + r2)).sum(-1)
    np.testing.assert_allclose(got.value, closed, atol=2e-4)
