import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import SCHEDULES, clouds

import jaxdiff as jd
from jaxdiff import guidance, oracles

ONE = [1.0, 0.0, 0.0]  # the label that is the first cloud
X = [[0.3, -2.0], [1.7, 0.4], [-0.8, 0.1]]


def pair():
    return oracles.denoiser(oracles.conditional(clouds(), ONE)), oracles.denoiser(clouds())


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


@pytest.mark.parametrize("schedule", ["cosine", "karras", "rectified_flow"])
@pytest.mark.parametrize("likelihood", [ONE, [0.0, 1.0, 1.0], [0.7, 0.2, 0.1]])
def test_the_exact_classifier_gives_the_exact_denoiser_of_the_label(schedule, likelihood, float64):
    for time in (0.05, 0.3, 0.7, 0.95):
        level = SCHEDULES[schedule](time)
        x = level.alpha * jnp.array(X) + level.sigma * jax.random.normal(jax.random.key(0), (3, 2))
        log_prob = oracles.class_log_prob(clouds(), likelihood)
        found = jd.classifier_guide(oracles.denoiser(clouds()), log_prob)(x, level)
        np.testing.assert_allclose(found, oracles.denoiser(oracles.conditional(clouds(), likelihood))(x, level), atol=1e-6)


def test_guidance_by_two_denoisers_is_that_by_the_two_log_densities(float64):
    """`guide` against the gradient of `scale log q(x | label) + (1 - scale) log q(x)`; so is the classifier's."""
    x = jnp.array(X)
    for level in (jd.cosine()(0.3), jd.karras()(0.6), jd.rectified_flow()(0.8)):
        exact = oracles.guided(clouds(), ONE, 2.5)(x, level)
        np.testing.assert_allclose(jd.guide(*pair(), 2.5)(x, level), exact, rtol=1e-7, atol=1e-7)
        by_classifier = jd.classifier_guide(pair()[1], oracles.class_log_prob(clouds(), ONE), 2.5)(x, level)
        np.testing.assert_allclose(by_classifier, exact, rtol=1e-7, atol=1e-7)


def test_interval_guides_inside_alone_and_calls_no_more():
    calls = []

    def counted(name, denoise):
        def counting(x, level):
            jax.debug.callback(lambda: calls.append(name))
            return denoise(x, level)

        return counting

    label, plain = pair()
    limited = guidance.interval(counted("guided", jd.guide(label, plain, 3.0)), counted("label", label), 0.5, 2.0)
    x = jnp.array(X)
    for sigma, name in ((0.4, "label"), (0.5, "label"), (0.6, "guided"), (2.0, "guided"), (2.1, "label")):
        level = jd.Level(jnp.ones(()), jnp.float32(sigma))
        expected = jd.guide(label, plain, 3.0) if name == "guided" else label
        np.testing.assert_allclose(jax.jit(limited)(x, level), expected(x, level), rtol=1e-6)
        jax.effects_barrier()
        assert calls == [name]
        calls.clear()


def test_rescaled_has_the_labels_standard_deviation():
    label, plain = pair()
    guided, x, level = jd.guide(label, plain, 4.0), jnp.array(X), jd.cosine()(0.6)
    whole, none = (guidance.rescaled(guided, label, share)(x, level) for share in (1.0, 0.0))
    np.testing.assert_allclose(jnp.std(whole, axis=1), jnp.std(label(x, level), axis=1), rtol=1e-5)
    np.testing.assert_allclose(none, guided(x, level), rtol=1e-6)
    np.testing.assert_allclose(guidance.rescaled(guided, label, 0.7)(x, level), 0.7 * whole + 0.3 * none, rtol=1e-5)
    gradient = jax.grad(lambda x: jnp.sum(guidance.rescaled(lambda x, level: 0 * x, label)(x, level)))(x)
    assert bool(jnp.all(jnp.isfinite(gradient)))


def test_projected_guide_drops_the_parallel_part_and_bounds_the_rest(float64):
    """Sadat et al. (2024), algorithm 1: orthogonal to the denoiser's answer, no longer than the radius."""
    label, plain = pair()
    x, level = jnp.array(X), jd.cosine()(0.6)
    np.testing.assert_allclose(
        guidance.projected_guide(label, plain, 3.0, eta=1.0)(x, level), jd.guide(label, plain, 3.0)(x, level), rtol=1e-9
    )
    x0, difference = label(x, level), label(x, level) - plain(x, level)
    moved = guidance.projected_guide(label, plain, 2.0)(x, level) - x0
    np.testing.assert_allclose(jnp.sum(moved * x0, axis=1), 0, atol=1e-12)
    unit = x0 / jnp.linalg.norm(x0, axis=1, keepdims=True)
    np.testing.assert_allclose(moved, difference - jnp.sum(difference * unit, axis=1, keepdims=True) * unit, rtol=1e-9)
    gradient = jax.grad(lambda x: jnp.sum(guidance.projected_guide(label, plain, 3.0)(x, level) ** 2))(x)
    assert bool(jnp.all(jnp.isfinite(gradient)))
    bounded = guidance.projected_guide(label, plain, 2.0, eta=1.0, radius=0.1)(x, level) - x0
    np.testing.assert_allclose(jnp.linalg.norm(bounded, axis=1), jnp.minimum(0.1, jnp.linalg.norm(difference, axis=1)), rtol=1e-9)
