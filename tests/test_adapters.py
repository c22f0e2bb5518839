"""Low-rank adapters: a base and a small difference, held to numpy, to layers written by hand, and to Eckart and Young."""

import dataclasses
import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict

import jaxdiff as jd
from jaxdiff import losses, objectives, training
from jaxdiff.models import lora
from jaxdiff.models.layers import frequencies
from jaxdiff.models.unet import UNet, network
from jaxdiff.training import checkpoint, mesh

DIGITS = UNet(channels=32, multipliers=(1, 2), blocks=1, attention=(4,), head_channels=32, num_classes=10)
SMALL = UNet(channels=16, multipliers=(1, 2), blocks=1, attention=(), head_channels=8, transformer=1, context_channels=4)
CHOICES = {"kernels": lora.kernels, "projections": lora.projections}

# The kernels of DIGITS as matrices, by hand: the embedding's, attention's, the residual blocks' (condition and skip) ...
DENSE = [(32, 128), (128, 128), *4 * [(64, 64), (64, 192)], *3 * [(128, 64)], *5 * [(128, 128)]]
DENSE += [(32, 64), (128, 64), (96, 64), (96, 32), (64, 32)]
# ... and of 3x3 convolutions: in and out, down and up, and the residual blocks', by their channels
CONV = [(1, 32), (32, 1), (64, 64), (32, 32), *2 * [(32, 32)], (32, 64), *7 * [(64, 64)], (128, 64), (96, 64)]
CONV += [(96, 32), (32, 32), (64, 32), (32, 32)]
MATRICES = {"projections": DENSE, "kernels": DENSE + [(9 * fan_in, out) for fan_in, out in CONV]}


class Tiny(nn.Module):
    """Three convolutions and two dense layers, for what is of no particular network."""

    channels: int = 32
    context_channels: int = 0

    @nn.compact
    def __call__(self, x, condition, label, train=False):
        embedding = nn.silu(nn.Dense(4 * self.channels)(frequencies(condition, self.channels)))
        embedding = nn.Dense(self.channels)(embedding)
        hidden = nn.silu(nn.Conv(self.channels, (3, 3))(x) + embedding[:, None, None])
        hidden = nn.silu(nn.Conv(self.channels, (3, 3))(hidden))
        return nn.Conv(1, (3, 3))(hidden)


TINY = Tiny()


def given(batch=2):
    """What SMALL is called with: images, logsnr, what is given."""
    rng = np.random.default_rng(3)
    x, context = (rng.normal(size=shape).astype(np.float32) for shape in ((batch, 8, 8, 1), (batch, 3, 4)))
    return x, np.linspace(-3, 3, batch, dtype=np.float32), {"context": context}


def noisy(tree, seed=0, std=0.2):
    """Normal values in the place of every array, so that nothing is zero."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.asarray(std * rng.normal(size=leaf.shape), leaf.dtype), tree)


@functools.cache
def shapes(module):
    x, logsnr, named = given()
    named = named if module.context_channels else {"label": np.zeros(2, np.int32)}
    return jax.eval_shape(lambda key: module.init(key, x, logsnr, **named)["params"], jax.random.key(0))


@functools.cache
def trained(module, rank, choice="kernels"):
    """A base, and adapters of which no value is zero."""
    made = jax.eval_shape(lambda: lora.init(jax.random.key(0), shapes(module), rank, CHOICES[choice]))
    return noisy(shapes(module)), noisy(made, 1, 0.3)


def size(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def assert_equal(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(np.asarray(x), np.asarray(y)), a, b)


def difference(pair):
    return np.asarray(pair["down"], np.float64) @ np.asarray(pair["up"], np.float64)


@pytest.mark.parametrize("choice", CHOICES)
def test_the_start_is_the_base_bit_for_bit(choice):
    base = noisy(shapes(Tiny(128)))
    made = jax.jit(lambda key: lora.init(key, base, 8, CHOICES[choice]))(jax.random.key(0))
    start = lora.merged(base, made)
    assert_equal(start, base)
    assert jax.tree.structure(start) == jax.tree.structure(base)
    assert all(not np.any(leaf) for path, leaf in flatten_dict(made).items() if path[-1] == "up")
    down = {path: leaf for path, leaf in flatten_dict(made).items() if path[-1] == "down"}
    spread = np.concatenate([np.ravel(leaf) * math.sqrt(leaf.shape[0]) for leaf in down.values()])
    assert abs(spread.std() - 1) < 0.05
    assert abs(spread.mean()) < 0.05
    assert abs(np.mean(np.abs(spread)) - math.sqrt(2 / math.pi)) < 0.05  # normal, by its mean distance to zero
    assert len({float(leaf[0, 0]) for leaf in down.values()}) == len(down)  # a key each


@pytest.mark.parametrize("rank", [4, 8])
@pytest.mark.parametrize("choice", CHOICES)
def test_adapters_of_the_digits_unet_are_where_they_are_smaller_and_count_r_times_in_plus_out(choice, rank):
    params = shapes(DIGITS)
    made = jax.eval_shape(lambda: lora.init(jax.random.key(0), params, rank, CHOICES[choice]))
    wanted = [sum(pair) for pair in MATRICES[choice] if rank * sum(pair) < math.prod(pair)]
    assert size(made) == rank * sum(wanted)
    assert len(jax.tree.leaves(made)) == 2 * len(wanted)
    assert size(made) < size(params) / (5 if rank == 4 else 3)
    flat = flatten_dict(params)
    for path, leaf in flatten_dict(made).items():
        kernel = flat[path[:-1]].shape
        assert leaf.shape == {"down": (math.prod(kernel[:-1]), rank), "up": (rank, kernel[-1])}[path[-1]]


@pytest.mark.slow
def test_stable_diffusions_adapters_of_rank_64_have_the_size_of_the_published_file():
    """LCM-LoRA of Stable Diffusion 1.5 is a file of 135 MB in half precision (Luo et al. 2023b, as released)."""
    sizes = {"attention": (64, 32, 16), "heads": 8, "transformer": 1, "context_channels": 768, "scale_shift": False}
    unet, x, context = UNet(320, (1, 2, 4, 4), 2, **sizes), jnp.zeros((1, 64, 64, 4)), jnp.zeros((1, 77, 768))
    params = jax.eval_shape(lambda key: unet.init(key, x, jnp.zeros(1), context=context)["params"], jax.random.key(0))
    made = jax.eval_shape(lambda: lora.init(jax.random.key(0), params, 64))
    assert round(2 * size(made) / 1e6) == 135


def test_a_choice_is_a_function_of_path_and_array():
    chosen = lambda path, leaf: "cross" in path and path[-2] in ("q", "bias")  # noqa: E731
    made = jax.eval_shape(lambda: lora.init(jax.random.key(0), shapes(SMALL), 1, chosen))
    assert {path[1:] for path in flatten_dict(made)} == {("block_0", "cross", "q", "kernel", name) for name in ("down", "up")}
    params = {"bias": jnp.ones(64), "embedding": jnp.ones((64, 64)), "temperature": jnp.ones(())}
    everything = lora.init(jax.random.key(0), params, 2, lambda *_: True)
    assert set(everything) == {"embedding"}  # nothing else is a matrix
    empty = {"layer": {"kernel": jnp.ones((9, 9))}, "nothing": {}}
    assert lora.merged(empty, lora.init(jax.random.key(0), empty, 2))["nothing"] == {}
    assert lora.merged(empty, {}) == empty
    assert set(lora.init(jax.random.key(0), {"a": {"kernel": jnp.ones((9, 9)), "embedding": jnp.ones((9, 9))}}, 2)["a"]) == {
        "kernel"
    }


@pytest.mark.parametrize("scale", [1.0, -0.7])
def test_merged_is_the_kernel_and_its_product_and_the_rest_untouched(scale):
    base, made = trained(SMALL, 2)
    student, pairs = flatten_dict(lora.merged(base, made, scale)), {path[:-1] for path in flatten_dict(made)}
    assert {len(path) for path in pairs} == {2, 3, 5}  # convolutions of the UNet, of its blocks, projections of its transformers
    for path, kernel in flatten_dict(base).items():
        if path not in pairs:
            assert student[path] is kernel
            continue
        pair = functools.reduce(lambda tree, name: tree[name], path, made)
        by_hand = np.asarray(kernel, np.float64) + scale * difference(pair).reshape(kernel.shape)
        np.testing.assert_allclose(student[path], by_hand, rtol=1e-6, atol=1e-7)
    assert any(kernel.ndim == 4 for path, kernel in flatten_dict(base).items() if path in pairs)


def beside(made, scale):
    """Every dense layer and convolution of a Flax module with its adapter as two layers more, `W x + scale * up(down x)`."""

    def layer(call, inputs, named, context):
        module = context.module
        pair = functools.reduce(lambda tree, name: tree.get(name, {}), (*module.path, "kernel"), made)
        y = call(*inputs, **named)
        if not pair or context.method_name != "__call__":
            return y
        hidden, (x,) = None, inputs
        if isinstance(module, nn.Dense):
            hidden = x @ pair["down"]
        else:
            filters = pair["down"].reshape(3, 3, -1, pair["down"].shape[-1])
            strides = (module.strides,) * 2 if isinstance(module.strides, int) else module.strides or (1, 1)
            hidden = jax.lax.conv_general_dilated(x, filters, strides, "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return y + scale * hidden @ pair["up"]

    return layer


def test_a_unet_of_merged_params_is_the_unet_with_two_layers_more_beside_each():
    base, made = trained(SMALL, 2)
    student, plain = lora.merged(base, made, 0.6), jax.jit(network(SMALL))
    with nn.intercept_methods(beside(made, 0.6)):
        by_hand = jax.jit(lambda *inputs: network(SMALL)(*inputs))(base, *given())
    assert jnp.max(jnp.abs(by_hand - plain(base, *given()))) > 0.03
    for merged in (plain, jax.jit(network(SMALL.clone(remat="everything")))):
        np.testing.assert_allclose(merged(student, *given()), by_hand, atol=2e-5)


def test_scale_is_a_strength_from_base_to_student_that_compiles_once():
    base, made = trained(TINY, 2)
    traces = []

    @jax.jit
    def at(scale):
        traces.append(scale)
        return lora.merged(base, made, scale)

    assert_equal(at(jnp.float32(0)), base)
    assert_equal(at(0.0), lora.merged(base, made, 0))
    half, student = at(jnp.float32(0.5)), at(jnp.float32(1))
    jax.tree.map(lambda h, a, b: np.testing.assert_allclose(h, (a + b) / 2, atol=1e-6), half, base, student)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), student, lora.merged(base, made))
    assert len(traces) == 2  # an array, and once a number


def test_adapters_fit_another_base_and_add_up():
    base, one = trained(SMALL, 2)
    other, few = noisy(base, 5), noisy(trained(SMALL, 1, "projections")[1], 6)
    both = lora.merged(lora.merged(other, one, 0.8), few, 0.5)
    swapped = lora.merged(lora.merged(other, few, 0.5), one, 0.8)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), both, swapped)
    kernel, first, second = (tree["transformer_2"]["block_0"]["self"]["q"]["kernel"] for tree in (other, one, few))
    by_hand = kernel + 0.8 * difference(first) + 0.5 * difference(second)
    np.testing.assert_allclose(both["transformer_2"]["block_0"]["self"]["q"]["kernel"], by_hand, atol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_a_base_of_half_precision_keeps_it_and_its_adapters_do_not_have_it(dtype):
    base = {"layer": {"kernel": jnp.ones((64, 64), dtype), "bias": jnp.ones(64, dtype)}}
    made = noisy(lora.init(jax.random.key(0), base, 4), std=0.3)
    assert {leaf.dtype for leaf in jax.tree.leaves(made)} == {jnp.dtype(jnp.float32)}
    student = lora.merged(base, made)
    assert {leaf.dtype for leaf in jax.tree.leaves(student)} == {jnp.dtype(dtype)}
    by_hand = jnp.asarray(1 + difference(made["layer"]["kernel"]), jnp.float32).astype(dtype)  # rounded once
    assert np.mean(np.asarray(student["layer"]["kernel"] == by_hand)) > 0.999


def test_a_float64_base_is_merged_in_float64(float64):
    base = {"kernel": jnp.ones((64, 64), jnp.float64)}
    made = lora.init(jax.random.key(0), base, 4)
    assert {leaf.dtype for leaf in jax.tree.leaves(made)} == {jnp.dtype(jnp.float64)}
    made = noisy(made)
    np.testing.assert_allclose(lora.merged(base, made)["kernel"], 1 + difference(made["kernel"]), rtol=1e-14)


def test_products_are_asked_for_in_float32_which_a_tpu_does_not_do_by_itself():
    base, made = trained(TINY, 2)
    text = str(jax.make_jaxpr(lora.merged)(base, made))
    assert text.count("Precision.HIGHEST, Precision.HIGHEST") == text.count("dot_general") == len(jax.tree.leaves(made)) // 2


def test_errors_are_one_line_that_says_what_and_where():
    base, made = trained(SMALL, 2)
    kernel = made["residual_0"]["Conv_0"]["kernel"]

    def wrong(**changed):
        return {"residual_0": {"Conv_0": {"kernel": {**kernel, **changed}}}}

    cases = [
        ({"residual_9": made["residual_0"]}, "adapters: residual_9/.* is not among the params; give adapters that were made for"),
        (wrong(down=jnp.ones((144, 3))), r"residual_0/Conv_0/kernel is \(3, 3, 16, 16\), which down \(144, 3\) and up \(2, 16\)"),
        (wrong(down=jnp.ones((16, 2))), r"residual_0/Conv_0/kernel is .* down \(16, 2\) and up"),
        (wrong(up=jnp.ones((2, 17))), r"residual_0/Conv_0/kernel is .* and up \(2, 17\) do not fit"),
        (wrong(up=jnp.ones((2, 16, 1))), r"residual_0/Conv_0/kernel is .* and up \(2, 16, 1\) do not fit"),
        ({"Conv_0": {"bias": {"down": jnp.ones((1, 1)), "up": jnp.ones((1, 16))}}}, r"adapters: Conv_0/bias is \(16,\), which"),
        ({"Conv_0": {"kernel": {"down": jnp.ones((9, 2))}}}, "adapters: Conv_0/kernel has down, and not down and up"),
        (base, "adapters: Conv_0 has bias, kernel, and not down and up; give adapters"),
        ({"Conv_0": kernel}, "adapters: Conv_0 is not among the params"),
    ]
    for given_instead, message in cases:
        with pytest.raises(ValueError, match=message) as error:
            lora.merged(base, given_instead)
        assert "\n" not in str(error.value)
    for rank, message in ((0, "rank must be 1 or more, got 0"), (500, "of .* chosen kernels none is larger .* rank 500; lower")):
        with pytest.raises(ValueError, match=message):
            lora.init(jax.random.key(0), shapes(SMALL), rank)
    with pytest.raises(ValueError, match="of 0 chosen kernels none is larger"):
        lora.init(jax.random.key(0), shapes(SMALL), 2, lambda path, leaf: False)


def merge(frozen, each):
    return lora.merged(frozen["base"], each)


def image_batch(size, channels=1):
    rng = np.random.default_rng(0)
    image = rng.uniform(-1, 1, (size, 8, 8, channels)).astype(np.float32)
    return {"image": image, "label": np.zeros(size, np.int32), "index": np.arange(size, dtype=np.int32)}


def distillation(module, target_ema):
    """Consistency distillation of the frozen base into a student: params, EMA and frozen all take part."""

    def student(params, given, key):
        return jd.denoiser(lambda x, logsnr: network(module)(params, x, logsnr, given, key), jd.predict_v)

    teacher = lambda frozen, given: student(frozen["base"], given, None)  # noqa: E731
    levels = jd.grid(jd.cosine(), 8)
    return objectives.consistency(
        student,
        teacher,
        lambda step, key, index, ndim: tuple(levels[jnp.full(index.shape, n)].expand(ndim) for n in (2, 3)),
        objectives.of_noisier(losses.v_weight),
        condition=lambda batch, key: batch["label"],
        target_ema=target_ema,
    )


def test_the_adapted_objective_is_the_objective_of_merged_params_and_merged_emas():
    base, made = trained(TINY, 2)
    frozen, old = {"base": base}, noisy(made, 9)
    state = training.TrainState(jnp.int32(0), made, {"slow": old}, (), frozen)
    plain = dataclasses.replace(state, params=merge(frozen, made), ema={"slow": merge(frozen, old)})
    inner, batch, key = distillation(TINY, "slow"), image_batch(4), jax.random.key(2)
    wrapped = objectives.adapted(inner, merge)
    graded = jax.jit(jax.value_and_grad(wrapped))
    loss, grads = graded(made, state, batch, key)
    expected, full = jax.jit(jax.value_and_grad(inner))(plain.params, plain, batch, key)
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    assert jax.tree.structure(grads) == jax.tree.structure(made)
    for layer in ("Dense_0", "Conv_1"):  # the chain rule: of up, down' dW; of down, dW up'
        kernel, each = np.asarray(full[layer]["kernel"]), made[layer]["kernel"]
        dense = kernel.reshape(-1, kernel.shape[-1])
        found = grads[layer]["kernel"]
        np.testing.assert_allclose(found["up"], each["down"].T @ dense, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(found["down"], dense @ each["up"].T, rtol=1e-4, atol=1e-6)
        assert np.abs(dense).max() > 1e-3
    other, _ = graded(made, dataclasses.replace(state, ema={"slow": made}), batch, key)
    assert abs(other - loss) > 1e-4


def test_a_pair_of_loss_and_terms_passes_through():
    pair = objectives.adapted(lambda params, state, batch, key: (params, {"key": key, "batch": batch}), lambda f, each: f + each)
    state = training.TrainState(jnp.int32(0), 1, {}, (), 2)
    assert pair(1, state, "images", "key") == (3, {"key": "key", "batch": "images"})


def stepped(layout, num, base, rank, module, target_ema="slow"):
    """Losses and the state after so many steps of SGD on adapters, in that layout."""
    objective, optimizer = objectives.adapted(distillation(module, target_ema), merge), optax.sgd(0.3)
    step = layout.compile(training.train_step(objective, optimizer, {"slow": 0.9}, reduce_gradients=layout.reduce_gradients))
    init = jax.jit(lambda key: adapted_state(key, base, rank, optimizer), out_shardings=layout.sharding)
    state, found = layout.enter(init(jax.random.key(0))), []
    before = jax.tree.map(np.asarray, state)
    for _ in range(num):
        state, metrics = step(state, layout.shard(image_batch(4)), jax.random.key(1))
        found.append(float(metrics["loss"]))
    return found, before, layout.leave(state)


def adapted_state(key, base, rank, optimizer):
    return training.initial_state(lora.init(key, base, rank), optimizer, {"slow": 0.9}, {"base": base})


def test_training_changes_adapters_alone_on_one_device_and_sharded_over_two():
    module, rank, sgd = Tiny(64), 8, optax.sgd(0.3)
    base = noisy(shapes(module), std=0.05)
    like = jax.eval_shape(lambda: adapted_state(jax.random.key(0), base, rank, sgd))
    results = []
    for devices in (1, 2):
        layout = mesh.jit_layout(mesh.make_mesh(1, devices, jax.devices()[:devices]), like)
        results.append(stepped(layout, 3, base, rank, module))
    (alone, before, state), (losses_of_two, _, over) = results
    assert_equal(before.params, before.ema["slow"])
    assert_equal(state.frozen, {"base": base})
    assert_equal(over.frozen, {"base": base})
    moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), state.params, before.params)
    ups = {path: value for path, value in flatten_dict(moved).items() if path[-1] == "up"}
    assert min(ups.values()) > 0
    assert max(value for path, value in flatten_dict(moved).items() if path[-1] == "down") > 0
    np.testing.assert_allclose(losses_of_two, alone, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), over.params, state.params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), over.ema, state.ema)
    assert any(not leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves((over.params, over.ema)))
    assert any(not leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(over.frozen))


SINGULAR = (4.0, 2.0, 1.0)


@pytest.mark.parametrize("rank", [1, 2, 3, 5])
def test_a_difference_of_rank_three_is_learned_and_its_remainder_is_eckart_and_youngs(rank):
    """A linear network and a teacher that differs by U diag(4, 2, 1) V', at inputs of unit covariance."""
    rng = np.random.default_rng(0)
    base = {"layer": {"kernel": jnp.asarray(rng.normal(size=(16, 12)), jnp.float32), "bias": jnp.ones(12)}}
    left, right = (np.linalg.qr(rng.normal(size=(length, 3)))[0] for length in (16, 12))
    target = base["layer"]["kernel"] + jnp.asarray(left * np.array(SINGULAR) @ right.T, jnp.float32)

    def regression(params, state, batch, key):
        apply = lambda kernel: batch["image"] @ kernel + params["layer"]["bias"][None]  # noqa: E731
        return jnp.sum((apply(params["layer"]["kernel"]) - apply(state.frozen["target"])) ** 2)

    optimizer, frozen = optax.sgd(0.03), {"base": base, "target": target}
    step = training.train_step(objectives.adapted(regression, merge), optimizer, {})
    state = training.initial_state(lora.init(jax.random.key(1), base, rank), optimizer, {}, frozen)
    batch = {"image": jnp.eye(16)}
    state, metrics = jax.lax.scan(lambda state, _: step(state, batch, jax.random.key(0)), state, length=1500)
    best = sum(value**2 for value in SINGULAR[rank:])
    np.testing.assert_allclose(metrics["loss"][0], sum(value**2 for value in SINGULAR), rtol=1e-5)
    np.testing.assert_allclose(metrics["loss"][-1], best, rtol=1e-4, atol=1e-8)
    found = merge(frozen, state.params)
    assert found["layer"]["bias"] is base["layer"]["bias"]
    kept = left * np.array([value if place < rank else 0 for place, value in enumerate(SINGULAR)]) @ right.T
    np.testing.assert_allclose(found["layer"]["kernel"] - base["layer"]["kernel"], kept, atol=1e-4)


def test_saved_adapters_are_a_small_file_and_come_back(tmp_path):
    base, made = trained(Tiny(128), 4)
    optimizer, sizes = optax.sgd(0.1), {}
    for name, params in (("base", base), ("adapters", made)):
        state = training.initial_state(params, optimizer, {"ema": 0.9}, {"base": base})
        with checkpoint.manager(tmp_path / name) as to:
            checkpoint.save(to, state, {"name": name})
        sizes[name] = sum(path.stat().st_size for path in (tmp_path / name).rglob("*") if path.is_file())
    assert sizes["adapters"] < sizes["base"] / 5
    like = training.initial_state(jax.tree.map(jnp.zeros_like, made), optimizer, {"ema": 0.9}, {"base": base})
    restored = checkpoint.restore(tmp_path / "adapters", like)
    assert_equal(restored.params, made)
    _, average = checkpoint.restore_ema(tmp_path / "adapters", "ema", like.params)
    assert_equal(lora.merged(base, average), lora.merged(base, made))
