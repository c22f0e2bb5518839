"""The autoencoder of latent diffusion: PCA as its optimum, its adversary, its latents."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.linalg

import jaxdiff as jd
from jaxdiff import losses, objectives, training
from jaxdiff.app import build
from jaxdiff.app.config import Autoencoder, Data, Experiment, Model
from jaxdiff.likelihood import Posterior
from jaxdiff.models import autoencoder
from jaxdiff.models.discriminator import PatchDiscriminator

RNG = np.random.default_rng(0)
DIMENSIONS, LATENTS = 6, 2


def state_at(step):
    return training.TrainState(jnp.int32(step), {}, {}, ())


def repeated(objective, optimizer, params, batch, num_steps, frozen=None):
    """The state after steps on one batch, and the metrics of each step."""
    step = training.train_step(objective, optimizer, {})
    state = training.initial_state(params, optimizer, {}, frozen)
    return jax.jit(lambda state: jax.lax.scan(lambda s, _: step(s, batch, jax.random.key(0)), state, None, num_steps))(state)


def test_a_linear_autoencoder_finds_the_principal_subspace():
    x = RNG.normal(size=(500, DIMENSIONS)) @ RNG.normal(size=(DIMENSIONS, DIMENSIONS))
    x -= x.mean(0)
    values, axes = np.linalg.eigh(np.cov(x.T, bias=True))

    def encode(params, x0):
        mean = x0 @ params["to_code"]
        return mean, jnp.full_like(mean, 1e-6)

    bottleneck = objectives.kl_bottleneck(encode, weight=0.0)
    objective = objectives.compression(bottleneck, lambda p, z: z @ p["weight"].T, objectives.pixel_distance(jnp.square))
    to_code, weight = 0.1 * jax.random.normal(jax.random.key(0), (2, DIMENSIONS, LATENTS))
    batch = {"image": jnp.asarray(x, jnp.float32), "index": jnp.arange(len(x))}
    optimizer = optax.adam(optax.cosine_decay_schedule(0.03, 1500))
    state, metrics = repeated(objective, optimizer, {"to_code": to_code, "weight": weight}, batch, 1500)
    assert scipy.linalg.subspace_angles(np.asarray(state.params["weight"]), axes[:, -LATENTS:]).max() < 1e-2
    np.testing.assert_allclose(metrics["loss"][-1], values[:-LATENTS].sum() / DIMENSIONS, rtol=1e-4)
    assert metrics["loss"][0] > 1.5 * metrics["loss"][-1]


def dense(params, x, logsnr, label, dropout_key):
    hidden = jnp.concatenate([x.reshape(len(x), -1), logsnr[:, None], jax.nn.one_hot(label, 4)], axis=-1)
    return (jnp.tanh(hidden @ params["first"]) @ params["second"]).reshape(x.shape)


def test_with_an_autoencoder_that_changes_nothing_latent_diffusion_is_diffusion_bit_for_bit():
    first, second = jax.random.normal(jax.random.key(0), (21, 8)), jax.random.normal(jax.random.key(1), (8, 16))
    params = {"first": first, "second": second}
    pixels = objectives.diffusion(dense, jd.cosine(), jd.predict_v, losses.v_weight, condition=objectives.labels(3, 0.5))
    latents = objectives.latent(pixels, lambda frozen, batch: Posterior(batch["image"], frozen["std"] * batch["image"]))
    image = jnp.asarray(RNG.uniform(-1, 1, (8, 4, 4, 1)), jnp.float32)
    batch = {"image": image, "label": jnp.arange(8) % 3, "index": jnp.arange(8)}
    run = partial(repeated, optimizer=optax.adam(1e-2), params=params, batch=batch, num_steps=20)
    plain, identical, noisy = run(pixels), *(run(latents, frozen={"std": jnp.float32(std)}) for std in (0, 0.1))
    for name in params:
        np.testing.assert_array_equal(plain[0].params[name], identical[0].params[name])
        assert (plain[0].params[name] != params[name]).any()
        assert (plain[0].params[name] != noisy[0].params[name]).any()
    np.testing.assert_array_equal(plain[1]["loss"], identical[1]["loss"])


def test_latents_are_an_examples_own_draws_afresh_at_each_step():
    mean = jnp.asarray(RNG.normal(size=(6, 2, 2, 3)), jnp.float32)
    seen = objectives.latent(
        lambda params, state, batch, key: batch["image"],
        lambda frozen, batch: Posterior(2 * batch["image"], jnp.broadcast_to(batch["std"], batch["image"].shape)),
    )

    def draws(key, rows=slice(None), std=0.5):
        return seen({}, state_at(0), {"image": mean[rows], "index": jnp.arange(6)[rows], "std": jnp.float32(std)}, key)

    z = draws(jax.random.key(0))
    noise = (z - 2 * mean) / 0.5
    assert len(np.unique(np.round(noise, 4))) == noise.size
    np.testing.assert_allclose(draws(jax.random.key(0), std=1.5), 2 * mean + 1.5 * noise, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(draws(jax.random.key(0), slice(2, 5)), z[2:5])
    assert (draws(jax.random.key(1)) != z).all()


def test_no_gradient_reaches_the_autoencoder_through_latents():
    batch = {"image": jnp.ones((6, 2, 2, 3)), "index": jnp.arange(6)}

    def loss(scale):
        scaled = objectives.latent(
            lambda params, state, batch, key: jnp.sum(batch["image"]),
            lambda frozen, batch: Posterior(scale * batch["image"], scale * batch["image"]),
        )
        return scaled({}, state_at(0), batch, jax.random.key(0))

    assert loss(2.0) != loss(1.0)
    assert jax.grad(loss)(1.0) == 0


def players():
    """Params of a small autoencoder and its adversary, a batch, and the three functions on them."""
    normal = lambda *shape: jnp.asarray(np.random.default_rng(math.prod(shape)).normal(size=shape), jnp.float32)  # noqa: E731
    params = {
        "encoder": normal(4, 2),
        "decoder": {"hidden": normal(2, 5), "out": {"kernel": normal(5, 4)}},
        "discriminator": {"first": normal(4, 3), "last": normal(3, 1)},
    }
    batch = {"image": normal(8, 2, 2, 4), "index": jnp.arange(8)}
    return params, batch


def encode(params, x0):
    mean = x0 @ params["encoder"]
    return mean, jnp.full_like(mean, 0.3)


def decode(params, z):
    return jnp.tanh(z @ params["decoder"]["hidden"]) @ params["decoder"]["out"]["kernel"]


def discriminate(params, images):
    return (jnp.tanh(images @ params["discriminator"]["first"]) @ params["discriminator"]["last"])[..., 0]


BOTTLENECK = objectives.kl_bottleneck(encode, weight=0.1)
LAST = ("decoder", "out", "kernel")


def against(weight=0.7, start=0, norm=jnp.abs, discriminate=discriminate):
    adversary = objectives.Adversary(discriminate, LAST, weight, start)
    return objectives.compression(BOTTLENECK, decode, objectives.pixel_distance(norm), adversary)


def test_each_players_gradient_is_its_own_and_balanced_at_the_last_kernel():
    params, batch = players()
    x0, key = batch["image"], jax.random.key(5)
    z = jax.jit(BOTTLENECK)(params, None, batch, key)[0]

    def gap(params, z):
        return jnp.mean(jnp.abs(x0 - decode(params, z)))

    def fooling(params, z):
        return -jnp.mean(discriminate(params, decode(params, z)))

    gradients = [jax.jit(jax.grad(part))(params, z)["decoder"]["out"]["kernel"] for part in (gap, fooling)]
    norms = [np.linalg.norm(np.ravel(gradient)) for gradient in gradients]
    balance = 0.7 * norms[0] / (norms[1] + 1e-4)
    (loss, terms), found = jax.jit(jax.value_and_grad(against(), has_aux=True))(params, state_at(0), batch, key)
    np.testing.assert_allclose(terms["balance"], balance, rtol=1e-5)
    np.testing.assert_allclose(
        terms["generator"], terms["reconstruction"] + terms["penalty"] + balance * fooling(params, z), rtol=1e-5
    )
    np.testing.assert_allclose(loss, terms["generator"] + terms["discriminator"], rtol=1e-6)

    def generator(params):
        z, penalty, _ = BOTTLENECK(params, None, batch, key)
        return gap(params, z) + penalty + balance * fooling(params, z)

    def hinge(params):
        real, fake = discriminate(params, x0), discriminate(params, decode(params, z))
        return (jnp.maximum(1 - real, 0).mean() + jnp.maximum(1 + fake, 0).mean()) / 2

    expected = {**jax.jit(jax.grad(generator))(params), "discriminator": jax.jit(jax.grad(hinge))(params)["discriminator"]}
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), found, expected)
    for term, stopped in (("generator", ("discriminator",)), ("discriminator", ("encoder", "decoder"))):
        alone = jax.jit(jax.grad(lambda params, term=term: against()(params, state_at(0), batch, key)[1][term]))(params)
        for player, gradient in alone.items():
            assert all((leaf == 0).all() == (player in stopped) for leaf in jax.tree.leaves(gradient))


def test_the_balance_has_a_bound():
    params, batch = players()
    huge = against(norm=lambda error: 1e9 * jnp.abs(error))
    assert jax.jit(huge)(params, state_at(0), batch, jax.random.key(5))[1]["balance"] == np.float32(0.7) * np.float32(1e4)


@pytest.mark.parametrize("score", [-3.0, -1.0, 0.4, 1.0, 2.0])
def test_the_hinge_of_one_score_for_all(score):
    params, batch = players()
    objective = against(discriminate=lambda params, images: jnp.full(images.shape[:-1], score) + 0 * images[..., 0])
    terms = jax.jit(objective)(params, state_at(0), batch, jax.random.key(0))[1]
    np.testing.assert_allclose(terms["discriminator"], max(1.0, (1 + abs(score)) / 2), rtol=1e-6)
    np.testing.assert_allclose(terms["fooling"], -score, rtol=1e-6)


def test_the_adversary_waits_for_its_start():
    params, batch = players()
    step = jax.jit(training.train_step(against(start=3), optax.adam(1e-2), {}))
    state = training.initial_state(params, optax.adam(1e-2), {})
    for number in range(5):
        before = state.params
        state, metrics = step(state, batch, jax.random.key(0))
        moved = jax.tree.map(lambda a, b: bool((a != b).any()), before, state.params)
        on = number >= 3
        assert all(jax.tree.leaves(moved["decoder"]))
        assert jax.tree.leaves(moved["discriminator"]) == [on, on]
        assert (metrics["discriminator"] > 0, metrics["balance"] > 0) == (on, on)
        assert (metrics["generator"] == metrics["reconstruction"] + metrics["penalty"]) == (not on)


@pytest.mark.parametrize(
    ("multipliers", "latents", "num"),
    [((1, 2, 4, 4), 4, 83_653_863), ((1, 2, 4), 3, 55_312_063)],  # as published for Stable Diffusion; counted by hand
)
def test_published_sizes_of_the_networks(multipliers, latents, num):
    encoder = autoencoder.Encoder(channels=128, multipliers=multipliers, blocks=2, latent_channels=latents)
    decoder = autoencoder.Decoder(channels=128, multipliers=multipliers, blocks=2, out_channels=3)
    params = jax.eval_shape(partial(autoencoder.init, encoder, decoder), jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == num


def test_psnr_is_ten_times_the_log_of_the_ratio():
    x0, noise = RNG.uniform(-1, 1, (3, 4, 4, 2)).astype(np.float32), RNG.normal(size=(3, 4, 4, 2)).astype(np.float32)
    images = x0 + noise * np.array([0, 0.01, 1], np.float32)[:, None, None, None]
    error = ((x0 - np.clip(images, -1, 1)) ** 2).mean((1, 2, 3))
    found = objectives.psnr(jnp.asarray(x0), jnp.asarray(images))
    np.testing.assert_allclose(found[1:], 10 * np.log10(2**2 / error[1:]), rtol=1e-5)
    assert found[0] > 100


TINY = Experiment(
    objective="autoencoder",
    data=Data(image_shape=(8, 8, 1)),
    model=Model(channels=8, multipliers=(1,), blocks=1, attention=(), head_channels=8),
    autoencoder=Autoencoder(latent_channels=3),
)


def test_measured_latents_have_mean_zero_and_variance_one():
    codec, encode, decode = build.codec(TINY), jax.jit(build.codec(TINY).encode), jax.jit(build.codec(TINY).decode)
    batches = [RNG.uniform(-1, 1, (num, 8, 8, 1)).astype(np.float32) for num in (40, 40)]
    params = jax.jit(partial(build.init, TINY))(jax.random.key(0)).params
    ending = params["encoder"]["quant"]["bias"] + jnp.array([3.0, 0, -1, -2, -1, 1])  # means off 0, stds that count
    params["encoder"]["quant"] = {**params["encoder"]["quant"], "bias": ending}
    before = [encode(params, x0) for x0 in batches]
    found = build.measure_latents(codec, params, batches)
    mean, std = (np.concatenate(part) for part in zip(*(encode({**params, "latent": found}, x0) for x0 in batches), strict=True))
    np.testing.assert_allclose(mean.mean((0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose((mean**2 + std**2).mean((0, 1, 2)), 1, rtol=1e-5)
    assert abs(np.concatenate([posterior.mean for posterior in before]).mean((0, 1, 2))[0]) > 2
    images = decode({**params, "latent": found}, mean[:40])
    np.testing.assert_allclose(images, decode(params, before[0].mean), atol=1e-5)


@pytest.mark.parametrize("codes", [0, 8])
def test_losses_of_bfloat16_networks_are_float32(codes):
    config = Experiment(
        objective="autoencoder",
        model=Model(channels=8, multipliers=(1, 2), blocks=1, attention=(), head_channels=8, dtype="bfloat16"),
        autoencoder=Autoencoder(latent_channels=3, adversarial=0.5, codebook=codes),
    )
    state = build.state_shapes(config)
    batch = {"image": jax.ShapeDtypeStruct((2, 8, 8, 1), jnp.float32), "index": jax.ShapeDtypeStruct((2,), jnp.int32)}
    found = jax.eval_shape(build.objective(config), state.params, state, batch, jax.random.key(0))
    assert {(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(found)} == {((), jnp.dtype(jnp.float32))}


def test_the_discriminator_scores_each_image_alone_patch_by_patch():
    module = PatchDiscriminator(channels=4, layers=2)
    x = jax.random.normal(jax.random.key(0), (2, 16, 12, 3))
    params = jax.jit(module.init)(jax.random.key(1), x)
    apply = jax.jit(module.apply)
    scores = apply(params, x)
    assert scores.shape == (2, 4, 3)
    moved = apply(params, x.at[1].add(jnp.arange(12.0)[None, :, None]))
    np.testing.assert_array_equal(moved[0], scores[0])
    assert (moved[1] != scores[1]).all()
    assert [params["params"][f"conv_{n}"]["kernel"].shape[-1] for n in range(3)] == [4, 8, 16]
