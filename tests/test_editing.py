"""Editing against the exact posterior of a mixture."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import clouds

import jaxdiff as jd
from jaxdiff import editing, oracles
from jaxdiff.process import from_logsnr

NUM = 4_000
MATRIX, OBSERVED = [[1.0, 0.0]], [0.4]


def overlapping():
    """Two correlated clouds that touch: the unseen coordinate depends on the seen one, and so do the weights."""
    return oracles.correlated([0.5, 0.5], [[-0.5, -0.3], [0.5, 0.6]], [[[0.3, 0.2], [0.2, 0.3]], [[0.2, -0.1], [-0.1, 0.4]]])


def one():
    return oracles.correlated([1.0], [[0.3, -0.2]], [[[0.3, 0.2], [0.2, 0.3]]])


def ends(sampler, denoise, num_steps=256):
    levels = jd.grid(jd.uniform_logsnr(jd.cosine(-10.0, 12.0)), num_steps, t_min=0.0)
    x = jax.random.normal(jax.random.key(5), (NUM, 2))
    return jax.jit(lambda x, levels: jd.sample(sampler, denoise, x, levels, jax.random.key(0)))(x, levels)


def failures(x0, exact):
    return [check for check in oracles.compare(x0, exact, jax.random.key(1)) if not check.passed]


def see(x0):
    return x0[:, :1]


@pytest.mark.parametrize("std", [0.05, 0.3])
def test_posterior_guide_samples_the_exact_posterior(std):
    """Of a mixture, with each step resampled; for one Gaussian with nothing but a deterministic sampler."""
    for data, sampler in ((overlapping(), editing.resampled(jd.ddpm(), 6)), (one(), jd.dpmpp_2m())):
        denoise = editing.posterior_guide(oracles.denoiser(data), see, jnp.array(OBSERVED)[None], std, iterations=1)
        assert failures(ends(sampler, denoise), oracles.posterior(data, MATRIX, OBSERVED, std)) == []


def test_repaint_samples_the_exact_posterior():
    """Of one Gaussian; of the mixture its bias falls with the number of times that each step is taken."""
    known, mask = jnp.array([[0.4, 0.0]]), jnp.array([[True, False]])

    def repainted(data, times):
        x0 = ends(editing.resampled(editing.inpaint(jd.ddpm(), known, mask), times), oracles.denoiser(data), 128)
        np.testing.assert_allclose(x0[:, 0], 0.4)
        return x0

    assert failures(repainted(one(), 6), oracles.posterior(one(), MATRIX, OBSERVED, 1e-3)) == []
    exact, _ = oracles.moments(oracles.posterior(overlapping(), MATRIX, OBSERVED, 1e-3))
    bias = [abs(float(jnp.mean(repainted(overlapping(), times), axis=0)[1] - exact[1])) for times in (1, 6)]
    assert bias[0] > 0.2
    assert bias[1] < 0.5 * bias[0]


def test_reconstruction_guide_is_exact_for_a_round_gaussian(float64):
    """Where p(x0 | x) has the variance that it assumes: against the exact denoiser of the posterior."""
    data = oracles.gaussian([0.3, -0.2], 0.7)
    for time in (0.1, 0.5, 0.9):
        level, x = jd.cosine()(time), jnp.array([[0.3, -2.0], [1.7, 0.4]])
        guided = editing.reconstruction_guide(oracles.denoiser(data), see, jnp.array(OBSERVED)[None], 0.2, data_std=0.7)(x, level)
        exact = oracles.denoiser(oracles.posterior(data, MATRIX, OBSERVED, 0.2))(x, level)
        np.testing.assert_allclose(guided, exact, rtol=1e-9)


def test_posterior_guide_is_the_exact_denoiser_of_a_gaussians_posterior(float64):
    """In six dimensions with three observations, solved by three steps of conjugate gradients, example by example."""
    root = jax.random.normal(jax.random.key(0), (6, 6))
    matrix = jax.random.normal(jax.random.key(1), (3, 6))
    data = oracles.correlated([1.0], jnp.ones((1, 6)), (root @ root.T / 6)[None])
    observed, x, level = jnp.array([0.3, -1.0, 2.0]), jax.random.normal(jax.random.key(2), (5, 6)), jd.cosine()(0.4)
    guided = editing.posterior_guide(oracles.denoiser(data), lambda x0: x0 @ matrix.T, observed[None], 0.1, iterations=3)
    exact = oracles.denoiser(oracles.posterior(data, matrix, observed, 0.1))
    np.testing.assert_allclose(guided(x, level), exact(x, level), rtol=1e-7)
    np.testing.assert_allclose(guided(x[:1], level), guided(x, level)[:1], rtol=1e-9)


@pytest.mark.parametrize("sampler", [jd.ddim(), jd.heun()])
def test_inversion_and_back_returns_the_image(sampler, float64):
    """Every image, those where two modes part among them."""
    x0 = oracles.draw(clouds(), jax.random.key(0), 500)
    levels = jd.grid(jd.uniform_logsnr(jd.cosine(-10.0, 12.0)), 100, t_min=0.0)
    denoise, key = oracles.denoiser(clouds()), jax.random.key(0)
    for iterations, quantile in ((4, 0.98), (16, 1.0)):
        x = editing.invert(sampler, denoise, x0, levels, key, iterations)
        assert 0.8 < float(jnp.std(x)) < 1.2  # noise
        back = jd.sample(sampler, denoise, x, levels, key)
        assert float(jnp.quantile(jnp.linalg.norm(back - x0, axis=-1), quantile)) < 1e-3


def test_sdedit_keeps_more_of_the_image_the_less_it_is_noised():
    data = clouds()
    x0 = jnp.tile(data.means[:1], (NUM, 1))
    levels = jd.grid(jd.cosine(), 64)
    ends = [editing.sdedit(jd.ddpm(), oracles.denoiser(data), x0, levels[start:], jax.random.key(0)) for start in (0, 40, 60)]
    stayed = [float(jnp.mean(jnp.linalg.norm(end - x0, axis=-1) < 0.8)) for end in ends]
    assert abs(stayed[0] - 0.2) < 0.03  # all of it noise: the component's own weight
    assert stayed[0] < stayed[1] < stayed[2] == 1


def test_the_gradient_of_a_posterior_guide_is_finite_once_it_is_solved():
    denoise, x = oracles.denoiser(overlapping()), jnp.array([[0.3, -2.0], [1.7, 0.4]])
    for logsnr in (-10.0, 0.0, 10.0):
        level = from_logsnr(jnp.float32(logsnr))

        def end(x, observed, level=level):
            return jnp.sum(editing.posterior_guide(denoise, see, observed, 0.1, iterations=8)(x, level) ** 2)

        gradients = jax.grad(end, argnums=(0, 1))(x, jnp.array(OBSERVED)[None])
        assert all(bool(jnp.all(jnp.isfinite(gradient))) for gradient in gradients)


def test_resampled_says_what_is_wrong():
    with pytest.raises(ValueError, match="times must be at least 1, got 0"):
        editing.resampled(jd.ddpm(), 0)
