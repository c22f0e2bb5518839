"""Which mesh axis splits what, and in what gradients are summed."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

from jaxdiff import training
from jaxdiff.app import build
from jaxdiff.app.config import Data, Experiment, Mesh, Model
from jaxdiff.objectives.rng import batch_key
from jaxdiff.training import mesh, sharding

WIDE = Experiment(
    data=Data(batch_size=16),
    model=Model(channels=64, multipliers=(1,), blocks=1, head_channels=16, dtype="bfloat16", dropout=0.5),
)
FOUR = jax.devices()[:4]
TWO_BY_TWO = mesh.make_mesh(1, 2, FOUR, tensor=2)


def specs(over, params):
    found = jax.tree.leaves_with_path(sharding.shardings(over, params), is_leaf=lambda leaf: hasattr(leaf, "spec"))
    return {"/".join(key.key for key in path): leaf.spec for path, leaf in found}


@pytest.fixture(scope="module")
def shapes():
    return build.state_shapes(WIDE)


@pytest.mark.parametrize(
    ("devices", "asked", "sizes"),
    [
        (1, {}, (1, 1, 1)),
        (8, {}, (8, 1, 1)),
        (16, {}, (2, 8, 1)),
        (12, {}, (3, 4, 1)),
        (256, {}, (32, 8, 1)),
        (16, {"tensor": 2}, (8, 1, 2)),
        (8, {"fsdp": 4}, (2, 4, 1)),
        (8, {"data": 2}, (2, 4, 1)),
        (8, {"data": 1, "fsdp": 4, "tensor": 2}, (1, 4, 2)),
    ],
)
def test_the_mesh_is_chosen_by_the_number_of_devices(devices, asked, sizes):
    assert mesh.mesh_shape(devices, **asked) == sizes


@pytest.mark.parametrize("asked", [{"data": 3}, {"fsdp": 0}, {"tensor": 3}, {"tensor": 0}, {"data": 2, "fsdp": 2}])
def test_sizes_that_do_not_make_up_the_devices_are_refused(asked):
    with pytest.raises(ValueError, match="does not make up 8 devices; set data or fsdp to -1"):
        mesh.mesh_shape(8, **asked)


def test_kernels_are_split_by_what_their_dimensions_mean(shapes):
    found = specs(TWO_BY_TWO, shapes.params)
    assert found["residual_1/Conv_0/kernel"] == PartitionSpec(None, None, "fsdp", "tensor")
    assert found["residual_1/Conv_1/kernel"] == PartitionSpec(None, None, "tensor", "fsdp")
    assert found["attention_1/qkv/kernel"] == PartitionSpec(None, "fsdp")
    assert found["residual_1/Norm_0/scale"] == PartitionSpec()  # small
    assert found["Dense_1/kernel"] == PartitionSpec(None, "fsdp")
    three = mesh.make_mesh(1, 3, jax.devices()[:3])
    odd = {"kernel": jax.ShapeDtypeStruct((64, 9, 3, 64), jnp.float32), "w": jax.ShapeDtypeStruct((5000, 6), jnp.float32)}
    assert specs(three, odd) == {"kernel": PartitionSpec(None, None, "fsdp", None), "w": PartitionSpec(None, "fsdp")}


def test_optimizer_and_averages_lie_as_their_params_do(shapes):
    layout = mesh.jit_layout(TWO_BY_TWO, shapes)
    moments = next(
        part for part in jax.tree.leaves(layout.sharding.opt_state, is_leaf=lambda x: hasattr(x, "mu")) if hasattr(part, "mu")
    )
    for tree in (moments.mu, moments.nu, layout.sharding.ema["ema"]):
        assert tree == layout.sharding.params


def test_the_table_adds_up(shapes):
    lines = sharding.table(TWO_BY_TWO, shapes.params).splitlines()
    values, held = (
        sum(int(re.split(r"\s{1,}", line.strip().replace("norm and bias", "norm"))[n].replace(",", "")) for line in lines[1:])
        for n in (2, 3)
    )
    assert values == sum(leaf.size for leaf in jax.tree.leaves(shapes.params))
    spread = jax.tree.map(
        lambda leaf, at: np.prod(at.shard_shape(leaf.shape)), shapes.params, sharding.shardings(TWO_BY_TWO, shapes.params)
    )
    assert held == sum(jax.tree.leaves(spread))
    assert "inputs over fsdp 2, hidden over tensor 2" in "\n".join(lines)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_gradients_are_summed_in_the_dtype_of_the_config(shapes, dtype):
    """By the program before XLA's own changes; the network computes in bfloat16."""
    config = dataclasses.replace(WIDE, mesh=Mesh(data=2, fsdp=2, gradients=dtype))
    layout = build.layout(config, devices=FOUR)
    rows = {"image": jnp.zeros((16, 8, 8, 1)), "label": jnp.zeros(16, jnp.int32), "index": jnp.arange(16, dtype=jnp.int32)}
    with jax.numpy_dtype_promotion("standard"):  # the gradient of jax's own attention promotes
        text = layout.compile(build.train_step(config, layout)).lower(shapes, rows, jax.random.key(0)).as_text()
    found = re.findall(r'"stablehlo\.(all_reduce|reduce_scatter)".*?\}\) : \(tensor<([^>]*)>', text, re.S)
    summed = {kind: {shape.split("x")[-1] for name, shape in found if name == kind and "x" in shape} for kind in dict(found)}
    assert summed == {"all_reduce": {dtype.replace("float", "f")}, "reduce_scatter": {dtype.replace("float", "f")}}


def test_devices_drop_different_units():
    """Rows of one image and noise differ by their masks alone, on one device and on two."""

    def objective(params, state, batch, key):
        mask = jax.random.bernoulli(batch_key(key, batch["index"]), shape=batch["image"].shape)
        return jnp.mean(jnp.where(mask, params["w"], 0))

    def kept(devices):
        """How many of two rows each unit is kept in."""
        state = training.initial_state({"w": jnp.ones((8, 1024))}, optax.sgd(1.0), {})
        layout = mesh.jit_layout(mesh.make_mesh(len(devices), 1, devices), jax.eval_shape(lambda: state))
        step = layout.compile(training.train_step(objective, optax.sgd(1.0), {}, reduce_gradients=layout.reduce_gradients))
        rows = {"image": np.zeros((2, 8, 1024), np.float32), "index": np.arange(2, dtype=np.int32)}
        after, _ = step(state, layout.shard(rows), jax.random.key(0))
        return np.round((1 - np.asarray(after.params["w"])) * 2 * 8 * 1024).astype(int)

    one, two = kept(FOUR[:1]), kept(FOUR[:2])
    assert set(two.ravel()) == {0, 1, 2}  # with equal masks, 1 would be missing
    assert np.mean(one != two) > 0.1  # masks depend on the number of devices


def test_a_bfloat16_average_reaches_its_params():
    """Rounded to the nearest, it would stay where a step is smaller than half the distance of two numbers."""
    optimizer, decays = optax.sgd(0.0), {"ema": 0.999}
    start = training.initial_state({"w": jnp.zeros(4096)}, optimizer, decays, ema_dtype=jnp.bfloat16)
    state = dataclasses.replace(start, step=jnp.int32(10**6), params={"w": jnp.ones(4096)})  # its decay is no longer less
    step = training.train_step(lambda params, state, batch, key: 0 * jnp.sum(params["w"]), optimizer, decays)
    rows = {"image": jnp.zeros(1)}
    after, _ = jax.lax.scan(lambda state, _: (step(state, rows, jax.random.key(0))[0], None), state, length=1000)
    expected = 1 - 0.999**1000
    found = np.asarray(after.ema["ema"]["w"], np.float32)
    assert abs(found.mean() - expected) < 3e-3  # rounded to the nearest, it would stay at 0.26
    assert after.ema["ema"]["w"].dtype == jnp.bfloat16
