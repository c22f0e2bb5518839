import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import SCHEDULES, clouds

import jaxdiff as jd
from jaxdiff import oracles

CLEAN = jd.Level(1.0, 0.0)


@pytest.mark.parametrize("schedule", ["cosine", "karras", "rectified_flow"])
def test_score_is_the_gradient_of_log_density_and_tweedie_gives_the_denoiser(schedule, float64):
    data = clouds()
    for time in (0.05, 0.4, 0.9):
        level = SCHEDULES[schedule](time)
        x = level.alpha * oracles.draw(data, jax.random.key(0), 50) + level.sigma * jax.random.normal(jax.random.key(1), (50, 2))
        gradient = jax.vmap(jax.grad(lambda x, level=level: oracles.log_density(data, x[None], level)[0]))(x)
        np.testing.assert_allclose(oracles.score(data)(x, level), gradient, rtol=1e-8, atol=1e-9)
        tweedie = (x + level.sigma**2 * gradient) / level.alpha
        np.testing.assert_allclose(oracles.denoiser(data)(x, level), tweedie, rtol=1e-6, atol=1e-6)


def test_log_density_integrates_to_one_and_equals_scipy(float64):
    scipy_stats = pytest.importorskip("scipy.stats")
    data = clouds()
    axis = np.linspace(-6, 6, 601)
    points = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)
    for level in (CLEAN, jd.cosine()(0.3)):
        alpha, sigma = float(level.alpha), float(level.sigma)
        density = sum(
            weight * scipy_stats.multivariate_normal(alpha * mean, (alpha**2 * std[0] ** 2 + sigma**2) * np.eye(2)).pdf(points)
            for weight, mean, std in zip(*map(np.asarray, (data.weights, data.means, data.stds)), strict=True)
        )
        ours = np.exp(oracles.log_density(data, jnp.asarray(points), level))
        np.testing.assert_allclose(ours, density, rtol=1e-8, atol=1e-300)
        np.testing.assert_allclose(ours.sum() * (axis[1] - axis[0]) ** 2, 1, atol=1e-6)


def test_no_denoiser_beats_the_exact_one(float64):
    data = clouds()
    level = jd.cosine()(0.4)
    x0 = oracles.draw(data, jax.random.key(0), 20_000)
    x = jd.diffuse(x0, jax.random.normal(jax.random.key(1), x0.shape), level)
    exact = oracles.denoiser(data)(x, level)
    error = jnp.mean((exact - x0) ** 2)
    for other in (1.02 * exact, exact + 0.02, 0.9 * exact + 0.1 * x):
        assert jnp.mean((other - x0) ** 2) > error


def test_draws_have_the_moments(float64):
    num = 100_000
    x0 = np.asarray(oracles.draw(clouds(), jax.random.key(0), num))
    mean, covariance = oracles.moments(clouds())
    np.testing.assert_allclose(x0.mean(0), mean, atol=4 * np.sqrt(np.diag(covariance).max() / num))
    np.testing.assert_allclose(np.cov(x0.T), covariance, atol=0.02)


def test_levels_may_differ_within_a_batch():
    level = jd.cosine()(jnp.array([0.2, 0.5, 0.8])).expand(2)
    x = jnp.ones((3, 2))
    together = oracles.denoiser(clouds())(x, level)
    alone = [oracles.denoiser(clouds())(x[i : i + 1], jd.cosine()(t))[0] for i, t in enumerate((0.2, 0.5, 0.8))]
    np.testing.assert_allclose(together, jnp.stack(alone), rtol=1e-5)


def on_a_grid(density):
    """Mean and covariance of an unnormalised density of points [N, 2], by summing over the plane."""
    axis = np.linspace(-5, 5, 501)
    points = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)
    weight = np.asarray(density(jnp.asarray(points)))
    weight = weight / weight.sum()
    mean = weight @ points
    return mean, (weight[:, None] * (points - mean)).T @ (points - mean)


def leaning():
    return oracles.correlated([0.4, 0.6], [[-0.5, -0.3], [0.5, 0.6]], [[[0.3, 0.2], [0.2, 0.3]], [[0.2, -0.1], [-0.1, 0.4]]])


def test_correlated_mixtures_have_their_moments_draws_and_scores(float64):
    data, level = leaning(), jd.cosine()(0.3)
    mean, covariance = oracles.moments(data)
    np.testing.assert_allclose(mean, [0.1, 0.24], atol=1e-12)
    for found, exact in zip(on_a_grid(lambda x: jnp.exp(oracles.log_density(data, x, CLEAN))), (mean, covariance), strict=True):
        np.testing.assert_allclose(found, exact, atol=1e-6)
    np.testing.assert_allclose(np.cov(oracles.draw(data, jax.random.key(0), 100_000).T), covariance, atol=0.01)
    x = jax.random.normal(jax.random.key(1), (20, 2))
    gradient = jax.vmap(jax.grad(lambda x: oracles.log_density(data, x[None], level)[0]))(x)
    np.testing.assert_allclose(oracles.score(data)(x, level), gradient, rtol=1e-8, atol=1e-9)
    np.testing.assert_allclose(oracles.denoiser(data)(x, level), (x + level.sigma**2 * gradient) / level.alpha, rtol=1e-8)


@pytest.mark.parametrize("data", [clouds, leaning])
def test_posterior_is_prior_times_likelihood(data, float64):
    matrix, observed, std = jnp.array([[1.0, 0.5]]), jnp.array([0.4]), 0.3
    exact = oracles.posterior(data(), matrix, observed, std)

    def density(x):
        return jnp.exp(oracles.log_density(data(), x, CLEAN) - jnp.sum((x @ matrix.T - observed[None]) ** 2, -1) / (2 * std**2))

    for found, moment in zip(on_a_grid(density), oracles.moments(exact), strict=True):
        np.testing.assert_allclose(found, moment, atol=1e-6)


def test_conditional_is_bayes_rule_and_the_classifier_sums_to_one(float64):
    data, x, level = clouds(), jax.random.normal(jax.random.key(0), (20, 2)), jd.cosine()(0.4)
    likelihoods = [[0.7, 0.2, 0.0], [0.3, 0.8, 1.0]]
    np.testing.assert_allclose(oracles.conditional(data, likelihoods[0]).weights, np.array([0.14, 0.1, 0]) / 0.24)
    log_probs = [oracles.class_log_prob(data, likelihood)(x, level) for likelihood in likelihoods]
    np.testing.assert_allclose(sum(map(jnp.exp, log_probs)), 1, rtol=1e-12)
    bayes = np.log(0.24) + oracles.log_density(oracles.conditional(data, likelihoods[0]), x, level)
    np.testing.assert_allclose(log_probs[0], bayes - oracles.log_density(data, x, level), rtol=1e-12)


@pytest.mark.parametrize(
    ("name", "schedule"),
    [("gaussian", "cosine"), ("gaussian", "karras"), ("gaussian", "rectified_flow"), ("clouds", "cosine"), ("clouds", "karras")],
)
def test_flow_map_solves_the_probability_flow(name, schedule, float64):
    """It composes, returns, and its derivative is that of `transfer` with the exact denoiser."""
    data = clouds() if name == "clouds" else oracles.correlated([1.0], [[0.5, -0.3]], [[[0.3, 0.2], [0.2, 0.4]]])
    flow, (t, m, s) = oracles.flow_map(data), (SCHEDULES[schedule](time) for time in (0.8, 0.5, 0.2))
    x = t.alpha + t.sigma * jax.random.normal(jax.random.key(0), (10, 2))
    close = {"rtol": 1e-9, "atol": 0} if name == "gaussian" else {"rtol": 1e-6, "atol": 1e-6}
    np.testing.assert_allclose(flow(flow(x, t, m), m, s), flow(x, t, s), **close)
    np.testing.assert_allclose(flow(flow(x, t, s), s, t), x, **close)
    near = SCHEDULES[schedule](0.8 - 1e-4)
    euler = jd.transfer(x, oracles.denoiser(data)(x, t), t, near)
    np.testing.assert_allclose(euler - x, flow(x, t, near) - x, rtol=1e-3, atol=1e-7 * float(t.sigma))
    np.testing.assert_allclose(flow(x, t), flow(flow(x, t, s), s), **close)


@pytest.mark.parametrize("schedule", ["cosine", "rectified_flow"])
def test_average_denoiser_is_the_mean_of_the_denoiser_along_the_flow(schedule, float64):
    """By the rise of `alpha / sigma`: its integral along the path, by the trapezoidal rule; the denoiser itself where s = t."""
    data, kind = clouds(), SCHEDULES[schedule]
    average, flow, denoise = (make(data) for make in (oracles.average_denoiser, oracles.flow_map, oracles.denoiser))
    x, t, s = jax.random.normal(jax.random.key(0), (6, 2)), kind(0.8), kind(0.25)
    path = jax.jit(jax.vmap(lambda time: (denoise(flow(x, t, kind(time)), kind(time)), kind(time).alpha / kind(time).sigma)))
    values, ratio = path(jnp.linspace(0.8, 0.25, 401))
    mean = np.trapezoid(values, ratio[:, None, None], axis=0) / (ratio[-1] - ratio[0])
    np.testing.assert_allclose(average(x, t, s), mean, atol=2e-5)
    np.testing.assert_allclose(average(x, t, t), denoise(x, t), rtol=1e-12)
