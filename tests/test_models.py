import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.app import build
from jaxdiff.app.config import Experiment, Model, load
from jaxdiff.models import classifier
from jaxdiff.models.layers import Attention, Norm, frequencies, resized
from jaxdiff.models.unet import UNet, network

TINY = {"channels": 8, "multipliers": (1, 2), "blocks": 1, "attention": (4,), "head_channels": 8, "num_classes": 10}


@pytest.fixture(scope="module")
def tiny():
    model = UNet(**TINY)
    x = jax.random.normal(jax.random.key(1), (2, 8, 8, 1))
    params = jax.jit(model.init)(jax.random.key(0), x, jnp.zeros((2,)), jnp.zeros((2,), jnp.int32))["params"]
    return params, x


def randomised(params):
    keys = iter(jax.random.split(jax.random.key(9), len(jax.tree.leaves(params))))
    return jax.tree.map(lambda leaf: leaf + 0.1 * jax.random.normal(next(keys), leaf.shape), params)


def size(shapes):
    return sum(leaf.size for leaf in jax.tree.leaves(shapes)) / 1e6


def test_parameter_counts_of_the_published_networks():
    cifar10 = size(build.state_shapes(load("configs/cifar10.py")).params)
    assert 35 < cifar10 < 39  # Ho et al. (2020): 35.7M without the scales, shifts and labels
    adm = Model(channels=192, multipliers=(1, 2, 3, 4), blocks=3, attention=(32, 16, 8), num_classes=1000, residual_resampling=True)
    shapes = jax.eval_shape(
        build.unet(Experiment(model=adm)).init,
        jax.random.key(0),
        jnp.zeros((1, 64, 64, 3)),
        jnp.zeros((1,)),
        jnp.zeros((1,), jnp.int32),
    )
    assert 295 < size(shapes) < 297  # Dhariwal & Nichol (2021), hyperparameters in the appendix: 296M


def test_output_starts_at_zero_and_parameters_are_float32(tiny):
    params, x = tiny
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(jnp.float32)}
    output = network(UNet(**TINY))(params, x, jnp.zeros((2,)), jnp.array([3, 10]))
    np.testing.assert_array_equal(output, jnp.zeros_like(x))


@pytest.mark.parametrize("options", [{}, {"residual_resampling": True}, {"remat": "everything"}])
def test_every_input_moves_the_output(tiny, options):
    model, (params, x) = UNet(**TINY, **options), tiny
    if "residual_resampling" in options:
        params = jax.jit(model.init)(jax.random.key(0), x, jnp.zeros((2,)), jnp.zeros((2,), jnp.int32))["params"]
    apply = jax.jit(network(model))
    params = randomised(params)
    plain = apply(params, x, jnp.zeros((2,)), jnp.array([3, 3]))
    assert plain.shape == x.shape
    assert bool(jnp.any(apply(params, x + 1, jnp.zeros((2,)), jnp.array([3, 3])) != plain))
    assert bool(jnp.any(apply(params, x, jnp.ones((2,)), jnp.array([3, 3])) != plain))
    other_label = apply(params, x, jnp.zeros((2,)), jnp.array([3, 10]))
    np.testing.assert_array_equal(other_label[0], plain[0])
    assert bool(jnp.any(other_label[1] != plain[1]))


def test_remat_and_bfloat16_compute_the_same_function(tiny):
    params, x = randomised(tiny[0]), tiny[1]
    arguments = (x, jnp.ones((2,)), jnp.array([3, 10]))
    plain = network(UNet(**TINY))(params, *arguments)
    np.testing.assert_allclose(network(UNet(**TINY, remat="everything"))(params, *arguments), plain, atol=1e-5)
    half = network(UNet(**TINY, dtype=jnp.bfloat16))(params, *arguments)
    assert half.dtype == jnp.bfloat16
    assert float(jnp.abs(half.astype(jnp.float32) - plain).mean() / jnp.abs(plain).mean()) < 0.05


def test_bfloat16_gradients_point_where_float32s_do(tiny):
    params, x = randomised(tiny[0]), tiny[1]

    def gradient(dtype):
        apply = network(UNet(**TINY, dtype=dtype))
        with jax.numpy_dtype_promotion("standard"):  # jax's own attention does not differentiate in bfloat16 under "strict"
            grads = jax.jit(
                jax.grad(lambda p: jnp.mean((apply(p, x, jnp.ones((2,)), jnp.array([3, 10])).astype(jnp.float32) - x) ** 2))
            )(params)
        assert {leaf.dtype for leaf in jax.tree.leaves(grads)} == {jnp.dtype(jnp.float32)}
        return jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(grads)])

    full, half = gradient(jnp.float32), gradient(jnp.bfloat16)
    assert float(full @ half / (jnp.linalg.norm(full) * jnp.linalg.norm(half))) > 0.99


def test_dropout_only_with_a_key(tiny):
    params, x = randomised(tiny[0]), tiny[1]
    apply = network(UNet(**TINY, dropout=0.5))
    arguments = (params, x, jnp.ones((2,)), jnp.array([3, 10]))
    np.testing.assert_array_equal(apply(*arguments), apply(*arguments))
    one, two = (apply(*arguments, jax.random.key(seed)) for seed in (0, 1))
    assert bool(jnp.any(one != two))


def test_a_classifier_of_noised_images_hears_all_its_inputs(tiny):
    options = {name: value for name, value in TINY.items() if name != "num_classes"} | {"num_classes": 7}
    model, x = classifier.NoisyClassifier(**options, dropout=0.5), tiny[1]
    params = jax.jit(model.init)(jax.random.key(0), x, jnp.zeros((2,)))["params"]
    apply = jax.jit(classifier.network(model))
    np.testing.assert_array_equal(apply(params, x, jnp.zeros((2,))), np.zeros((2, 7)))
    params = randomised(params)
    plain = apply(params, x, jnp.zeros((2,)))
    changed = apply(params, x.at[1, -1, -1].add(1), jnp.zeros((2,)))
    np.testing.assert_array_equal(changed[0], plain[0])
    assert bool(jnp.all(changed[1] != plain[1]))
    assert bool(jnp.all(apply(params, x, jnp.ones((2,))) != plain))
    assert bool(jnp.all(apply(params, x, jnp.zeros((2,)), jax.random.key(0)) != plain))


def test_a_classifier_takes_colour_and_remat():
    x, options = jnp.zeros((2, 32, 32, 3)), {"channels": 8, "multipliers": (1, 2, 2), "attention": (8,), "head_channels": 8}
    plain, remat = (classifier.NoisyClassifier(**options, remat=remat) for remat in ("none", "everything"))
    shapes = jax.eval_shape(plain.init, jax.random.key(0), x, jnp.zeros((2,)))["params"]
    assert jax.eval_shape(remat.init, jax.random.key(0), x, jnp.zeros((2,)))["params"] == shapes
    assert jax.eval_shape(classifier.network(remat), shapes, x, jnp.zeros((2,))).shape == (2, 10)


@pytest.mark.parametrize(("channels", "groups"), [(8, 2), (34, 2), (50, 2), (64, 16), (192, 32), (7, 1)])
def test_norm_normalises_groups(channels, groups):
    x = 5 + 3 * jax.random.normal(jax.random.key(0), (2, 8, 8, channels))
    norm = Norm()
    params = norm.init(jax.random.key(0), x)
    y = norm.apply(params, x).reshape(2, 64, groups, channels // groups)
    np.testing.assert_allclose(y.mean((1, 3)), 0, atol=1e-4)
    np.testing.assert_allclose(y.std((1, 3)), 1, atol=1e-3)
    scale, shift = jax.random.normal(jax.random.key(1), (2, 2, channels))
    modulated = norm.apply(params, x, (scale, shift))
    expected = norm.apply(params, x) * (1 + scale[:, None, None]) + shift[:, None, None]
    np.testing.assert_allclose(modulated, expected, atol=1e-4)


def test_attention_equals_softmax_by_hand():
    x = jax.random.normal(jax.random.key(0), (2, 3, 3, 16))
    attention = Attention(head_channels=8)
    params = randomised(attention.init(jax.random.key(0), x)["params"])
    h = Norm().apply({"params": params["Norm_0"]}, x).reshape(2, 9, 16)
    q, k, v = np.moveaxis((h @ params["qkv"]["kernel"] + params["qkv"]["bias"][None, None]).reshape(2, 9, 3, 2, 8), 2, 0)
    scores = np.einsum("bqhc,bkhc->bhqk", q, k) / np.sqrt(8)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    mixed = np.einsum("bhqk,bkhc->bqhc", weights / weights.sum(-1, keepdims=True), v).reshape(2, 9, 16)
    expected = x + (mixed @ np.asarray(params["out"]["kernel"]) + np.asarray(params["out"]["bias"])).reshape(x.shape)
    np.testing.assert_allclose(attention.apply({"params": params}, x), expected, atol=1e-5)


def test_resizing_averages_and_repeats():
    x = jnp.arange(16.0).reshape(1, 4, 4, 1)
    np.testing.assert_array_equal(resized(x, 0.5)[0, :, :, 0], [[2.5, 4.5], [10.5, 12.5]])
    np.testing.assert_array_equal(resized(resized(x, 2), 0.5), x)
    assert resized(x, 1) is x


def test_frequencies_tell_near_levels_apart():
    features = frequencies(jnp.array([-15.0, 0.0, 0.1, 15.0]), 64)
    distances = np.linalg.norm(features[:, None] - features[None], axis=-1)
    assert distances[1, 2] > 0.3
    assert distances[0, 3] > 3


def test_what_the_network_cannot_do_is_said():
    with pytest.raises(ValueError, match="28x28 cannot be halved 3 times; choose a size divisible by 8"):
        UNet(multipliers=(1, 1, 1, 1)).init(
            jax.random.key(0), jnp.zeros((1, 28, 28, 1)), jnp.zeros((1,)), jnp.zeros((1,), jnp.int32)
        )
    with pytest.raises(ValueError, match="28 channels cannot be shared by 5 heads"):
        Attention(head_channels=5).init(jax.random.key(0), jnp.zeros((1, 4, 4, 28)))


def test_fourier_features_have_their_periods():
    """With x itself unseen, exponent 3 sees x modulo 2 / 2^3; without exponents nothing is added to the input."""
    module = UNet(channels=8, multipliers=(1,), blocks=1, attention=(), head_channels=8, num_classes=1, fourier=(3,))
    x = jax.random.uniform(jax.random.key(0), (1, 4, 4, 1))
    others = jnp.zeros((1,)), jnp.zeros((1,), jnp.int32)
    params = module.init(jax.random.key(1), x, *others)["params"]
    assert params["Conv_0"]["kernel"].shape == (3, 3, 3, 8)
    params["Conv_0"]["kernel"] = params["Conv_0"]["kernel"].at[:, :, 0].set(0)
    params["Conv_1"]["kernel"] = jax.random.normal(jax.random.key(2), params["Conv_1"]["kernel"].shape)
    at = [module.apply({"params": params}, x + shift, *others) for shift in (0, 0.25, 0.1)]
    np.testing.assert_allclose(at[0], at[1], atol=1e-3)
    assert np.max(np.abs(at[0] - at[2])) > 0.1
