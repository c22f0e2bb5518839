import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.app import build
from jaxdiff.app.config import Experiment, Model, load
from jaxdiff.models import attention, classifier
from jaxdiff.models.layers import Attention, Norm, frequencies, resized
from jaxdiff.models.unet import UNet, network

TINY = {"channels": 8, "multipliers": (1, 2), "blocks": 1, "attention": (4,), "head_channels": 8, "num_classes": 10}
SMALL = {"channels": 8, "multipliers": (1,), "blocks": 1, "attention": (), "head_channels": 8}


def drawn(shapes):
    """Parameters of which none is zero: those that start so would hide what they multiply."""
    draws = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: jnp.asarray(0.3 * draws.normal(size=leaf.shape), jnp.float32), shapes)


def inputs(seed=1):
    x = np.random.default_rng(seed).normal(size=(2, 8, 8, 1)).astype(np.float32)
    return jnp.asarray(x), jnp.zeros((2,)), jnp.array([3, 10], jnp.int32)


def initial(module, *arguments):
    """The shapes of a module's parameters."""
    return jax.eval_shape(module.init, jax.random.key(0), *arguments)["params"]


def test_norms_of_one_shape_are_one_function_of_the_program():
    """Traced, differentiated and lowered once, however many a network has."""
    norm, x = Norm(), jnp.ones((2, 4, 4, 8))
    twice = jax.jit(lambda params, x: norm.apply(params, norm.apply(params, x)))
    assert twice.lower(norm.init(jax.random.key(0), x), x).as_text().count("func.func private @_normalised") == 1


@pytest.fixture(scope="module")
def tiny():
    """The parameters of a UNet, and the compiled network."""
    return drawn(initial(UNet(**TINY), *inputs())), jax.jit(network(UNet(**TINY)))


def size(shapes):
    return sum(leaf.size for leaf in jax.tree.leaves(shapes)) / 1e6


def test_parameter_counts_of_the_published_networks():
    x, logsnr, label = jnp.zeros((1, 64, 64, 3)), jnp.zeros((1,)), jnp.zeros((1,), jnp.int32)
    cifar10 = size(initial(build.unet(load("configs/cifar10.py")), x[:, :32, :32], logsnr, label))
    assert 35 < cifar10 < 39  # Ho et al. (2020): 35.7M without the scales, shifts and labels
    adm = Model(channels=192, multipliers=(1, 2, 3, 4), blocks=3, attention=(32, 16, 8), num_classes=1000, residual_resampling=True)
    shapes = initial(build.unet(Experiment(model=adm)), x, logsnr, label)
    assert 295 < size(shapes) < 297  # Dhariwal & Nichol (2021), hyperparameters in the appendix: 296M


def test_levels_of_attention_stand_in_for_image_sizes():
    """The same network at every size: 16 pixels, at which attention is by default, count no more."""
    module = UNet(8, (1, 2), 1, head_channels=8, attention_levels=(1,))
    small, large = (initial(module, jnp.zeros((1, size, size, 1)), jnp.zeros((1,))) for size in (8, 16))
    assert jax.tree.map(jnp.shape, small) == jax.tree.map(jnp.shape, large)


def test_output_starts_at_zero_and_parameters_are_float32():
    module = UNet(**SMALL, num_classes=10, dtype=jnp.bfloat16)
    output, variables = jax.jit(module.init_with_output)(jax.random.key(0), *inputs())
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}
    np.testing.assert_array_equal(output, np.zeros((2, 8, 8, 1)))


@pytest.mark.parametrize("residual_resampling", [False, True])
def test_every_input_moves_the_output(tiny, residual_resampling):
    (params, apply), (x, logsnr, label) = tiny, inputs()
    if residual_resampling:
        module = UNet(**TINY, residual_resampling=True)
        params, apply = drawn(initial(module, x, logsnr, label)), jax.jit(network(module))
    plain = np.asarray(apply(params, x, logsnr, np.array([3, 3])))
    assert plain.shape == x.shape
    assert np.any(apply(params, x + 1, logsnr, np.array([3, 3])) != plain)
    assert np.any(apply(params, x, logsnr + 1, np.array([3, 3])) != plain)
    other_label = np.asarray(apply(params, x, logsnr, np.array([3, 10])))
    np.testing.assert_array_equal(other_label[0], plain[0])
    assert np.any(other_label[1] != plain[1])


def test_remat_and_bfloat16_compute_the_same_function(tiny):
    params, apply = tiny
    plain = apply(params, *inputs())
    np.testing.assert_allclose(jax.jit(network(UNet(**TINY, remat="everything")))(params, *inputs()), plain, atol=1e-5)
    half = jax.jit(network(UNet(**TINY, dtype=jnp.bfloat16)))(params, *inputs())
    assert half.dtype == jnp.bfloat16
    assert np.abs(np.float32(half) - plain).mean() / np.abs(plain).mean() < 0.05


def test_bfloat16_gradients_point_where_float32s_do():
    x, logsnr, _ = inputs()
    params = drawn(initial(UNet(**SMALL), x, logsnr))

    def gradient(dtype):
        apply = network(UNet(**SMALL, dtype=dtype))
        with jax.numpy_dtype_promotion("standard"):  # jax's own attention does not differentiate in bfloat16 under "strict"
            grads = jax.jit(jax.grad(lambda p: jnp.mean((apply(p, x, logsnr, {}).astype(jnp.float32) - x) ** 2)))(params)
        assert {leaf.dtype for leaf in jax.tree.leaves(grads)} == {jnp.dtype(jnp.float32)}
        return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(grads)])

    full, half = gradient(jnp.float32), gradient(jnp.bfloat16)
    assert full @ half / (np.linalg.norm(full) * np.linalg.norm(half)) > 0.99


def test_dropout_only_with_a_key():
    x, logsnr, _ = inputs()
    plain, dropping = (jax.jit(network(UNet(**SMALL, dropout=rate))) for rate in (0.0, 0.5))
    params = drawn(initial(UNet(**SMALL), x, logsnr))
    np.testing.assert_array_equal(dropping(params, x, logsnr, {}), plain(params, x, logsnr, {}))
    one, two = (np.asarray(dropping(params, x, logsnr, {}, jax.random.key(seed))) for seed in (0, 1))
    assert np.any(one != two)


def test_a_classifier_of_noised_images_hears_all_its_inputs():
    model, (x, logsnr, _) = classifier.NoisyClassifier(**SMALL, num_classes=7, dropout=0.5), inputs()
    start, variables = jax.jit(model.init_with_output)(jax.random.key(0), x, logsnr)
    np.testing.assert_array_equal(start, np.zeros((2, 7)))
    params, apply = drawn(variables["params"]), jax.jit(classifier.network(model))
    plain = np.asarray(apply(params, x, logsnr))
    changed = np.asarray(apply(params, x.at[1, -1, -1].add(1), logsnr))
    np.testing.assert_array_equal(changed[0], plain[0])
    assert np.all(changed[1] != plain[1])
    assert np.all(apply(params, x, logsnr + 1) != plain)
    assert np.all(apply(params, x, logsnr, jax.random.key(0)) != plain)


def test_a_classifier_takes_colour_and_remat():
    x, options = jnp.zeros((2, 32, 32, 3)), {"channels": 8, "multipliers": (1, 2, 2), "attention": (8,), "head_channels": 8}
    plain, remat = (classifier.NoisyClassifier(**options, remat=remat) for remat in ("none", "everything"))
    shapes = initial(plain, x, jnp.zeros((2,)))
    assert initial(remat, x, jnp.zeros((2,))) == shapes
    assert jax.eval_shape(classifier.network(remat), shapes, x, jnp.zeros((2,))).shape == (2, 10)


@pytest.mark.parametrize(("channels", "groups"), [(8, 2), (34, 2), (50, 2), (64, 16), (192, 32), (7, 1)])
def test_norm_normalises_groups(channels, groups):
    draws = np.random.default_rng(0)
    x = 5 + 3 * draws.normal(size=(2, 8, 8, channels)).astype(np.float32)
    scale, shift = draws.normal(size=(2, 2, channels)).astype(np.float32)
    norm = Norm()
    params = {"params": {"scale": jnp.ones(channels), "bias": jnp.zeros(channels)}}
    plain, modulated = jax.jit(lambda x: (norm.apply(params, x), norm.apply(params, x, (scale, shift))))(x)
    y = np.reshape(plain, (2, 64, groups, channels // groups))
    np.testing.assert_allclose(y.mean((1, 3)), 0, atol=1e-4)
    np.testing.assert_allclose(y.std((1, 3)), 1, atol=1e-3)
    np.testing.assert_allclose(modulated, plain * (1 + scale[:, None, None]) + shift[:, None, None], atol=1e-4)


def reference_norm(x, groups, modulation, towards):
    """Two passes in float64: the norm with neither scale nor bias of its own, modulated, and its gradient towards an array."""
    x, towards = (np.asarray(value, np.float64).reshape(x.shape[0], -1, groups, x.shape[-1] // groups) for value in (x, towards))
    scale, shift = (np.float64(value).reshape(x.shape[0], 1, *x.shape[2:]) for value in modulation)
    deviation = np.sqrt(np.var(x, (1, 3), keepdims=True) + 1e-5)
    y = (x - np.mean(x, (1, 3), keepdims=True)) / deviation
    pull = towards * (1 + scale)
    back = pull - np.mean(pull, (1, 3), keepdims=True) - y * np.mean(pull * y, (1, 3), keepdims=True)
    return y * (1 + scale) + shift, back / deviation, np.sum(towards * y, 1)


@pytest.mark.parametrize(
    ("mean", "dtype", "tolerance"), [(0, jnp.float32, 1e-5), (1000, jnp.float32, 1e-3), (-30, jnp.bfloat16, 0.02)]
)
def test_norm_and_gradient_are_accurate_where_the_mean_is_large(mean, dtype, tolerance):
    draws = np.random.default_rng(0)
    x, towards = (jnp.asarray(draws.normal(where, 1, (2, 16, 16, 64)), dtype) for where in (mean, 0))
    modulation = tuple(jnp.asarray(draws.normal(size=(2, 64)), jnp.float32) for _ in range(2))
    norm, params = Norm(dtype), {"params": {"scale": jnp.ones(64), "bias": jnp.zeros(64)}}
    y, pull = jax.vjp(jax.jit(lambda x, scale: norm.apply(params, x, (scale, modulation[1]))), x, modulation[0])
    for found, expected in zip((y, *pull(towards)), reference_norm(x, 16, modulation, towards), strict=True):
        found = np.float64(found).reshape(expected.shape)
        assert np.linalg.norm(found - expected) < tolerance * np.linalg.norm(expected)


@pytest.mark.parametrize("transformer", [0, 1])
def test_forward_mode_is_the_transpose_of_reverse_mode_and_the_slope(transformer, monkeypatch):
    """With dropout, and attention by heads; consistency objectives differentiate networks forwards."""
    monkeypatch.setattr(attention, "ALL_SCORES", 1)
    module = UNet(**{**SMALL, "attention": (4,)}, dropout=0.3, transformer=transformer)
    x, logsnr = inputs()[0][:, :4, :4], jnp.zeros((2,))
    params, draws = drawn(initial(module, x, logsnr)), np.random.default_rng(2)
    way, towards = (jnp.asarray(draws.normal(size=x.shape), jnp.float32) for _ in range(2))

    @jax.jit
    def products():
        def moved(step):
            return jnp.vdot(network(module)(params, x + step * way, logsnr + step, {}, jax.random.key(0)), towards)

        _, forwards = jax.linearize(moved, 0.0)
        after, before = jax.vmap(moved)(jnp.array([1e-2, -1e-2]))
        return forwards(1.0), *jax.linear_transpose(forwards, 0.0)(1.0), (after - before) / 2e-2

    forwards, backwards, slope = products()
    np.testing.assert_allclose(forwards, backwards, rtol=1e-4)
    np.testing.assert_allclose(forwards, slope, rtol=1e-2)


def test_attention_equals_softmax_by_hand():
    x = np.random.default_rng(1).normal(size=(2, 3, 3, 16)).astype(np.float32)
    module = Attention(head_channels=8)
    params = jax.tree.map(np.asarray, drawn(initial(module, x)))
    h = np.asarray(jax.jit(Norm().apply)({"params": params["Norm_0"]}, x)).reshape(2, 9, 16)
    q, k, v = np.moveaxis((h @ params["qkv"]["kernel"] + params["qkv"]["bias"]).reshape(2, 9, 3, 2, 8), 2, 0)
    scores = np.einsum("bqhc,bkhc->bhqk", q, k) / np.sqrt(8)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    mixed = np.einsum("bhqk,bkhc->bqhc", weights / weights.sum(-1, keepdims=True), v).reshape(2, 9, 16)
    expected = x + (mixed @ params["out"]["kernel"] + params["out"]["bias"]).reshape(x.shape)
    np.testing.assert_allclose(jax.jit(module.apply)({"params": params}, x), expected, atol=1e-5)


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
    module = UNet(**SMALL, fourier=(3,))
    x, logsnr = np.random.default_rng(0).uniform(size=(1, 4, 4, 1)).astype(np.float32), jnp.zeros((1,))
    params = drawn(initial(module, x, logsnr))
    assert params["Conv_0"]["kernel"].shape == (3, 3, 3, 8)
    params["Conv_0"]["kernel"] = params["Conv_0"]["kernel"].at[:, :, 0].set(0)
    apply = jax.jit(network(module))
    at = [np.asarray(apply(params, x + np.float32(shift), logsnr, {})) for shift in (0, 0.25, 0.1)]
    np.testing.assert_allclose(at[0], at[1], atol=1e-3)
    assert np.max(np.abs(at[0] - at[2])) > 0.1
