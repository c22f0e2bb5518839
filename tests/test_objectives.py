"""Classifiers of noised images, held to mixtures of Gaussians, whose class posterior is known."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdiff as jd
from jaxdiff import objectives, oracles

CLASSES = [oracles.gaussian(mean, std) for mean, std in (([1.0, 0.0], 0.3), ([-1.0, 0.5], 0.5), ([0.0, -1.0], 0.2))]
SCHEDULES = {"cosine": jd.cosine(), "karras": jd.karras()}


def posterior(params, x, logsnr, key):
    """The exact logits of equally frequent classes at temperature 1 and offset 0, from x scaled to unit size."""
    temperature, offset = params
    level = jd.from_logsnr(logsnr + offset).expand(x.ndim)
    return temperature * jnp.stack([oracles.log_density(each, x, level) for each in CLASSES], axis=-1)


@partial(jax.jit, static_argnums=0)
def batch(num):
    label = jnp.arange(num) % 3
    each = jnp.stack([oracles.draw(data, jax.random.key(number), num) for number, data in enumerate(CLASSES)])
    return {"image": each[label, jnp.arange(num)], "label": label, "index": jnp.arange(num)}


EXACT = (jnp.float32(1), jnp.float32(0))


@pytest.mark.parametrize("name", SCHEDULES)
def test_classifier_loss_is_the_cross_entropy_at_noised_images(name):
    seen, data = [], batch(1000)

    def network(params, x, logsnr, key):
        seen.append((x, logsnr, key))
        return params * x[:, :1] * jnp.arange(3.0)[None] + jnp.cos(logsnr)[:, None]

    @jax.jit
    def loss_and_seen(params):
        return objectives.classifier(network, SCHEDULES[name])(params, None, data, jax.random.key(0)), seen.pop()

    loss, (x, logsnr, key) = loss_and_seen(jnp.float32(0.7))
    x, logsnr = np.asarray(x, np.float64), np.asarray(logsnr, np.float64)
    logits = 0.7 * x[:, :1] * np.arange(3.0)  # the shift is the same for every class
    by_hand = np.log(np.exp(logits).sum(1)) - logits[np.arange(1000), data["label"]]
    np.testing.assert_allclose(loss, by_hand.mean(), rtol=1e-5)
    alpha2 = 1 / (1 + np.exp(-logsnr[:, None]))  # scaled to unit size, x is at the variance-preserving level of its logsnr
    noise = (x - np.sqrt(alpha2) * data["image"]) / np.sqrt(1 - alpha2)
    for third in np.split(np.argsort(logsnr)[:999], 3):
        assert abs(noise[third].mean()) < 0.15
        assert abs(noise[third].std() - 1) < 0.1
    assert logsnr.max() - logsnr.min() > 20
    assert key is not None


def test_a_cut_batch_has_the_same_classifier_loss():
    objective = jax.jit(objectives.classifier(posterior, jd.cosine()))
    data = batch(12)
    parts = [jax.tree.map(lambda leaf, cut=cut: leaf[cut], data) for cut in (slice(0, 6), slice(6, 12))]
    whole, *halves = (objective(EXACT, None, rows, jax.random.key(1)) for rows in (data, *parts))
    np.testing.assert_allclose(whole, np.mean(halves), rtol=1e-5)
    assert halves[0] != halves[1]


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_exact_posterior_minimises_the_classifier_loss(name):
    objective = jax.jit(jax.value_and_grad(objectives.classifier(posterior, SCHEDULES[name])))
    data = batch(9999)
    (best, slope), *others = (
        objective((jnp.float32(temperature), jnp.float32(offset)), None, data, jax.random.key(2))
        for temperature, offset in ((1, 0), (0.7, 0), (1.4, 0), (1, -1), (1, 1))
    )
    assert all(loss > best for loss, _ in others)
    for axis, near in ((0, others[:2]), (1, others[2:])):
        assert abs(slope[axis]) < 0.2 * min(abs(gradient[axis]) for _, gradient in near)


@pytest.mark.parametrize("name", SCHEDULES)
def test_label_log_prob_guides_to_the_exact_denoiser_of_each_label(name):
    """Scale 1 from the unconditional denoiser; the label after the last is none, and guides nowhere."""
    plain = oracles.denoiser(oracles.mixture([1.0, 1.0, 1.0], [[1.0, 0.0], [-1.0, 0.5], [0.0, -1.0]], [0.3, 0.5, 0.2]))
    label = jnp.array([0, 1, 2, 3])
    guided = jax.jit(jd.classifier_guide(plain, objectives.label_log_prob(posterior, EXACT, label)))
    for time in (0.3, 0.6, 0.9):
        level = SCHEDULES[name](time)
        x = level.alpha * jnp.array([[0.3, -0.2], [1.7, 0.4], [-0.8, 0.1], [0.2, 0.2]])
        expected = [oracles.denoiser(each)(x, level)[number] for number, each in enumerate(CLASSES)] + [plain(x, level)[3]]
        np.testing.assert_allclose(guided(x, level), np.stack(expected), atol=2e-4)
