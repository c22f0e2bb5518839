"""Transformer blocks, and what a UNet may be given: context, spatial, augmentation."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf

from jaxdiff.models import attention
from jaxdiff.models.attention import attended, attended_in_parts
from jaxdiff.models.transformer import Transformer
from jaxdiff.models.unet import UNet, network

TINY = {"channels": 8, "multipliers": (1,), "blocks": 1, "attention": (), "heads": 2, "transformer": 1, "context_channels": 6}
GIVEN = ("context", "spatial", "augmentation")


def inputs(rows=3):
    keys = jax.random.split(jax.random.key(1), 4)
    x = jax.random.normal(keys[0], (rows, 4, 4, 2))
    context, spatial = jax.random.normal(keys[1], (rows, 5, 6)), jax.random.normal(keys[2], (rows, 4, 4, 3))
    return x, jnp.linspace(-2, 3, rows), {"context": context, "spatial": spatial, "augmentation": jnp.linspace(-1, 1, rows)}


def drawn(module, *arguments, **given):
    """Parameters of which none is zero: those that start so would hide what they multiply."""
    params = jax.eval_shape(lambda *a, **g: module.init(jax.random.key(0), *a, **g), *arguments, **given)["params"]
    draws = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: jnp.asarray(0.3 * draws.normal(size=leaf.shape), jnp.float32), params)


@pytest.fixture(scope="module")
def tiny():
    x, logsnr, given = inputs()
    return drawn(UNet(**TINY), x, logsnr, **given), jax.jit(network(UNet(**TINY)))


def test_stable_diffusion_has_the_published_number_of_parameters():
    unet = UNet(320, (1, 2, 4, 4), 2, (64, 32, 16), heads=8, transformer=1, context_channels=768, scale_shift=False)
    arguments = jax.random.key(0), jnp.zeros((1, 64, 64, 4)), jnp.zeros((1,))
    shapes = jax.eval_shape(lambda context: unet.init(*arguments, context=context)["params"], jnp.zeros((1, 77, 768)))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 859_520_964  # Rombach et al. (2022), as released


@pytest.mark.parametrize("name", GIVEN)
def test_what_is_given_moves_its_own_row_alone(tiny, name):
    params, apply = tiny
    x, logsnr, given = inputs()
    plain = apply(params, x, logsnr, given)
    assert plain.shape == x.shape
    changed = apply(params, x, logsnr, {**given, name: given[name].at[1].add(1)})
    np.testing.assert_allclose(changed[::2], plain[::2], atol=1e-5)
    assert float(jnp.abs(changed[1] - plain[1]).max()) > 1e-2


def test_context_is_a_set_and_zeros_are_none_of_it(tiny):
    params, apply = tiny
    x, logsnr, given = inputs()
    plain = apply(params, x, logsnr, given)
    turned = apply(params, x, logsnr, {**given, "context": given["context"][:, ::-1]})
    np.testing.assert_allclose(turned, plain, atol=1e-4)
    null, longer = (apply(params, x, logsnr, {**given, "context": jnp.zeros((3, length, 6))}) for length in (5, 7))
    np.testing.assert_allclose(null, longer, atol=1e-4)  # keys and values have no bias: null vectors say nothing, in any number
    assert float(jnp.abs(null - plain).max()) > 1e-2


def test_remat_keeps_parameters_values_and_gradients(tiny):
    params, _ = tiny
    x, logsnr, given = inputs()
    plain, remat = UNet(**TINY), UNet(**TINY, remat="everything")
    shapes = [jax.eval_shape(lambda m=module: m.init(jax.random.key(0), x, logsnr, **given)) for module in (plain, remat)]
    assert shapes[0] == shapes[1]

    def loss(module):
        return jax.jit(jax.value_and_grad(lambda p: jnp.mean(network(module)(p, x, logsnr, given) ** 2)))(params)

    for a, b in zip(jax.tree.leaves(loss(plain)), jax.tree.leaves(loss(remat)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)


def test_bfloat16_is_near_float32(tiny):
    params, apply = tiny
    x, logsnr, given = inputs()
    half = jax.jit(network(UNet(**TINY, dtype=jnp.bfloat16)))(params, x, logsnr, given)
    plain = apply(params, x, logsnr, given)
    assert half.dtype == jnp.bfloat16
    assert float(jnp.abs(half.astype(jnp.float32) - plain).mean() / jnp.abs(plain).mean()) < 0.05


def test_without_classes_a_label_is_ignored_and_costs_nothing():
    x, logsnr, _ = inputs()
    module = UNet(channels=8, multipliers=(1,), blocks=1, attention=(), head_channels=8)
    params = drawn(module, x, logsnr)
    assert not any(name.startswith("Embed") for name in params)
    apply, label = jax.jit(network(module)), jnp.arange(3)
    np.testing.assert_array_equal(apply(params, x, logsnr, label), apply(params, x, logsnr, {}))


def test_conditions_may_be_added_or_scale_and_shift():
    x, logsnr, _ = inputs()
    modules = [UNet(channels=8, multipliers=(1,), blocks=1, attention=(), heads=1, scale_shift=scale) for scale in (False, True)]
    added, scaled = (drawn(module, x, logsnr) for module in modules)
    assert [params["residual_0"]["Dense_0"]["kernel"].shape for params in (added, scaled)] == [(32, 8), (32, 16)]
    apply = jax.jit(network(modules[0]))
    assert float(jnp.abs(apply(added, x, logsnr, {}) - apply(added, x, logsnr + 1, {})).max()) > 1e-2


def gelu(x):
    return x * (1 + erf(x / np.sqrt(2))) / 2


def layer_norm(x, p):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5) * p["scale"] + p["bias"]


def multi_head(x, source, p, heads):
    """Vaswani et al. (2017), section 3.2.2, one head and one query after another."""
    width = x.shape[-1] // heads
    mixed = np.zeros_like(x)
    for row in range(x.shape[0]):
        for head in range(heads):
            part = slice(head * width, (head + 1) * width)
            q, k, v = (y[row] @ p[name]["kernel"][:, part] for y, name in ((x, "q"), (source, "k"), (source, "v")))
            for number, query in enumerate(q):
                weights = np.exp(k @ query / np.sqrt(width))
                mixed[row, number, part] = weights @ v / weights.sum()
    return mixed @ p["out"]["kernel"] + p["out"]["bias"]


def geglu(x, p):
    """Shazeer (2020), eq. 6."""
    inner = x @ p["in"]["kernel"] + p["in"]["bias"]
    half = inner.shape[-1] // 2
    return inner[..., :half] * gelu(inner[..., half:]) @ p["out"]["kernel"] + p["out"]["bias"]


def test_a_transformer_equals_the_papers_formulas():
    keys = jax.random.split(jax.random.key(0), 2)
    x, context = jax.random.normal(keys[0], (2, 3, 2, 8)), jax.random.normal(keys[1], (2, 5, 6))
    module = Transformer(blocks=2, heads=2)
    p = drawn(module, x, context)
    found = jax.jit(module.apply)({"params": p}, x, context)
    p, x, context = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), (p, x, context))
    groups = x.reshape(2, 6, 2, 4)  # of four channels each
    normed = (groups - groups.mean((1, 3), keepdims=True)) / np.sqrt(groups.var((1, 3), keepdims=True) + 1e-5)
    tokens = normed.reshape(2, 6, 8) * p["Norm_0"]["scale"] + p["Norm_0"]["bias"]
    tokens = tokens @ p["in"]["kernel"] + p["in"]["bias"]
    for block in (p["block_0"], p["block_1"]):
        normed = layer_norm(tokens, block["norm_self"])
        tokens = tokens + multi_head(normed, normed, block["self"], 2)
        tokens = tokens + multi_head(layer_norm(tokens, block["norm_cross"]), context, block["cross"], 2)
        tokens = tokens + geglu(layer_norm(tokens, block["norm_feed"]), block["feed"])
    expected = x + (tokens @ p["out"]["kernel"] + p["out"]["bias"]).reshape(x.shape)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("queries", "keys", "scores"), [(12, 20, 100), (7, 5, 5), (12, 20, None)])
def test_attention_in_parts_is_attention_and_so_is_its_gradient(queries, keys, scores, monkeypatch):
    """By heads where no number of scores is given."""
    monkeypatch.setattr(attention, "ALL_SCORES", 1)
    names = jax.random.split(jax.random.key(0), 4)
    q, k, v = (jax.random.normal(name, (2, n, 3, 8)) for name, n in zip(names, (queries, keys, keys), strict=False))
    towards = jax.random.normal(names[3], q.shape)

    def value_and_gradients(function):
        mixed, pull = jax.vjp(function, q, k, v)
        return mixed, *pull(towards)

    parts = jax.jit(lambda: value_and_gradients(lambda *qkv: attended_in_parts(*qkv, scores) if scores else attended(*qkv)))()
    whole = jax.jit(lambda: value_and_gradients(jax.nn.dot_product_attention))()
    for a, b in zip(parts, whole, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize(("batch", "length", "scores"), [(1, 4096, 2**20), (256, 256, 2**24)])
def test_long_attention_never_holds_all_scores(batch, length, scores):
    q = jax.ShapeDtypeStruct((batch, length, 2, 8), jnp.float32)
    program = jax.jit(jax.grad(lambda q: jnp.sum(attended(q, q, q)))).lower(q).as_text()
    sizes = [math.prod(map(int, dims.split("x"))) for dims in re.findall(r"tensor<([0-9x]+)xf32>", program)]
    assert max(sizes) == scores  # of one head, or a part of it: neither 2^24 an example nor, for the gradient, those of all


@pytest.mark.parametrize(
    ("options", "given", "message"),
    [
        ({}, {}, r"context: the network attends to vectors \[B, T, 6\]"),
        ({}, {"context": jnp.zeros((3, 5, 4))}, r"context: \(3, 5, 4\) given, .* is 6; give vectors"),
        ({"context_channels": 0}, {"context": jnp.zeros((3, 5, 6))}, "context_channels is 0; give none"),
        ({"transformer": 0}, {"context": jnp.zeros((3, 5, 6))}, "set model.transformer to 1 or more"),
        ({"heads": 3}, {"context": jnp.zeros((3, 5, 6))}, "8 channels cannot be shared by 3 heads; change model.heads"),
        ({"num_classes": 4}, {"context": jnp.zeros((3, 5, 6))}, r"label: the network has classes; give labels \[B\], 4"),
    ],
)
def test_what_does_not_fit_is_said_in_a_line(options, given, message):
    x, logsnr, _ = inputs()
    with pytest.raises(ValueError, match=message) as error:
        drawn(UNet(**TINY | options), x, logsnr, **given)
    assert "\n" not in str(error.value)


def test_an_unknown_name_is_refused(tiny):
    x, logsnr, given = inputs()
    with pytest.raises(ValueError, match="cannot be given 'text'; it may be given label, context, spatial, augmentation"):
        network(UNet(**TINY))(tiny[0], x, logsnr, {**given, "text": given["context"]})
