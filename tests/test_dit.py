"""The diffusion transformer: against published code (`make_published.py`), its places, options, sharding, and runs of it."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import published_weights
import pytest
from jax.sharding import PartitionSpec

from jaxdiff import interop, process
from jaxdiff.app import build, cli, config
from jaxdiff.app.runs import storage
from jaxdiff.interop import dit_names, params, parts
from jaxdiff.interop.layouts import PLAIN, Layout
from jaxdiff.interop.unet_names import Row
from jaxdiff.io.errors import ConfigError, DataError
from jaxdiff.models import attention, dit
from jaxdiff.models.dit import DiT
from jaxdiff.models.dit_blocks import JointBlock
from jaxdiff.models.unet import network
from jaxdiff.training import sharding
from jaxdiff.training.mesh import make_mesh

TINY = {"channels": 32, "depth": 2, "heads": 2, "num_classes": 4}
TODAY = {"qk_norm": True, "swiglu": True, "rotary": True, "registers": 3}
OPTIONS = {
    "plain": {},
    "today": TODAY,
    "cross": {"context_channels": 6},
    "joint": {"context_channels": 6, "context_blocks": "joint", **TODAY},
}


def inputs(name="plain"):
    """Images, conditions, and what else the network of OPTIONS is given."""
    x = jax.random.normal(jax.random.key(1), (2, 8, 12, 3))
    given = {"label": jnp.array([1, 4])}
    if "context_channels" in OPTIONS[name]:
        given["context"] = jax.random.normal(jax.random.key(2), (2, 5, 6))
    return x, jnp.array([-3.0, 2.0]), given


def drawn(module, x, condition, **given):
    """Params that are nowhere zero."""
    shapes = params.shapes_of(module.init, x, condition, **given)
    leaves, tree = jax.tree.flatten(shapes)
    draw = np.random.default_rng(0).standard_normal
    return jax.tree.unflatten(tree, [jnp.asarray(0.2 * draw(leaf.shape), jnp.float32) for leaf in leaves])


# published code


def opened(folder, name):
    """The path of a family's files."""
    published_weights.write(folder, name)
    return folder if name == "dit" else folder / f"{name}.safetensors"


@pytest.mark.parametrize("name", ["dit", "dit_published", "sit"])
def test_a_transformer_computes_what_the_published_code_does(name, tmp_path):
    """SiT's first half of the outputs is data - noise, ours is noise - data."""
    family, path = published_weights.family(name), opened(tmp_path, name)
    loaded = interop.load(path, **({} if name == "dit" else {"head_channels": 32}))
    steps = family.inputs["timesteps"]
    if name == "sit":
        logsnr = 2 * np.log(steps / (1 - steps))
    else:
        alpha2 = np.cumprod(1 - parts.find(path).chain.values())[steps.astype(int)]
        logsnr = np.log(alpha2 / (1 - alpha2))
    x = jnp.moveaxis(jnp.asarray(family.inputs["x"]), 1, -1)
    mine = jax.jit(loaded.network)(loaded.params, x, jnp.asarray(logsnr, jnp.float32), jnp.asarray(family.inputs["labels"]))
    theirs = np.moveaxis(family.outputs["sample"], 1, -1)
    mine = -mine[..., :4] if name == "sit" else mine
    assert mine.shape == theirs.shape
    np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-5 * np.abs(theirs).max())


def test_the_velocity_of_sit_gives_x0_by_its_papers_formula(tmp_path):
    """At `x = t data + (1 - t) noise` (Ma et al. 2024, section 2): data is `x + (1 - t) v`."""
    family, path = published_weights.family("sit"), opened(tmp_path, "sit")
    t = jnp.asarray(family.inputs["timesteps"])[:, None, None, None]
    x = jnp.moveaxis(jnp.asarray(family.inputs["x"]), 1, -1)
    denoise = interop.denoiser(path, label=family.inputs["labels"], head_channels=32)
    wanted = x + (1 - t) * jnp.moveaxis(jnp.asarray(family.outputs["sample"]), 1, -1)
    np.testing.assert_allclose(jax.jit(denoise)(x, process.Level(t, 1 - t)), wanted, rtol=0, atol=3e-5)


JOINT = (  # ours, and diffusers'
    ("modulation", "norm1.linear"),
    ("context_modulation", "norm1_context.linear"),
    *((f"self_attention/{ours}", f"attn.to_{ours}") for ours in "qkv"),
    *((f"context_attention/{ours}", f"attn.add_{ours}_proj") for ours in "qkv"),
    ("self_attention_out/out", "attn.to_out.0"),
    ("context_attention_out/out", "attn.to_add_out"),
    *((f"{ours}_mlp/in", f"{theirs}.net.0.proj") for ours, theirs in (("self", "ff"), ("context", "ff_context"))),
    *((f"{ours}_mlp/out", f"{theirs}.net.2") for ours, theirs in (("self", "ff"), ("context", "ff_context"))),
)


def test_joint_blocks_compute_what_stable_diffusion_3_does():
    """Two blocks, the last without a context; there, the published layer has its scale before its shift."""
    family = published_weights.family("joint")
    x, context, embedding = (jnp.asarray(family.inputs[name]) for name in ("x", "context", "embedding"))
    (tensors,) = family.tensors.values()
    for number in range(2):
        block = JointBlock(2, qk_norm=True, last=number == 1)
        swapped = Layout(lambda parts: np.concatenate(np.split(parts[0], 2)[::-1]))
        layouts = {"context_modulation": swapped} if number else {}
        rows = [Row(ours, (f"{number}.{theirs}",), layouts.get(ours, PLAIN)) for ours, theirs in JOINT]
        arrays = {name: published_weights.draw(name, tuple(shape)) for name, shape in tensors.items()}
        shapes = params.shapes_of(block.init, x, context, embedding, None)
        for side, theirs in (("self", "norm"), ("context", "norm_added")):
            for each in "qk":
                norm = arrays.pop(f"{number}.attn.{theirs}_{each}.weight")
                arrays[f"{number}.{side}_norm_{each}"] = norm
                del shapes[f"{side}_attention"][f"norm_{each}"]
        tree = jax.tree.map(jnp.asarray, params.load(rows, shapes, arrays, "joint"))
        for side in ("self", "context"):
            for each in "qk":
                tree[f"{side}_attention"][f"norm_{each}"] = jnp.asarray(arrays[f"{number}.{side}_norm_{each}"])
        x, context = jax.jit(block.apply)({"params": tree}, x, context, jax.nn.silu(embedding), None)
    theirs = family.outputs["sample"]
    np.testing.assert_allclose(x, theirs, rtol=0, atol=1e-5 * np.abs(theirs).max())


def test_blocks_of_diffusers_must_share_their_embedding():
    name = "transformer_blocks.{}.norm1.emb.timestep_embedder.linear_1.bias"
    arrays = {name.format(0): np.ones(3), name.format(1): np.ones(3), "pos_embed.pos_embed": np.ones(3)}
    assert list(dit_names.named(arrays, "here")) == [name.format(0)]
    with pytest.raises(DataError, match=r"blocks\.1.* once for all blocks"):
        dit_names.named({**arrays, name.format(1): np.zeros(3)}, "here")


def test_xl_has_the_published_number_of_parameters():
    depth, channels, heads = dit.SIZES["XL"]
    module = DiT(channels, depth, heads, num_classes=1000, learned_variance=True)
    shapes = params.shapes_of(module.init, jnp.zeros((1, 32, 32, 4)), jnp.zeros((1,)), jnp.zeros((1,), jnp.int32))
    own, constant = sum(leaf.size for leaf in jax.tree.leaves(shapes)), dit.positions(16, 16, channels).size
    assert (own, own + constant) == (674_834_720, 675_129_632)


# the module


def test_patches_are_rows_of_pixels_and_come_back():
    x = jnp.arange(2 * 4 * 6 * 3.0).reshape(2, 4, 6, 3)
    cut = dit.patches(x, 2)
    np.testing.assert_array_equal(cut[0, 1], x[0, :2, 2:4].ravel())
    np.testing.assert_array_equal(dit.images(cut, 2, 3, 2), x)


def test_attention_by_rows_is_attention(monkeypatch):
    """And so are its gradients, where the rows are eighths of a batch."""
    q, k, v, towards = jax.random.normal(jax.random.key(0), (4, 16, 6, 2, 4))

    def gradients(function):
        return jax.jit(jax.value_and_grad(lambda *parts: jnp.sum(towards * function(*parts)), argnums=(0, 1, 2)))(q, k, v)

    whole = gradients(attention.attended)
    monkeypatch.setattr(attention, "ALL_SCORES", 16 * 2 * 36)
    text = str(jax.make_jaxpr(attention.attended_by_rows)(q, k, v))
    assert "scan" in text
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), gradients(attention.attended_by_rows), whole)


def test_blocks_begin_as_the_identity_and_the_output_as_zero():
    """Whatever the kernel of the output, the network is that of no blocks at first; guidance and until say nothing."""
    x, condition, given = inputs("cross")
    module = DiT(**TINY | {"depth": 1}, **OPTIONS["cross"])
    more = {"guidance": jnp.ones(2), "until": jnp.ones(2)}
    begun = jax.jit(module.init)(jax.random.key(0), x, condition, **given, **more)["params"]
    for name in more:
        assert not np.any(begun[name]["out"]["kernel"])
        assert np.any(begun[name]["in"]["kernel"])
    apply = jax.jit(lambda tree: module.apply({"params": tree}, x, condition, **given, **more))
    assert not np.any(apply(begun))
    kernel = jax.random.normal(jax.random.key(3), begun["out"]["kernel"].shape)
    outputs = apply(begun | {"out": begun["out"] | {"kernel": kernel}})
    tokens = dit.patches(x, 2) @ begun["patches"]["kernel"] + dit.positions(4, 6, 32)[None]
    normed = (tokens - tokens.mean(-1, keepdims=True)) / jnp.sqrt(tokens.var(-1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(outputs, dit.images(normed @ kernel, 4, 6, 2), rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["plain", "joint"])
def test_a_network_depends_on_all_that_it_is_given_and_on_places(name):
    x, condition, given = inputs(name)
    module = DiT(**TINY, **OPTIONS[name])
    given |= {"guidance": jnp.array([1.0, 3.0]), "until": jnp.array([-5.0, 0.0])}
    tree = drawn(module, x, condition, **given)
    apply = jax.jit(lambda x, condition, given: module.apply({"params": tree}, x, condition, **given))
    plain = apply(x, condition, given)
    others = {key: value + 1 if key != "label" else 3 - value % 3 for key, value in given.items()}
    for key, value in others.items():
        assert np.abs(apply(x, condition, given | {key: value}) - plain).max() > 1e-3, key
    assert np.abs(apply(x, condition + 1, given) - plain).max() > 1e-3
    for axis in (1, 2):  # rolled by a patch, the images are others, not rolled
        rolled = apply(jnp.roll(x, 2, axis), condition, given)
        assert np.abs(rolled - jnp.roll(plain, 2, axis)).max() > 1e-3


def test_rotary_attention_sees_distances():
    """The product of a query and a key that are turned depends on the difference of their places alone."""
    from jaxdiff.models.dit_blocks import turned

    angles = dit.rotations(5, 5, 8, 1)
    q, k = (jnp.broadcast_to(jax.random.normal(jax.random.key(n), (1, 1, 1, 8)), (1, 26, 1, 8)) for n in (0, 1))
    products = jnp.einsum("bthc,bshc->ts", turned(q, angles), turned(k, angles))[1:, 1:].reshape(5, 5, 5, 5)
    np.testing.assert_allclose(products[1, 1, 2, 4], products[2, 0, 3, 3], atol=1e-5)
    assert abs(products[1, 1, 2, 4] - products[1, 1, 4, 2]) > 1e-2


def test_recomputed_blocks_change_nothing():
    """But the rounding of what the compiler fuses otherwise."""
    x, condition, given = inputs("today")
    results = []
    for remat in ("none", "blocks"):
        module = DiT(**TINY | {"depth": 1}, **TODAY, remat=remat)
        tree = drawn(module, x, condition, **given)
        loss = lambda tree, module=module: jnp.mean(module.apply({"params": tree}, x, condition, **given) ** 2)  # noqa: E731
        results.append(jax.jit(jax.grad(loss))(tree))
    assert jax.tree.structure(results[0]) == jax.tree.structure(results[1])
    for plain, again in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_allclose(plain, again, rtol=0, atol=1e-5 * np.abs(plain).max())


def test_bfloat16_is_near_float32():
    x, condition, given = inputs("today")
    module, half = (DiT(**TINY | {"depth": 1}, **TODAY, dtype=dtype) for dtype in (jnp.float32, jnp.bfloat16))
    tree = drawn(module, x, condition, **given)
    plain, coarse = (jax.jit(network(each))(tree, x, condition, given) for each in (module, half))
    assert coarse.dtype == jnp.bfloat16
    assert 0 < np.abs(plain - coarse.astype(jnp.float32)).max() < 0.1 * np.abs(plain).max()


@pytest.mark.parametrize(
    ("options", "size", "words"),
    [
        ({"patch": 4}, 6, "dit.patch"),
        ({"channels": 30}, 8, "model.channels or model.heads"),
        ({"channels": 36, "heads": 6, "rotary": True}, 8, "model.channels or model.heads"),
        ({"context_channels": 6}, 8, "or zeros for none"),
    ],
)
def test_refusals_say_what_to_change(options, size, words):
    with pytest.raises(ValueError, match=words):
        DiT(**TINY | options).init(jax.random.key(0), jnp.zeros((1, size, size, 3)), jnp.zeros(1), jnp.zeros(1, jnp.int32))


# runs

SMALL = config.Experiment(
    data=config.Data(image_shape=(8, 8, 1), batch_size=8),
    model=config.Model(network="dit", channels=64, heads=4, num_classes=4),
    dit=config.Dit(depth=1, qk_norm=True, swiglu=True, rotary=True),
)


def test_heads_and_features_are_split_over_tensor_and_a_sharded_step_is_the_same():
    """The feed-forward layers' width, and the heads of attention: over one device, and two of fsdp by two of tensor."""
    batch = {"x0": jax.random.normal(jax.random.key(1), (8, 8, 8, 1)), "label": jnp.arange(8) % 4}
    results = []
    for size in (1, 2):
        over = make_mesh(1, size, jax.devices()[: size**2], tensor=size)
        shapes = build.state_shapes(SMALL).params
        places = sharding.shardings(over, shapes)
        tree = jax.device_put(drawn(build.unet(SMALL), batch["x0"], jnp.zeros(8), label=batch["label"]), places)

        def loss(tree, batch=batch):
            return jnp.mean(network(build.unet(SMALL))(tree, batch["x0"], jnp.linspace(-4, 4, 8), batch["label"]) ** 2)

        results.append(jax.jit(jax.value_and_grad(loss), out_shardings=(None, places))(tree))
        block = {"/".join(key.key for key in path): place.spec for path, place in jax.tree.leaves_with_path(places["block_0"])}
        if size == 2:
            assert block["self_attention/q/kernel"] == block["self_mlp/in/kernel"] == PartitionSpec("fsdp", "tensor")
            assert block["self_attention_out/out/kernel"] == block["self_mlp/out/kernel"] == PartitionSpec("tensor", "fsdp")
    for value, gradient in results[1:]:
        np.testing.assert_allclose(value, results[0][0], rtol=1e-5)
        for mine, one in zip(jax.tree.leaves(gradient), jax.tree.leaves(results[0][1]), strict=True):
            np.testing.assert_allclose(mine, one, rtol=0, atol=1e-5 * np.abs(one).max() + 1e-7)


def changed(**groups):
    """The small config with other values in its groups."""
    return dataclasses.replace(SMALL, **{name: dataclasses.replace(getattr(SMALL, name), **new) for name, new in groups.items()})


@pytest.mark.parametrize(
    ("groups", "words"),
    [
        ({"dit": {"patch": 3}}, "data.image_shape .*divisible by dit.patch, 3"),
        ({"model": {"network": "unet"}}, "dit .*left as it is: model.network unet does not read it"),
        ({"model": {"dropout": 0.1}}, "model.dropout .*left as it is: model.network dit does not read it"),
        ({"model": {"heads": 3}}, "model.heads .*the heads divide model.channels"),
        ({"dit": {"context_blocks": "joint"}}, "dit.context_blocks .*cross without model.context_channels"),
    ],
)
def test_configs_that_make_no_transformer_are_refused(groups, words):
    with pytest.raises(ConfigError, match=words):
        config.validated(changed(**groups), where="here")


def test_an_imported_pipeline_and_checkpoint_become_runs(tmp_path):
    """A folder of diffusers with its autoencoder; SiT's file, which is rectified flow by its name."""
    published_weights.write(published_weights.write(tmp_path / "folder", "dit"), "kl")
    assert cli.main(("import", str(tmp_path / "folder"), "--workdir", str(tmp_path / "run"))) == 0
    run = storage.read_config(tmp_path / "run")
    assert (run.model.network, run.diffusion.schedule, run.published.told, run.published.learned_variance) == (
        "dit",
        "betas",
        "step",
        True,
    )
    assert (run.data.image_shape, run.diffusion.prediction, run.betas.first, run.betas.last) == ((32, 32, 3), "noise", 0.0001, 0.02)
    assert cli.main(("import", str(opened(tmp_path, "sit")), "--workdir", str(tmp_path / "sit"), "--head-channels", "32")) == 0
    run = storage.read_config(tmp_path / "sit")
    assert (run.diffusion.schedule, run.published.told, run.diffusion.prediction) == ("rectified_flow", "data_time", "velocity")
