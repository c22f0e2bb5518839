import jax
import jax.numpy as jnp
import numpy as np

import jaxdiff as jd
from jaxdiff import losses, objectives, targets


def test_times_are_uniform_and_spread():
    index = jnp.arange(1000)
    times = np.stack([losses.spread_times(jax.random.key(seed), index) for seed in range(50)])
    assert (times >= 0).all()
    assert (times <= 1).all()
    np.testing.assert_allclose(times.mean(), 0.5, atol=1e-3)
    gaps = np.diff(np.sort(times[0]))
    assert gaps.max() < 3 / 1000  # independent draws leave a gap of about log(1000) / 1000
    first = times[:, 0]
    assert abs(first.mean() - 0.5) < 0.13  # a single time is uniform over seeds: std 0.29 / sqrt(50) = 0.04
    assert first.std() > 0.2


def test_randomness_of_an_example_depends_on_its_index_alone():
    """A batch cut in two gives the same losses: what makes every device layout equal."""
    x0 = jax.random.normal(jax.random.key(0), (8, 4, 4, 1))
    batch = {"image": x0, "label": jnp.arange(8), "index": jnp.arange(8)}

    def network(params, x, logsnr, label, key):
        return params * x * jnp.cos(logsnr)[:, None, None, None] + label.astype(jnp.float32)[:, None, None, None]

    objective = objectives.diffusion(network, jd.cosine(), jd.predict_v, losses.v_weight, condition=objectives.labels(8, 0.5))
    whole = objective(jnp.float32(0.3), None, batch, jax.random.key(1))
    halves = [
        objective(jnp.float32(0.3), None, jax.tree.map(lambda leaf, cut=cut: leaf[cut], batch), jax.random.key(1))
        for cut in (slice(0, 4), slice(4, 8))
    ]
    np.testing.assert_allclose(whole, np.mean(halves), rtol=1e-6)


def test_labels_are_dropped_at_the_rate():
    label = jnp.arange(10_000) % 10
    dropped = objectives.drop_label(jax.random.key(0), jnp.arange(10_000), label, 10, 0.1)
    assert abs(float(jnp.mean(dropped == 10)) - 0.1) < 0.012
    np.testing.assert_array_equal(dropped[dropped != 10], label[dropped != 10])


def test_named_weights():
    level = jd.cosine()(jnp.array([0.05, 0.5, 0.95]))
    snr = np.exp(level.logsnr)
    np.testing.assert_allclose(losses.v_weight(level), 1 + snr, rtol=1e-4)  # variance preserving
    np.testing.assert_allclose(losses.truncated_snr(level), np.maximum(snr, 1), rtol=1e-4)
    np.testing.assert_allclose(losses.min_snr(5.0)(level), np.minimum(snr, 5), rtol=1e-4)
    np.testing.assert_allclose(losses.edm_weight(0.5)(level), snr + 4, rtol=1e-4)


def test_one_key_or_one_key_an_example():
    x0, level = jnp.zeros((4, 3)), jd.cosine()(0.5)
    loss = jd.regression_loss(lambda x, level: x, targets.data(x0), x0, level, jax.random.key(0), losses.x0_weight)
    assert loss.shape == (4,)
    keys = jax.random.split(jax.random.key(0), 4)
    own = losses.noise_like(keys, x0)
    np.testing.assert_array_equal(own[2], losses.noise_like(keys[2], x0[2]))
