"""The step and its layouts: one number of devices or another, jit or pmap, fsdp or not, the losses are the same."""

import dataclasses
import os
import signal
from functools import cache, partial

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdiff import data, training
from jaxdiff.app import build
from jaxdiff.app.build import networks
from jaxdiff.app.config import Data, Experiment, Model, Optimizer
from jaxdiff.app.config import Mesh as MeshConfig
from jaxdiff.io.errors import NonFiniteError
from jaxdiff.training import mesh

PLAIN = Experiment(
    data=Data(batch_size=16),
    model=Model(channels=64),
    optimizer=Optimizer(learning_rate=1e-3),
    ema={"fast": 0.9, "slow": 0.99},
)


class Block(nn.Module):
    channels: int

    @nn.compact
    def __call__(self, x):
        return nn.Dense(self.channels, use_bias=False, name="Conv_1")(
            nn.silu(nn.Dense(self.channels, use_bias=False, name="Conv_0")(x))
        )


class OneBlock(nn.Module):
    """Layers named as those of residual blocks, which every mesh axis splits."""

    channels: int
    num_classes: int

    @nn.compact
    def __call__(self, x, condition, label, train=False):
        hidden = nn.Dense(self.channels, use_bias=False)(x) + condition[:, None, None, None] / 10
        hidden += nn.Embed(self.num_classes + 1, self.channels)(label)[:, None, None]
        return nn.Dense(x.shape[-1], use_bias=False)(hidden + Block(self.channels, name="residual_0")(hidden))


@pytest.fixture(autouse=True, scope="module")
def one_block():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(networks, "UNet", OneBlock)
        yield


def batches(num, size=16):
    rng = np.random.default_rng(0)
    for _ in range(num):
        image = rng.uniform(-1, 1, (size, 8, 8, 1)).astype(np.float32)
        yield {"image": image, "label": rng.integers(0, 10, size).astype(np.int32), "index": np.arange(size, dtype=np.int32)}


@cache
def params():
    """Those at the start of every run."""
    return jax.jit(partial(build.init, PLAIN))(jax.random.key(0)).params


def start(layout, optimizer):
    """The state at step 0, laid out."""
    state = jax.jit(lambda params: training.initial_state(params, optimizer, PLAIN.ema), out_shardings=layout.sharding)
    return state(params())


def run(layout, config=PLAIN, num=6, optimizer=None):
    """Losses and the final plain state."""
    optimizer = build.optimizer(config) if optimizer is None else optimizer
    microbatches, reduce = config.optimizer.accumulate, layout.reduce_gradients
    step = layout.compile(training.train_step(build.objective(config), optimizer, config.ema, microbatches, reduce))

    steps = training.loop(step, layout.enter(start(layout, optimizer)), map(layout.shard, batches(num)), jax.random.key(1))
    losses = []
    for after, metrics in steps:
        losses.append(float(metrics["loss"]))
        state = after
    return losses, layout.leave(state)


def jit_over(devices, fsdp=1, tensor=1, config=PLAIN):
    return mesh.jit_layout(mesh.make_mesh(-1, fsdp, jax.devices()[:devices], tensor), build.state_shapes(config))


@pytest.fixture(scope="module")
def alone():
    return run(jit_over(1))


@pytest.mark.parametrize(("devices", "fsdp", "tensor"), [(8, 1, 1), (8, 2, 1), (8, 8, 1), (2, 1, 2), (8, 2, 2)])
@pytest.mark.slow
def test_losses_do_not_depend_on_the_mesh(alone, devices, fsdp, tensor):
    losses, state = run(jit_over(devices, fsdp, tensor))
    np.testing.assert_allclose(losses, alone[0], rtol=2e-5)
    for a, b in zip(jax.tree.leaves(state.params), jax.tree.leaves(alone[1].params), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)
    for axis, size in (("fsdp", fsdp), ("tensor", tensor)):
        split = [leaf for leaf in jax.tree.leaves(state.params) if axis in leaf.sharding.spec]
        assert bool(split) == (size > 1)
        both = [size * (fsdp if axis == "tensor" and "fsdp" in leaf.sharding.spec else 1) for leaf in split]
        assert all(leaf.addressable_shards[0].data.size <= leaf.size // parts for leaf, parts in zip(split, both, strict=True))


def test_steps_together_are_those_one_by_one(alone):
    """Over two devices: three and three, bit-equal to calls of one step."""
    layout = jit_over(2, fsdp=2)
    step = layout.compile_repeated(build.train_step(PLAIN, layout))
    states, parts = [], list(batches(6))
    for size in (1, 3):
        losses, state = [], start(layout, build.optimizer(PLAIN))
        for first in range(0, 6, size):
            rows = data.stacked(iter(parts[first : first + size]), size)
            state, metrics = step(state, layout.shard(rows), jax.random.key(1))
            losses += metrics["loss"].tolist()
        np.testing.assert_allclose(losses, alone[0], rtol=2e-5)
        assert int(state.step) == 6
        states.append((state, losses))
    chex.assert_trees_all_equal(*states)


@pytest.mark.parametrize("num", [1, 3])
def test_programs_of_any_number_of_steps_have_the_loop(num):
    """Which XLA takes away where it knows that there is but one step; what is left is rounded as it likes."""

    def step(state, batch, key):
        state = state - 0.1 * jnp.tanh(batch @ state)
        return state, {"loss": jnp.sum(state)}

    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((8, 8), (num, 8, 8))]
    compiled = jax.jit(training.repeated(step)).lower(*shapes, jax.random.key(0), np.int32(num)).compile()
    assert compiled.as_text().count(" while(") == 1


def test_images_of_bytes_are_scaled_on_the_device():
    """Their ends and middle, as the objective sees them."""
    seen = {}

    def objective(params, state, batch, key):
        seen.update(batch)
        return jnp.sum(params * jnp.mean(batch["image"]))

    step = training.train_step(objective, optax.sgd(1.0), {})
    state = training.initial_state(jnp.zeros(()), optax.sgd(1.0), {})
    pixels = np.array([0, 255, 51, 204], np.uint8).reshape(4, 1, 1, 1)
    with jax.disable_jit():
        step(state, {"image": jnp.asarray(pixels), "label": jnp.arange(4)}, jax.random.key(0))
        np.testing.assert_allclose(seen["image"].ravel(), [-1, 1, -0.6, 0.6], rtol=1e-6)
        assert seen["label"].dtype == jnp.int32
        step(state, {"image": jnp.full((1, 2), 3.0)}, jax.random.key(0))
        np.testing.assert_array_equal(seen["image"], 3.0)


def test_pmap_twin_equals_jit():
    """With SGD, which hides no factor in the gradient as Adam does."""
    sgd, plain = optax.sgd(0.1), PLAIN
    shapes = dataclasses.replace(build.state_shapes(plain), opt_state=jax.eval_shape(sgd.init, build.state_shapes(plain).params))
    pmapped = run(mesh.pmap_layout(shapes), plain, optimizer=sgd)
    jitted = run(mesh.jit_layout(mesh.make_mesh(1, 1, jax.devices()[:1]), shapes), plain, optimizer=sgd)
    np.testing.assert_allclose(pmapped[0], jitted[0], rtol=2e-5)
    for a, b in zip(jax.tree.leaves(pmapped[1].params), jax.tree.leaves(jitted[1].params), strict=True):
        np.testing.assert_allclose(a, b, atol=5e-6)


def test_a_run_repeats_itself_bit_for_bit(alone):
    again = run(jit_over(1))
    assert again[0] == alone[0]
    jax.tree.map(np.testing.assert_array_equal, again[1], alone[1])


def quadratic(params, state, batch, key):
    return jnp.mean((params["w"] - batch["image"]) ** 2)


def test_ema_follows_its_recursion():
    optimizer, decays = optax.sgd(0.1), {"ema": 0.5}
    state = training.initial_state({"w": jnp.float32(0.0)}, optimizer, decays)
    step = jax.jit(training.train_step(quadratic, optimizer, decays))
    w = ema = 0.0
    for k in range(20):
        state, metrics = step(state, {"image": jnp.ones((4,))}, jax.random.key(0))
        np.testing.assert_allclose(metrics["grad_norm"], 2 * abs(w - 1), rtol=1e-5)
        w -= 0.1 * 2 * (w - 1)
        decay = min(0.5, (1 + k) / (10 + k))
        ema = decay * ema + (1 - decay) * w
        np.testing.assert_allclose([state.params["w"], state.ema["ema"]["w"]], [w, ema], rtol=1e-5)
    assert int(state.step) == 20


def test_a_batch_in_parts_makes_the_step_of_the_whole():
    """For params and EMA, of a loss whose noise is keyed by the rows' places."""
    (whole, state), (parts, other) = (
        run(jit_over(2), dataclasses.replace(PLAIN, optimizer=Optimizer(learning_rate=1e-3, accumulate=n))) for n in (1, 4)
    )
    np.testing.assert_allclose(whole, parts, rtol=2e-5)
    for a, b in zip(jax.tree.leaves((state.params, state.ema)), jax.tree.leaves((other.params, other.ema)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


def test_optimizer_of_a_config():
    config = dataclasses.replace(
        PLAIN,
        steps=100,
        optimizer=Optimizer(learning_rate=1.0, warmup_steps=10, schedule="cosine", clip_norm=1.0, weight_decay=0.0),
    )
    optimizer = build.optimizer(config)
    params = {"w": jnp.zeros((2,))}
    state = optimizer.init(params)
    sizes = []
    for _ in range(100):
        with jax.numpy_dtype_promotion("standard"):
            updates, state = optimizer.update({"w": jnp.array([3.0, 4.0])}, state, params)
        sizes.append(float(jnp.abs(updates["w"]).max()))
    np.testing.assert_allclose(sizes[:10], np.linspace(1 / 11, 1, 11)[:10], rtol=1e-2)  # Adam's step is the learning rate
    np.testing.assert_allclose(sizes[55], 0.5, rtol=2e-2)
    assert sizes[-1] < 1e-2


def test_first_number_that_is_none_is_named():
    metrics = {step: {"loss": jnp.float32(value)} for step, value in ((7, 1.0), (8, jnp.inf), (9, jnp.nan))}
    with pytest.raises(NonFiniteError, match="loss is inf at step 8"):
        training.mean_metrics(metrics)
    assert training.mean_metrics({1: {"loss": jnp.float32(1)}, 2: {"loss": jnp.float32(3)}}) == {"loss": 2.0}
    assert training.mean_metrics({2: {"loss": jnp.array([1.0, 3.0])}, 4: {"loss": jnp.array([5.0, 7.0])}}) == {"loss": 4.0}
    with pytest.raises(NonFiniteError, match="loss is nan at step 7;"):
        training.mean_metrics({8: {"loss": jnp.array([1.0, 2.0, jnp.nan, 3.0])}})


def test_meshes_that_do_not_fit_are_said():
    with pytest.raises(ValueError, match="data 3 x fsdp 1 x tensor 1 does not make up 8 devices"):
        mesh.make_mesh(3, 1)
    with pytest.raises(ValueError, match=r"data.batch_size 12 is not divisible by 8 devices"):
        build.layout(dataclasses.replace(PLAIN, data=Data(batch_size=12), mesh=MeshConfig()))


def test_stop_signals_are_remembered_once_and_restored():
    before = signal.getsignal(signal.SIGTERM)
    with training.stop_signals() as stopped:
        assert stopped() is None
        os.kill(os.getpid(), signal.SIGTERM)
        assert stopped() == "SIGTERM"
        assert signal.getsignal(signal.SIGTERM) == before
