"""The learned schedule: its network, the bound and its two gradients, and the optimum where that is known."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxdiff as jd
from jaxdiff import objectives, oracles, training
from jaxdiff.models.schedule import MonotoneLogsnr, logsnr

PLAIN_LOGSNR = logsnr(MonotoneLogsnr())
JITTED_LOGSNR = jax.jit(PLAIN_LOGSNR)
SHORT = MonotoneLogsnr(logsnr_min=-6.0, logsnr_max=8.0)
SHORT_LOGSNR = logsnr(SHORT)
CLASSES = 3
NULL = CLASSES


def weights(module, seed=0, size=0.0):
    params = module.init(jax.random.key(0), jnp.zeros(()))["params"]
    keys = iter(jax.random.split(jax.random.key(seed), len(params)))
    return jax.tree.map(lambda leaf: leaf * (1 + size * jax.random.normal(next(keys), leaf.shape)), params)


@pytest.mark.parametrize("size", [0.0, 1.0, 30.0])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_logsnr_falls_strictly_between_exact_ends(float64, dtype, size):
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), weights(MonotoneLogsnr(), 1, size))
    t = jnp.linspace(0, 1, 2001, dtype=dtype)
    for apply in (PLAIN_LOGSNR, JITTED_LOGSNR):
        values = np.asarray(apply(params, t))
        assert values.dtype == dtype
        assert values[0] == np.asarray(13.3, dtype)
        assert values[-1] == -5
        assert np.all(np.diff(values) < 0)
        np.testing.assert_array_equal([apply(params, t[0]), apply(params, t[-1])], [values[0], values[-1]])
        np.testing.assert_allclose(apply(params, t[1:].reshape(4, 500)), values[1:].reshape(4, 500), rtol=1e-5)


def test_logsnr_starts_linear():
    t = jnp.linspace(0, 1, 101)
    np.testing.assert_allclose(logsnr(MonotoneLogsnr())(weights(MonotoneLogsnr()), t), 13.3 - 18.3 * t, atol=1e-3)


def test_the_gradient_is_finite_even_where_all_weights_are_zero():
    def slopes(params, t):
        return jnp.sum(jax.jvp(lambda t: SHORT_LOGSNR(params, t), (t,), (jnp.ones_like(t),))[1])

    t, params, gradients = jnp.linspace(0, 1, 5), weights(SHORT, 2, 1.0), jax.jit(jax.grad(slopes, (0, 1)))
    for given in (params, jax.tree.map(jnp.zeros_like, params), jax.tree.map(lambda leaf: 1e4 * leaf, params)):
        assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(gradients(given, t)))


def predicted(params, x, logsnr, label, key):
    """A network of noise that hears all of its inputs."""
    return params["gain"][label][:, None] * jnp.tanh(x) + params["bias"] * jnp.cos(logsnr)[:, None]


PARAMS = {
    "network": {"gain": jnp.array([0.3, 0.6, -0.5, 0.1]), "bias": jnp.float32(0.4)},
    "schedule": weights(SHORT, 3, 0.7),
}


def batch(num):
    x0 = jax.random.normal(jax.random.key(7), (num, 3))
    return {"image": x0, "label": jnp.arange(num) % CLASSES, "index": jnp.arange(num)}


SEEN = []


def recorded(params, x, logsnr, label, key):
    jax.debug.callback(lambda *inputs: SEEN.append(inputs), x, logsnr, label, key is not None)
    return predicted(params, x, logsnr, label, key)


OBJECTIVE = objectives.variational_diffusion(recorded, SHORT_LOGSNR, jd.predict_noise, condition=objectives.labels(NULL, 0.3))
LOSS_AND_GRADIENT = jax.jit(jax.value_and_grad(OBJECTIVE))


def loss_gradient_and_seen(rows):
    """The loss and gradient of these rows, and what the network was given: x, logsnr, label, whether a dropout key."""
    SEEN.clear()
    result = LOSS_AND_GRADIENT(PARAMS, None, jax.tree.map(lambda leaf: leaf[rows], batch(32)), jax.random.key(0))
    jax.block_until_ready(result)
    jax.effects_barrier()
    (inputs,) = SEEN  # one forward pass
    return result, inputs


@jax.jit
def by_hand(network, schedule, t, noise, label, x0):
    """The terms of the bound in noise, `[B]`, as Kingma et al. (2021), eq. 18 with w = 1, write it."""
    logsnr = SHORT_LOGSNR(schedule, t)
    slope = jax.vmap(jax.grad(lambda t: SHORT_LOGSNR(schedule, t)))(t)
    alpha2 = 1 / (1 + jnp.exp(-logsnr))[:, None]
    x = jnp.sqrt(alpha2) * x0 + jnp.sqrt(1 - alpha2) * noise
    return -slope / 2 * jnp.mean((noise - predicted(network, x, logsnr, label, None)) ** 2, axis=1)


@pytest.fixture(scope="module")
def seen():
    """The loss, its gradient, and where: times, noise, labels, images; and whether the network had a dropout key."""
    (loss, gradient), (x, logsnr, label, has_key) = loss_gradient_and_seen(slice(None))
    times = jnp.linspace(0, 1, 100001)
    t = np.interp(-logsnr, -SHORT_LOGSNR(PARAMS["schedule"], times), times).astype(np.float32)
    alpha2 = 1 / (1 + np.exp(-np.float64(logsnr)))[:, None]
    noise = ((x - np.sqrt(alpha2) * batch(32)["image"]) / np.sqrt(1 - alpha2)).astype(np.float32)
    return loss, gradient, (t, noise, label, batch(32)["image"]), has_key


def test_the_loss_is_the_bound_at_spread_times_and_dropped_labels(seen):
    loss, _, (t, noise, label, x0), has_key = seen
    np.testing.assert_allclose(loss, jnp.mean(by_hand(*PARAMS.values(), t, noise, label, x0)), rtol=1e-4)
    np.testing.assert_array_less(np.diff(np.sort(t)), 2.7 / 32)  # by the golden ratio, no gap is longer
    assert abs(noise.std() - 1) < 0.2
    assert 0.1 < np.mean(label == NULL) < 0.6
    np.testing.assert_array_equal(label[label != NULL], (np.arange(32) % CLASSES)[label != NULL])
    assert has_key


def test_the_network_descends_the_bound_and_the_schedule_its_variance(seen):
    """Of `l / 7`: linear logsnr from 8 to -6 has `l = 7 e^2`."""
    _, gradient, inputs, _ = seen
    expected = {
        "network": jax.jit(jax.grad(lambda p: jnp.mean(by_hand(p, PARAMS["schedule"], *inputs))))(PARAMS["network"]),
        "schedule": jax.jit(jax.grad(lambda p: jnp.mean((by_hand(PARAMS["network"], p, *inputs) / 7) ** 2)))(PARAMS["schedule"]),
    }

    def near(found, wanted):
        size = float(jnp.max(jnp.abs(wanted)))
        assert size > 1e-3
        np.testing.assert_allclose(found, wanted, rtol=2e-3, atol=2e-3 * size)

    jax.tree.map(near, gradient, expected)


def test_a_cut_batch_has_the_same_loss_and_gradient(seen):
    loss, gradient, *_ = seen
    halves = [loss_gradient_and_seen(rows)[0] for rows in (slice(0, 16), slice(16, 32))]
    mean = jax.tree.map(lambda a, b: (a + b) / 2, *halves)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-4), mean, (loss, gradient))
    assert halves[0][0] != halves[1][0]


DATA = {
    "gaussian": oracles.gaussian(jnp.zeros(16), 0.4),
    "mixture": oracles.mixture([0.3, 0.7], [[1.0], [-1.0]], [0.05, 0.05]),
}
LINEAR, COSINE = jd.linear_logsnr(-6.0, 8.0), jd.cosine(-6.0, 8.0)
FIXED = {"linear": lambda params, t: LINEAR(t).logsnr, "cosine": lambda params, t: COSINE(t).logsnr}


def exact(name, logsnr_of):
    """The objective where the network is the exact denoiser of the data."""
    denoise = oracles.denoiser(DATA[name])
    network = lambda params, x, logsnr, label, key: denoise(x, jd.from_logsnr(logsnr).expand(x.ndim))  # noqa: E731
    return objectives.variational_diffusion(network, logsnr_of, jd.predict_x0, condition=objectives.labels(NULL))


def rows(name, key, num):
    return {"image": oracles.draw(DATA[name], key, num), "label": jnp.zeros(num, jnp.int32), "index": jnp.arange(num)}


@pytest.fixture(scope="module")
def learned():
    """The schedules that 600 updates learn from the linear one."""

    def trained(name):
        optimizer = optax.adam(optax.cosine_decay_schedule(2e-3, 600))
        step = training.train_step(exact(name, SHORT_LOGSNR), optimizer, {})
        state = training.initial_state({"network": {}, "schedule": weights(SHORT)}, optimizer, {})
        keys = jax.random.split(jax.random.key(11), 600)
        update = lambda state, key: (step(state, rows(name, key, 256), jax.random.key(12))[0], None)  # noqa: E731
        return jax.lax.scan(update, state, keys)[0].params

    return {name: jax.jit(partial(trained, name))() for name in DATA}


@partial(jax.jit, static_argnums=(0, 1))
def one_sample_bounds(name, logsnr_of, params):
    """The bound by one example at one uniform time, 30,000 times."""
    objective, num = exact(name, logsnr_of), 30000
    data = jax.tree.map(lambda leaf: leaf[:, None], rows(name, jax.random.key(21), num))
    return jax.vmap(lambda row, key: objective(params, None, row, key))(data, jax.random.split(jax.random.key(22), num))


def information(data, logsnr):
    """Nats that x at this logsnr knows of x0 in one dimension: entropy of x minus that of its noise, by quadrature."""
    level = jd.from_logsnr(jnp.float32(logsnr))
    x = jnp.linspace(-8, 8, 40001)
    log_q = oracles.log_density(data, x[:, None], level)
    return -np.trapezoid(jnp.exp(log_q) * log_q, x) - np.log(2 * np.pi * np.e * level.sigma**2) / 2


def softplus(x):
    return np.logaddexp(0, x)


SHIFT = 2 * np.log(0.4)  # the Gaussian's noise error is sigmoid(logsnr + SHIFT) a dimension
BOUNDS = {
    "gaussian": (softplus(8 + SHIFT) - softplus(-6 + SHIFT)) / 2,
    "mixture": information(DATA["mixture"], 8.0) - information(DATA["mixture"], -6.0),  # Guo, Shamai & Verdu (2005)
}


CUTS = {"gaussian": {"linear": 6, "cosine": 40}, "mixture": {"linear": 1.3, "cosine": 5}}  # measured: 7.9, 57; 1.5, 7.5


@pytest.mark.parametrize("name", DATA)
def test_a_learned_schedule_keeps_the_bound_and_cuts_its_variance(learned, name):
    variance = {}
    for each, logsnr_of in {**FIXED, "learned": SHORT_LOGSNR}.items():
        values = one_sample_bounds(name, logsnr_of, learned[name])
        variance[each] = float(values.var())
        assert abs(float(values.mean()) - BOUNDS[name]) < 4 * (variance[each] / len(values)) ** 0.5
    for each, factor in CUTS[name].items():
        assert variance[each] > factor * variance["learned"]


def test_the_learned_density_of_logsnr_is_the_root_of_the_mean_square_error(learned):
    """The variance is least where `dt/dlogsnr ~ sqrt(E[e^2])`; then `2 / dimensions * bound^2`, the noise of e, is left."""
    t = jnp.linspace(0, 1, 4001)
    logsnr = np.asarray(SHORT_LOGSNR(learned["gaussian"]["schedule"], t))
    middle = np.linspace(0, 7.5, 31)  # holds 97% of the times
    times = np.interp([middle - 0.25, middle + 0.25], logsnr[::-1], t[::-1])
    best = 1 / (1 + np.exp(-middle - SHIFT)) / (2 * BOUNDS["gaussian"])
    np.testing.assert_allclose((times[0] - times[1]) / 0.5, best, rtol=0.15)
    least = 2 / 16 * BOUNDS["gaussian"] ** 2
    assert 0.9 * least < one_sample_bounds("gaussian", SHORT_LOGSNR, learned["gaussian"]).var() < 1.25 * least
