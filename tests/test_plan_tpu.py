"""Plans by the real TPU compiler, where it is installed; no TPU is needed."""

import importlib.util
import json
import pathlib
from dataclasses import replace

import jax
import pytest

from jaxdiff.app import build, cli, plan
from jaxdiff.app.cli import plan_command
from jaxdiff.app.config import load
from jaxdiff.io.errors import UserError

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason='needs the TPU compiler: pip install -e ".[tpu]"'),
]
ROOT = pathlib.Path(__file__).parents[1]
DIGITS = ROOT / "configs" / "digits.py"
NOTEBOOK = ROOT / "colab" / "01_train_on_tpu.ipynb"


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    return tmp_path_factory.mktemp("plans")


@pytest.fixture
def planned(kept):
    """A function that plans the digits, wide enough that padding counts for little, with other parts of the config."""

    def plans(topology="v5e:2x2", slices=1, what="train", **parts):
        config = load(DIGITS)
        model = replace(config.model, channels=128, multipliers=(1,), attention=(), dtype="bfloat16")
        config = replace(config, model=model)
        for name, values in parts.items():
            config = replace(config, **{name: replace(getattr(config, name), **values)})
        return plan.planned(plan.Job(config, what, plan.topology(topology, slices), kept, 300.0))

    return plans


def test_full_sharding_costs_no_flops_and_shuffles_nothing(planned):
    """Parameters alone are sharded: otherwise XLA shards convolutions by channel and moves activations."""
    data, fsdp = planned(mesh={"data": 4}), planned(mesh={"data": 1, "fsdp": 4})
    assert fsdp.cost.flops == pytest.approx(data.cost.flops, rel=0.02)
    assert data.moved == fsdp.moved == []
    assert {each.axes for each in data.traffic} == {"data"}
    assert {each.axes for each in fsdp.traffic} == {"fsdp"}
    assert "all-gather" in {each.kind for each in fsdp.traffic}
    shapes = build.state_shapes(data.job.config)
    params = sum(leaf.size for leaf in jax.tree.leaves(shapes.params))
    for found, share in ((data, 1), (fsdp, 4)):
        held = [found.memory[kind] for kind in ("params", "optimizer", "EMA")]
        assert sum(held) == pytest.approx(4 * 4 * params / share, rel=0.1)  # float32: params, two moments, an average
    gradients = sum(each.bytes for each in data.traffic if each.kind == "all-reduce")
    assert 1.9 < gradients / params < 4.4  # bfloat16 or float32


def test_a_program_is_compiled_once(planned):
    first, again = planned(mesh={"data": 2, "fsdp": 2}), planned(mesh={"data": 2, "fsdp": 2})
    assert again.cached
    assert plan_command._values(again) == plan_command._values(first) | {"cached": True, "lowering_s": again.lowering_s}
    assert not planned(mesh={"data": 2, "fsdp": 2}, optimizer={"b1": 0.5}).cached


def test_recomputing_blocks_takes_less_memory(planned):
    deep = {"blocks": 6}
    plain, again = (
        planned("v5e:1x1", model={**deep, "remat": name}, data={"image_shape": (32, 32, 1), "batch_size": 256})
        for name in ("none", "blocks")
    )
    rest = "activations and temporaries"
    assert again.memory[rest] < 0.9 * plain.memory[rest]
    assert again.flops_per_image > 1.1 * plain.flops_per_image


def test_a_batch_that_is_too_big(planned):
    found = planned("v5e:1x1", data={"image_shape": (128, 128, 1), "batch_size": 4096})
    assert not found.fits
    assert found.peak_bytes > found.allowed_bytes
    assert "DOES NOT FIT" in plan_command._text(found)


def test_slices_sum_gradients_over_the_network(planned):
    found = planned(slices=2, mesh={"data": 2, "fsdp": 4})
    between = [each for each in found.traffic if each.network == "DCN"]
    assert {(each.kind, each.axes) for each in between} == {("all-reduce", "data")}
    assert found.moved == []


def test_a_sampler(planned):
    short, long = (planned("v5e:1x1", what="sample", sampling={"steps": steps, "batch_size": 64}) for steps in (4, 8))
    assert long.cost.flops == pytest.approx(2 * short.cost.flops, rel=0.01)
    several = planned("v5e:2x2", what="sample", sampling={"steps": 4, "batch_size": 64})
    assert (several.job.batch, several.mesh, several.traffic) == (256, {"data": 4}, ())
    assert several.cost.flops == short.cost.flops


def test_a_topology_that_the_compiler_does_not_know(planned):
    with pytest.raises(UserError, match="--topology v5p:3x3x3: ") as caught:
        planned("v5p:3x3x3")
    assert "write v5e or v6e with 1x1" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_command(capsys, kept):
    words = ("plan", str(DIGITS), "--topology", "v5e:2x2", "--mesh.fsdp", "4", "--mesh.data", "1", "--cache-dir", str(kept))
    assert cli.main((*words, "--batch", "64", "--json")) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["batch"] == 64
    assert found["fits"]
    assert cli.main((*words, "--batch", "63")) == 1
    assert capsys.readouterr().err == "jaxdiff: data.batch_size 63 is not divisible by 4 devices\n"


@pytest.mark.parametrize("what", ["train", "sample"])
def test_notebook_1_fits_on_colabs_chip(capsys, kept, monkeypatch, what):
    """The step and the sampler of what its cell of settings trains where it finds a TPU."""
    cells = ["".join(cell["source"]) for cell in json.loads(NOTEBOOK.read_text())["cells"]]
    settings = next(cell for cell in cells if "TRAIN = " in cell)
    names = {"found": ["tpu"]}
    exec("\n".join(line for line in settings.splitlines() if " = !" not in line), names)  # what asks for the device
    monkeypatch.chdir(ROOT)
    words = (*names["TRAIN"].split(), "--sampling.num", str(names["NUM"]), "--cache-dir", str(kept), "--json")
    assert cli.main(("plan", *words, "--topology", "v5e:1x1", "--what", what)) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["fits"]
    assert found["flops_per_image"] > 1e10  # the network is in it
    assert found["peak_bytes"] < 15.75 * 2**30
