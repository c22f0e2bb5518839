"""InceptionV3 held to what torch-fidelity's makes of the same pictures and weights (make_inception.py wrote it down)."""

import json

import jax
import jax.numpy as jnp
import make_inception
import numpy as np
import pytest
from jax.sharding import AxisType

from jaxdiff import evaluate
from jaxdiff.io.errors import ConfigError
from jaxdiff.models import inception

RECORDED = np.load(make_inception.RECORDED)
SHAPES = {name: tuple(json.loads(size)) for name, size in zip(RECORDED["names"], RECORDED["sizes"], strict=True)}


def images(name):
    return jnp.asarray(make_inception.picture(name) / np.float32(127.5) - 1)


def apart(found, truth):
    """The largest difference, in units of the truth's standard deviation."""
    return np.max(np.abs(np.asarray(found) - truth)) / np.std(truth)


@pytest.fixture(scope="module")
def state():
    """The state dict that torch-fidelity's network was given."""
    return {name: make_inception.weight(name, shape) if shape else np.int64(0) for name, shape in SHAPES.items()}


@pytest.fixture(scope="module")
def network(state, tmp_path_factory):
    path = tmp_path_factory.mktemp("inception") / "inception.npz"
    np.savez(path, **state)
    return evaluate.inception(path)


@pytest.fixture(scope="module")
def variables(network):
    return network.variables


@pytest.mark.parametrize("name", make_inception.PICTURES)
def test_pictures_are_resized_as_tensorflow_1_does(name):
    found = inception.resized(images(name))
    assert found.shape == (make_inception.PICTURES[name][0], 299, 299, 3)
    np.testing.assert_allclose(found[make_inception.PIXELS], RECORDED[f"{name} resized"], atol=2e-5)


def test_every_array_of_the_file_is_a_variable(state, variables):
    leaves = jax.tree.leaves(variables)
    named = [array for name, array in state.items() if "num_batches" not in name]
    assert sum(leaf.size for leaf in leaves) == sum(array.size for array in named)
    assert {leaf.dtype for leaf in leaves} == {np.dtype(np.float32)}
    np.testing.assert_array_equal(variables["params"]["fc"]["kernel"], state["fc.weight"].T)
    kernel = variables["params"]["Mixed_6b"]["branch7x7_2"]["conv"]["kernel"]
    np.testing.assert_array_equal(kernel, state["Mixed_6b.branch7x7_2.conv.weight"].transpose(2, 3, 1, 0))


@pytest.mark.slow
def test_features_and_logits_are_torch_fidelitys(network):
    """Of pictures as they are read, through the resize; the logits without bias, as its inception score takes them.

    The batch is shared by two devices, which must not matter.
    """
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:2])
    rows = jax.NamedSharding(mesh, jax.P("data"))
    features, unbiased = jax.jit(network.apply)(network.variables, jax.device_put(images("small"), rows))
    assert features.sharding.is_equivalent_to(rows, 2)
    for kind, found in (("features", np.asarray(features)), ("unbiased", np.asarray(unbiased))):
        truth = RECORDED[f"small {kind}"]
        assert found.shape == truth.shape
        assert apart(found, truth) < 1e-4
        assert apart(found - found[:1], truth - truth[:1]) < 5e-4  # a 30th: what differs between the pictures


def test_other_weights_have_another_name_and_none_knows_labels(network, state, tmp_path):
    np.savez(tmp_path / "other.npz", **state | {"fc.bias": state["fc.bias"] + 1})
    assert evaluate.inception(tmp_path / "other.npz").name != network.name
    with pytest.raises(ConfigError, match="--metrics label_agreement: inception knows no labels"):
        evaluate.known_measures(["label_agreement"], network)


def test_no_chip_rounds_float32(variables):
    """A TPU would to bfloat16, a GPU to TF32, unless told not to."""
    shape = jax.ShapeDtypeStruct((1, 299, 299, 3), jnp.float32)
    products = [each for each in jax.make_jaxpr(inception.InceptionV3().apply)(variables, shape).eqns if "precision" in each.params]
    assert len(products) == 94 + 1
    assert {each.params["precision"] for each in products} == {(jax.lax.Precision.HIGHEST,) * 2}


@pytest.mark.slow
def test_bfloat16_is_near_float32(variables):
    module = inception.InceptionV3(dtype=jnp.bfloat16)
    x = inception.resized(images("odd"))
    equations = jax.make_jaxpr(module.apply)(variables, x).eqns
    convolutions = [each for each in equations if each.primitive is jax.lax.conv_general_dilated_p]
    assert len(convolutions) == 94
    assert {operand.aval.dtype for each in convolutions for operand in each.invars} == {jnp.dtype(jnp.bfloat16)}
    features, logits = jax.jit(module.apply)(variables, x)
    assert features.dtype == logits.dtype == jnp.float32
    assert 1e-4 < apart(features, RECORDED["odd features"]) < 0.1
    assert apart(logits, RECORDED["odd logits"]) < 0.1


def test_a_file_of_other_weights_is_refused(state, tmp_path):
    def saved(name, arrays):
        np.savez(tmp_path / name, **arrays)

    small = {name: np.zeros(1) for name in state}
    saved("shapes.npz", small)
    saved("missing.npz", {name: array for name, array in small.items() if name != "Mixed_7c.branch_pool.bn.running_var"})
    saved("more.npz", small | {f"AuxLogits.{n}.weight": np.zeros(1) for n in range(5)})
    (tmp_path / "text.npz").write_text("weights")
    saved("whole.npz", small)
    (tmp_path / "cut.npz").write_bytes((tmp_path / "whole.npz").read_bytes()[:2000])
    for name, message in (
        ("nowhere.npz", "No such file"),
        ("text.npz", "holds no weights of InceptionV3"),
        ("cut.npz", "holds no weights of InceptionV3"),
        ("missing.npz", "lacks Mixed_7c.branch_pool.bn.running_var"),
        ("more.npz", "also holds AuxLogits.0.weight, AuxLogits.1.weight, AuxLogits.2.weight and 2 more"),
        ("shapes.npz", r"Conv2d_1a_3x3\.bn\.running_mean is \[1\], not \[32\]"),
    ):
        with pytest.raises(ConfigError, match=message) as error:
            inception.load(tmp_path / name)
        assert "\n" not in str(error.value)
        assert name in str(error.value)
