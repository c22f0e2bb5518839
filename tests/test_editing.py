"""Editing against the exact posterior of a mixture."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import clouds

import jaxdiff as jd
from jaxdiff import editing, oracles
from jaxdiff.process import from_logsnr

NUM = 1_000
MATRIX, OBSERVED = [[1.0, 0.0]], [0.4]


def overlapping():
    """Two correlated clouds that touch: the unseen coordinate depends on the seen one, and so do the weights."""
    return oracles.correlated([0.5, 0.5], [[-0.5, -0.3], [0.5, 0.6]], [[[0.3, 0.2], [0.2, 0.3]], [[0.2, -0.1], [-0.1, 0.4]]])


def one():
    """One Gaussian, in two equal halves: it takes the same programs."""
    return oracles.correlated([0.5, 0.5], [[0.3, -0.2]] * 2, [[[0.3, 0.2], [0.2, 0.3]]] * 2)


@functools.cache
def grid(num_steps):
    return jax.jit(lambda: jd.grid(jd.uniform_logsnr(jd.cosine(-10.0, 12.0)), num_steps, t_min=0.0))()


def ends(sampled, num_steps, *args):
    """Of `sampled(x, levels, *args)`, a compiled function."""
    x = np.random.default_rng(5).normal(size=(NUM, 2)).astype(np.float32)
    return np.asarray(sampled(x, grid(num_steps), *args))


posterior = jax.jit(oracles.posterior)


def failures(x0, exact):
    return [check for check in oracles.compare(x0, exact, jax.random.key(1)) if not check.passed]


def see(x0):
    return x0[:, :1]


@functools.partial(jax.jit, static_argnums=0)
def sampled_with_guide(sampler, x, levels, data, std):
    denoise = editing.posterior_guide(oracles.denoiser(data), see, jnp.array(OBSERVED)[None], std, iterations=1)
    return jd.sample(sampler, denoise, x, levels, jax.random.key(0))


def test_posterior_guide_samples_the_exact_posterior():
    """Of a mixture, with each step resampled; for one Gaussian with nothing but a deterministic sampler."""
    for data, sampler in ((overlapping(), editing.resampled(jd.ddpm(), 3)), (one(), jd.dpmpp_2m())):
        sampled = functools.partial(sampled_with_guide, sampler)
        for std in (0.05, 0.3):
            assert failures(ends(sampled, 128, data, std), posterior(data, MATRIX, OBSERVED, std)) == []


@functools.partial(jax.jit, static_argnums=0)
def repainted(times, x, levels, data):
    known, mask = jnp.array([[0.4, 0.0]]), jnp.array([[True, False]])
    sampler = editing.resampled(editing.inpaint(jd.ddpm(), known, mask), times)
    return jd.sample(sampler, oracles.denoiser(data), x, levels, jax.random.key(0))


def test_repaint_samples_the_exact_posterior():
    """Of one Gaussian; of the mixture its bias falls with the number of times that each step is taken."""
    once, often = (functools.partial(repainted, times) for times in (1, 6))
    x0 = ends(often, 128, one())
    np.testing.assert_allclose(x0[:, 0], 0.4)
    assert failures(x0, posterior(one(), MATRIX, OBSERVED, 1e-3)) == []
    exact, _ = jax.jit(oracles.moments)(posterior(overlapping(), MATRIX, OBSERVED, 1e-3))
    bias = [abs(ends(sampled, 128, overlapping()).mean(axis=0)[1] - exact[1]) for sampled in (once, often)]
    assert bias[0] > 0.2
    assert bias[1] < 0.5 * bias[0]


def test_reconstruction_guide_is_exact_for_a_round_gaussian(float64):
    """Where p(x0 | x) has the variance that it assumes: against the exact denoiser of the posterior."""
    data, x = oracles.gaussian([0.3, -0.2], 0.7), np.array([[0.3, -2.0], [1.7, 0.4]])

    @jax.jit
    def guided_and_exact(level):
        guided = editing.reconstruction_guide(oracles.denoiser(data), see, jnp.array(OBSERVED)[None], 0.2, data_std=0.7)
        return guided(x, level), oracles.denoiser(oracles.posterior(data, MATRIX, OBSERVED, 0.2))(x, level)

    for time in (0.1, 0.5, 0.9):
        np.testing.assert_allclose(*guided_and_exact(jd.cosine()(time)), rtol=1e-9)


def test_posterior_guide_is_the_exact_denoiser_of_a_gaussians_posterior(float64):
    """In six dimensions with three observations, solved by three steps of conjugate gradients, example by example."""
    rng = np.random.default_rng(0)
    root, matrix, x = rng.normal(size=(6, 6)), rng.normal(size=(3, 6)), rng.normal(size=(5, 6))
    observed, level = jnp.array([0.3, -1.0, 2.0]), jd.cosine()(0.4)

    @jax.jit
    def guided_and_exact(x):
        data = oracles.correlated([1.0], jnp.ones((1, 6)), (root @ root.T / 6)[None])
        guided = editing.posterior_guide(oracles.denoiser(data), lambda x0: x0 @ matrix.T, observed[None], 0.1, iterations=3)
        return guided(x, level), oracles.denoiser(oracles.posterior(data, matrix, observed, 0.1))(x, level)

    guided, exact = guided_and_exact(x)
    np.testing.assert_allclose(guided, exact, rtol=1e-7)
    np.testing.assert_allclose(guided_and_exact(x[:1])[0], guided[:1], rtol=1e-9)


@pytest.mark.parametrize("sampler", [jd.ddim(), jd.heun()])
def test_inversion_and_back_returns_the_image(sampler, float64):
    """Every image, those where two modes part among them."""
    x0 = oracles.draw(clouds(), jax.random.key(0), 500)
    denoise, key = oracles.denoiser(clouds()), jax.random.key(0)

    @jax.jit
    def there_and_back(levels, iterations):
        x = editing.invert(sampler, denoise, x0, levels, key, iterations)
        return x, jd.sample(sampler, denoise, x, levels, key)

    levels = jd.grid(jd.uniform_logsnr(jd.cosine(-10.0, 12.0)), 100, t_min=0.0)
    for iterations, quantile in ((4, 0.98), (16, 1.0)):
        x, back = there_and_back(levels, iterations)
        assert 0.8 < np.std(x) < 1.2  # noise
        assert np.quantile(np.linalg.norm(np.asarray(back) - x0, axis=-1), quantile) < 1e-3


def test_sdedit_keeps_more_of_the_image_the_less_it_is_noised():
    data = clouds()
    x0 = np.tile(data.means[:1], (NUM, 1))
    edited = jax.jit(lambda levels: editing.sdedit(jd.ddpm(), oracles.denoiser(data), x0, levels, jax.random.key(0)))
    levels = jax.tree.map(np.asarray, jd.grid(jd.cosine(), 64))
    stayed = [np.mean(np.linalg.norm(edited(levels[start:]) - x0, axis=-1) < 0.8) for start in (0, 40, 60)]
    assert abs(stayed[0] - 0.2) < 0.03  # all of it noise: the component's own weight
    assert stayed[0] < stayed[1] < stayed[2] == 1


def test_the_gradient_of_a_posterior_guide_is_finite_once_it_is_solved():
    denoise = oracles.denoiser(overlapping())

    def end(x, observed, logsnr):
        return jnp.sum(editing.posterior_guide(denoise, see, observed, 0.1, iterations=8)(x, from_logsnr(logsnr)) ** 2)

    graded = jax.jit(jax.grad(end, argnums=(0, 1)))
    for logsnr in (-10.0, 0.0, 10.0):
        gradients = graded(np.float32([[0.3, -2.0], [1.7, 0.4]]), np.float32([OBSERVED]), np.float32(logsnr))
        assert all(np.isfinite(gradient).all() for gradient in gradients)


def test_resampled_says_what_is_wrong():
    with pytest.raises(ValueError, match="resampled: times must be a whole number of at least 1, got 0"):
        editing.resampled(jd.ddpm(), 0)
