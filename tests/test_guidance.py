import jax.numpy as jnp
import numpy as np
from cases import clouds

import jaxdiff as jd
from jaxdiff import oracles


def test_scale_one_is_the_denoiser_and_zero_the_reference_exactly():
    denoise, reference = oracles.denoiser(clouds()), oracles.denoiser(oracles.gaussian([0.3, 0.1], 0.7))
    x, level = jnp.array([[0.3, -2.0], [1.7, 0.4]]), jd.cosine()(0.4)
    np.testing.assert_array_equal(jd.guide(denoise, reference, 1.0)(x, level), denoise(x, level))
    np.testing.assert_array_equal(jd.guide(denoise, reference, 0.0)(x, level), reference(x, level))
    three = denoise(x, level) + 2 * (denoise(x, level) - reference(x, level))
    np.testing.assert_allclose(jd.guide(denoise, reference, 3.0)(x, level), three, rtol=1e-5, atol=1e-6)


def test_guided_score_is_the_weighted_sum_of_scores(float64):
    """Ho & Salimans (2022), eq. 6: in scores as in clean images."""
    data, other = clouds(), oracles.gaussian([0.3, 0.1], 0.7)
    x, level = jnp.array([[0.3, -2.0], [1.7, 0.4]]), jd.cosine()(0.4)
    guided = jd.guide(oracles.denoiser(data), oracles.denoiser(other), 2.5)(x, level)
    score = (level.alpha * guided - x) / level.sigma**2
    expected = 2.5 * oracles.score(data)(x, level) - 1.5 * oracles.score(other)(x, level)
    np.testing.assert_allclose(score, expected, rtol=1e-6, atol=1e-8)


def test_clip_bounds_the_clean_image():
    denoise = jd.clip(lambda x, level: 3 * x)
    np.testing.assert_array_equal(denoise(jnp.array([[-1.0, 0.1]]), jd.cosine()(0.5)), jnp.array([[-1.0, 0.3]], jnp.float32))
