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
