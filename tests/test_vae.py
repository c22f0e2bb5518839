"""Variational autoencoders: bounds held to probabilistic PCA, whose likelihood is exact, and the convolutional networks."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats

from jaxdiff import likelihood, objectives, training
from jaxdiff.likelihood import densities
from jaxdiff.models import autoencoder
from jaxdiff.models.layers import ResidualBlock

DIMENSIONS, LATENTS, STD = 6, 2, 0.4
WEIGHT = np.random.default_rng(0).normal(size=(DIMENSIONS, LATENTS))
SHIFT = np.linspace(-1, 1, DIMENSIONS)
TINY = {"channels": 8, "multipliers": (1, 2), "blocks": 1, "attention": (4,), "head_channels": 8}


def observations(num):
    """Draws of probabilistic PCA (Tipping & Bishop 1999, eq. 2)."""
    rng = np.random.default_rng(1)
    return rng.normal(size=(num, LATENTS)) @ WEIGHT.T + SHIFT + STD * rng.normal(size=(num, DIMENSIONS))


def log_density(x, weight, shift, std):
    return scipy.stats.multivariate_normal(shift, weight @ weight.T + std**2 * np.eye(len(shift))).logpdf(x)


def maximum(x):
    """The mean log-likelihood at its maximum over all weights, shifts and stds (Tipping & Bishop 1999, eq. 4 at eqs. 7 and 8)."""
    values = np.linalg.eigvalsh(np.cov(x.T, bias=True))[::-1]
    kept, dropped = values[:LATENTS], values[LATENTS:]
    log_det = np.log(kept).sum() + len(dropped) * np.log(dropped.mean())
    return -(DIMENSIONS * np.log(2 * np.pi) + log_det + DIMENSIONS) / 2


def encode(params, x0):
    mean = x0 @ params["to_code"] + params["offset"][None]
    return mean, jnp.broadcast_to(jnp.exp(params["log_std"])[None], mean.shape)


def decode(params, z, x0):
    pixels = likelihood.gaussian_pixels(jnp.exp(params["noise"]))
    return pixels.log_prob(x0, z @ params["weight"].T + params["shift"][None])


def poor_model():
    """The truth as a decoder, and an encoder off in mean and in width: `(encode, decode, exact elbo of x [B])`."""
    precision = np.eye(LATENTS) + WEIGHT.T @ WEIGHT / STD**2
    to_code = np.linalg.solve(precision, WEIGHT.T).T / STD**2
    params = {
        "to_code": to_code,
        "offset": 0.1 - SHIFT @ to_code,
        "log_std": np.log(1.5 / np.sqrt(np.diag(precision))),
        "noise": np.log(STD),
        "weight": WEIGHT,
        "shift": SHIFT,
    }
    params = jax.tree.map(partial(jnp.asarray, dtype=jnp.float32), params)

    def exact(x):
        mean, std = (np.asarray(value, np.float64) for value in encode(params, jnp.asarray(x, jnp.float32)))
        residual = ((x - mean @ WEIGHT.T - SHIFT) ** 2).sum(1) + (std**2 @ WEIGHT.T**2).sum(1)
        reconstruction = -residual / (2 * STD**2) - DIMENSIONS * np.log(2 * np.pi * STD**2) / 2
        return reconstruction - ((mean**2 + std**2 - 1) / 2 - np.log(std)).sum(1)

    return partial(encode, params), partial(decode, params), exact


@partial(jax.jit, static_argnums=2)
def trained(params, x0, num_steps):
    optimizer = optax.adam(optax.cosine_decay_schedule(0.03, num_steps))
    step = training.train_step(objectives.vae(encode, decode), optimizer, {"ema": 0.99})
    batch = {"image": x0, "index": jnp.arange(len(x0))}
    state = training.initial_state(params, optimizer, {"ema": 0.99})
    return jax.lax.scan(lambda state, _: (step(state, batch, jax.random.key(0))[0], None), state, None, num_steps)[0].ema["ema"]


def test_a_linear_vae_reaches_the_exact_maximum_of_the_likelihood():
    x = observations(500)
    x0 = jnp.asarray(x, jnp.float32)
    to_code, weight = 0.1 * jax.random.normal(jax.random.key(0), (2, DIMENSIONS, LATENTS))
    code, image = jnp.zeros(LATENTS), jnp.zeros(DIMENSIONS)
    start = {"to_code": to_code, "weight": weight, "offset": code, "log_std": code, "shift": image, "noise": jnp.float32(0)}
    params = trained(start, x0, 2000)
    found = log_density(x, np.asarray(params["weight"]), np.asarray(params["shift"]), np.exp(float(params["noise"]))).mean()
    assert maximum(x) - 1e-2 < found < maximum(x) + 1e-6
    bound = likelihood.mean(likelihood.elbo(partial(encode, params), partial(decode, params), x0, jax.random.key(1), 500))
    assert abs(bound.value - maximum(x)) < 1e-2


def test_elbo_is_the_exact_bound_within_its_errors():
    encode, decode, exact = poor_model()
    x = observations(400)
    estimate = likelihood.elbo(encode, decode, jnp.asarray(x, jnp.float32), jax.random.key(2), 256)
    assert estimate.unit == "nats"
    np.testing.assert_allclose(sum(estimate.terms.values()), estimate.value, rtol=1e-6)
    scores = (estimate.value - exact(x)) / estimate.standard_error
    assert abs(scores.mean()) < 0.2
    assert 0.85 < scores.std() < 1.15


def test_importance_bound_rises_from_the_elbo_to_the_likelihood():
    encode, decode, exact = poor_model()
    x = observations(400)
    x0, truth = jnp.asarray(x, jnp.float32), log_density(x, WEIGHT, SHIFT, STD)
    bound = partial(jax.jit(likelihood.importance_bound, static_argnums=(0, 1, 4)), encode, decode)
    single = bound(jnp.repeat(x0, 100, axis=0), jax.random.key(3), 1).value.reshape(400, 100)
    assert abs(single.mean() - exact(x).mean()) < 4 * single.std() / 200
    means = [single.mean(), *(bound(x0, jax.random.key(4), k).value.mean() for k in (4, 32))]
    many = bound(x0, jax.random.key(5), 1000)
    assert truth.mean() - exact(x).mean() > 0.5
    assert all(low + 0.05 < high for low, high in itertools.pairwise(means))
    assert means[-1] < many.value.mean() < truth.mean() + 0.01
    assert abs(many.value.mean() - truth.mean()) < 0.01
    scores = (many.value - truth) / many.standard_error
    assert 0.8 < scores.std() < 1.3
    assert (abs(scores) < 2).mean() > 0.9


@pytest.mark.parametrize("bound", [likelihood.elbo, likelihood.importance_bound])
def test_a_key_an_example_makes_its_estimate_its_own(bound):
    bound = partial(jax.jit(bound, static_argnums=(0, 1, 4)), *poor_model()[:2])
    x0, keys = jnp.asarray(observations(6), jnp.float32), jax.random.split(jax.random.key(6), 6)
    whole, part = bound(x0, keys, 5), bound(x0[2:], keys[2:], 5)
    np.testing.assert_allclose(whole.value[2:], part.value, rtol=1e-5)
    assert len(np.unique(whole.standard_error)) == 6


def test_kl_is_the_mean_log_ratio_of_draws():
    rng = np.random.default_rng(2)
    mean, std = rng.normal(size=(3, 2, 2, 4)), np.exp(rng.normal(size=(3, 2, 2, 4)) - 0.5)
    posterior = likelihood.Posterior(jnp.asarray(mean, jnp.float32), jnp.asarray(std, jnp.float32))
    draws = jax.vmap(partial(likelihood.reparameterized, posterior))(jax.random.split(jax.random.key(7), 20000))
    ratio = scipy.stats.norm(mean, std).logpdf(draws) - scipy.stats.norm.logpdf(draws)
    of_channel = ratio.sum((2, 3))
    error = of_channel.std(0) / np.sqrt(len(draws))
    assert (abs(likelihood.channel_kl(posterior) - of_channel.mean(0)) < 4 * error).all()
    np.testing.assert_allclose(likelihood.kl(posterior), likelihood.channel_kl(posterior).sum(1), rtol=1e-6)


def test_a_cut_batch_has_the_same_loss():
    encode, decode, _ = poor_model()
    objective = jax.jit(objectives.vae(lambda params, x0: encode(x0), lambda params, z, x0: decode(z, x0), free_bits=0.5))
    batch = {"image": jnp.asarray(observations(12), jnp.float32), "index": jnp.arange(12)}
    parts = [jax.tree.map(lambda leaf, cut=cut: leaf[cut], batch) for cut in (slice(0, 6), slice(6, 12))]
    whole, *halves = (objective(None, None, rows, jax.random.key(1)) for rows in (batch, *parts))
    np.testing.assert_allclose(whole, np.mean(halves), rtol=1e-5)
    moved = objective(None, None, {**batch, "index": batch["index"] + 1}, jax.random.key(1))
    assert moved != whole


def test_beta_and_free_bits_price_the_code():
    """Two channels: the KL of the first is under 3 nats, that of the second above; the decoder does not look."""
    batch = {"image": jnp.zeros((4, 2, 2, 1)), "index": jnp.arange(4)}

    def loss(means, **options):
        encode = lambda params, x0: (jnp.broadcast_to(params[None, None, None], (4, 2, 2, 2)), jnp.ones((4, 2, 2, 2)))  # noqa: E731
        objective = objectives.vae(encode, lambda params, z, x0: jnp.full(4, -8.0), **options)
        return objective(means, None, batch, jax.random.key(0))

    def found(means):
        freed = partial(loss, free_bits=3.0)
        return loss(means), loss(means, beta=3.0), freed(means), jax.grad(loss)(means), jax.grad(freed)(means)

    plain, priced, free, slope, slope_of_free = jax.jit(found)(jnp.array([1.0, 2.0]))  # KL of a channel: 4 positions * mean^2 / 2
    np.testing.assert_allclose(plain, (2 + 8 + 8) / 4)
    np.testing.assert_allclose(priced, (3 * (2 + 8) + 8) / 4)
    np.testing.assert_allclose(free, (3 + 8 + 8) / 4)
    np.testing.assert_allclose(slope, [1, 2], rtol=1e-6)
    np.testing.assert_allclose(slope_of_free, [0, 2], rtol=1e-6)


VALUES = np.linspace(-1, 1, 256, dtype=np.float32)


@pytest.mark.parametrize("mean", [-1.7, -1.0, 0.1003, 1.0])
@pytest.mark.parametrize("scale", [0.002, 0.05, 3.0])
@pytest.mark.parametrize("name", ["gaussian", "logistic"])
def test_probabilities_of_the_256_values_add_to_one(name, mean, scale):
    law = {"gaussian": scipy.stats.norm, "logistic": scipy.stats.logistic}[name](mean, scale)
    density = {"gaussian": densities.discretized_gaussian, "logistic": densities.discretized_logistic}[name]
    log_prob = density(VALUES[:, None], jnp.full((256, 1), mean), jnp.full((256, 1), scale))
    np.testing.assert_allclose(np.exp(log_prob).sum(), 1, atol=1e-4)
    edges = np.concatenate([[-np.inf], np.linspace(-1, 1, 256)[:-1] + 1 / 255, [np.inf]])
    np.testing.assert_allclose(np.exp(log_prob), np.diff(law.cdf(edges)), atol=2e-5)


def test_pixels_are_the_laws_they_are_named_for():
    rng = np.random.default_rng(3)
    x0 = VALUES[rng.choice([0, 1, 77, 128, 254, 255], size=(4, 3, 2, 3))]
    output = rng.normal(size=(4, 3, 2, 6)).astype(np.float32)
    first, second = output[..., :3], output[..., 3:]

    logistic = likelihood.logistic_pixels()
    law = scipy.stats.logistic(first, np.exp(np.clip(second.astype(np.float64), -7, 2)))
    lower = np.where(x0 == -1, -np.inf, x0 - 1 / 255)
    upper = np.where(x0 == 1, np.inf, x0 + 1 / 255)
    expected = np.log(law.cdf(upper) - law.cdf(lower)).sum((1, 2, 3))
    np.testing.assert_allclose(jax.jit(logistic.log_prob)(jnp.asarray(x0), jnp.asarray(output)), expected, rtol=1e-4)
    np.testing.assert_array_equal(logistic.mean(jnp.asarray(output)), np.clip(first, -1, 1))

    std = np.array([0.1, 0.2, 0.5], np.float32)
    gaussian = likelihood.gaussian_pixels(jnp.asarray(std))
    continuous = x0 + np.float32(1e-3)
    expected = scipy.stats.norm(first, std).logpdf(continuous).sum((1, 2, 3))
    np.testing.assert_allclose(jax.jit(gaussian.log_prob)(jnp.asarray(continuous), jnp.asarray(first)), expected, rtol=1e-4)

    binary = likelihood.binary_pixels()
    expected = scipy.stats.bernoulli(scipy.special.expit(first)).logpmf(x0 > 0).sum((1, 2, 3))
    np.testing.assert_allclose(jax.jit(binary.log_prob)(jnp.asarray(x0), jnp.asarray(first)), expected, rtol=1e-4)
    np.testing.assert_allclose(binary.mean(jnp.asarray(first)), 2 * scipy.special.expit(first) - 1, atol=1e-6)
    sides = [binary.log_prob(jnp.full((1, 1, 1, 1), side), jnp.full((1, 1, 1, 1), 0.7)) for side in (-1.0, 1.0)]
    np.testing.assert_allclose(np.exp(sides).sum(), 1, rtol=1e-6)


def test_logistic_pixels_have_finite_gradients_wherever_the_network_is():
    pixels = likelihood.logistic_pixels()
    x0, *outputs = np.meshgrid([-1.0, VALUES[100], 1.0], [-50.0, 0, 50], [-30.0, 0, 30])
    x0, output = (np.asarray(each, np.float32).reshape(27, 1, 1, -1) for each in (x0, np.stack(outputs, axis=-1)))
    value, slope = jax.jit(jax.value_and_grad(lambda output: pixels.log_prob(x0, output).sum()))(output)
    assert np.isfinite(value)
    assert np.isfinite(slope).all()


def networks(**options):
    encoder = autoencoder.Encoder(**TINY, **options, latent_channels=3)
    decoder = autoencoder.Decoder(**TINY, **options, out_channels=2)
    return encoder, decoder, jax.jit(autoencoder.encode(encoder)), jax.jit(autoencoder.decode(decoder))


@pytest.fixture(scope="module")
def tiny():
    """Random params, images, and the networks."""
    rng, made = np.random.default_rng(0), networks()
    x0 = rng.normal(size=(2, 8, 4, 1)).astype(np.float32)
    shapes = jax.eval_shape(partial(autoencoder.init, *made[:2]), jax.random.key(0), x0)
    return jax.tree.map(lambda leaf: 0.2 * rng.normal(size=leaf.shape).astype(leaf.dtype), shapes), x0, made


def test_the_decoder_mirrors_the_encoder_and_starts_at_zero(tiny):
    random, x0, (encoder, decoder, encode, decode) = tiny
    init = partial(autoencoder.init, encoder, decoder)
    params = jax.eval_shape(init, jax.random.key(0), x0)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(jnp.float32)}
    for half, blocks in (("encoder", 1), ("decoder", 2)):
        middle = {"residual_middle_0", "residual_middle_1", "attention_middle_0"}
        levels = {f"residual_{level}_{number}" for level in range(2) for number in range(blocks)}
        attention = {f"attention_1_{number}" for number in range(blocks)}  # where the image is 4 pixels high
        assert {name for name in params[half] if name.startswith(("residual", "attention"))} == middle | levels | attention
    mean, std = encode(random, x0)
    assert mean.shape == std.shape == (2, 4, 2, 3)
    ending = jax.jit(lambda key: init(key, x0)["decoder"]["conv_out"])(jax.random.key(0))  # compiled without all the rest
    image = decode({"decoder": {**random["decoder"], "conv_out": ending}}, mean)
    np.testing.assert_array_equal(image, np.zeros((2, 8, 4, 2)))


def test_an_example_moves_its_own_code_and_image_alone(tiny):
    params, x0, (*_, encode, decode) = tiny

    def with_one_more(x, place):
        x = np.array(x)
        x[place] += 1
        return x

    def check(found, moved):
        found, moved = np.asarray(found), np.asarray(moved)
        np.testing.assert_array_equal(found[0], moved[0])
        assert (found[1] != moved[1]).all()

    mean, std = encode(params, x0)
    assert (np.asarray(std) > 0).all()
    for found, moved in zip((mean, std), encode(params, with_one_more(x0, (1, -1, -1))), strict=True):
        check(found, moved)
    check(decode(params, mean), decode(params, with_one_more(mean, (1, 0, 0, 0))))


def test_std_stays_sane_whatever_the_network_says(tiny):
    params, x0, (*_, encode, _) = tiny
    for log_std, expected in ((-1e4, np.exp(-15)), (1e4, np.exp(10))):
        ending = {"kernel": np.zeros((6, 6), np.float32), "bias": np.full(6, log_std, np.float32)}
        np.testing.assert_allclose(encode({"encoder": {**params["encoder"], "quant": ending}}, x0)[1], expected, rtol=1e-5)


def test_bfloat16_computes_the_same_function_to_rounding(tiny):
    params, x0, (*_, encode, decode) = tiny
    encoder, _, *halves = networks(dtype=jnp.bfloat16)
    for (wide, half), given in zip(zip((encode, decode), halves, strict=True), (x0, encode(params, x0)[0]), strict=True):
        for found, expected in zip(*(jax.tree.leaves(network(params, given)) for network in (half, wide)), strict=True):
            assert found.dtype == jnp.float32
            assert 0 < np.abs(found - np.asarray(expected)).mean() / np.abs(expected).mean() < 0.05
    assert jax.eval_shape(lambda: encoder.apply({"params": params["encoder"]}, x0)).dtype == jnp.bfloat16


def test_with_remat_the_loss_is_the_same_and_moves_every_parameter(tiny):
    params, x0 = tiny[0], np.round((np.clip(tiny[1], -1, 1) + 1) * 127.5) / 127.5 - 1
    batch, pixels = {"image": x0, "index": np.arange(2)}, likelihood.logistic_pixels()

    def loss(params, encode, decode):
        objective = objectives.vae(encode, lambda params, z, x0: pixels.log_prob(x0, decode(params, z)))
        return objective(params, None, batch, jax.random.key(0))

    remat = networks(remat="everything")[2:]
    value, grads = jax.jit(jax.value_and_grad(partial(loss, encode=remat[0], decode=remat[1])))(params)
    np.testing.assert_allclose(value, loss(params, *tiny[2][2:]), rtol=1e-5)
    for path, leaf in jax.tree.leaves_with_path(jax.tree.map(np.asarray, grads)):
        assert np.isfinite(leaf).all(), path
        assert (leaf != 0).any(), path


def test_a_residual_block_without_condition_lacks_its_layer_alone():
    block, x = ResidualBlock(8), jnp.zeros((2, 4, 4, 8))
    init = lambda condition: jax.eval_shape(lambda key: block.init(key, x, condition, False)["params"], jax.random.key(0))  # noqa: E731
    with_condition, without = init(jnp.zeros((2, 5))), init(None)
    assert set(with_condition) == {"Norm_0", "Conv_0", "Dense_0", "Norm_1", "Conv_1"}
    assert set(without) == set(with_condition) - {"Dense_0"}


def test_what_the_encoder_cannot_halve_is_said():
    with pytest.raises(ValueError, match="28x28 cannot be halved 3 times; choose a size divisible by 8"):
        autoencoder.Encoder(channels=8, multipliers=(1, 1, 1, 1)).init(jax.random.key(0), jnp.zeros((1, 28, 28, 1)))
