"""A tiny run of every kind of recipe, from raw files to a picture; loss and sampler of each are traced at full width."""

import contextlib
import dataclasses
import functools
import io
import json
import pathlib
import sys
import types

import flax.linen as nn
import jax
import numpy as np
import pytest
from raw_files import write_mnist
from small_unet import SmallUNet, small_block

from jaxdiff.app import build, cli, config
from jaxdiff.app.build import networks
from jaxdiff.app.plan import program
from jaxdiff.app.runs import ladder, storage
from jaxdiff.app.runs import sources as sources_module
from jaxdiff.data import raw
from jaxdiff.models import autoencoder, unet
from jaxdiff.training import scale_pixels

LADDERS = sorted(pathlib.Path("configs").glob("*_ladder.py"))
RECIPES = sorted(set(pathlib.Path("configs").glob("*.py")) - set(LADDERS))
IMPORTED = {"clip_l", "sdxl_clip_l", "sdxl_clip_bigg"}  # networks that recipes begin with, which are not trained alone
TINY = (
    *("--data.batch-size", "8", "--model.channels", "8", "--model.blocks", "1", "--model.head-channels", "8"),
    *("--model.multipliers", "1", "--optimizer.warmup-steps", "1", "--steps", "2"),
)
SAMPLED = ("--model.attention", "--evaluation.num", "0", "--sampling.num", "2", "--sampling.steps", "1")
RUN = {  # a recipe of each kind, with the run of this table that it starts from, and other flags
    "digits": ({}, (*SAMPLED, "--sampling.every", "1", "--mesh.fsdp", "2")),  # sharded over devices; the others have one
    "digits_progressive": (  # two rounds of a step each
        {"teacher": "digits"},
        (
            *SAMPLED,
            "--distillation.steps",
            "4",
            "--distillation.guidance",
            "1",
            "1",
            "--sampling.guidance",
            "1",
            "--mesh.fsdp",
            "2",
        ),
    ),
    "mnist_16": ({"base": "digits"}, SAMPLED),
    "digits_text": (
        {},
        (*SAMPLED, "--sampling.every", "1", "--evaluation.num", "10", "--evaluation.epochs", "1", "--data.split", "train[:64]"),
    ),
    "digits_classifier": ({}, ()),
    "digits_kl": (
        {"features": "digits_classifier"},
        ("--autoencoder.discriminator-channels", "4", "--autoencoder.adversarial-start", "0"),
    ),
}
RUN_ELSEWHERE = {"guided", "consistency", "flow_map", "distribution_matching", "vae"}  # by tests of their own
MADE = {
    "classifier": {"accuracy.json"},
    "autoencoder": {"reconstruction.json", "reconstructions.png"},
    **{objective: {"samples.png"} for objective in config.DENOISERS},
}


@pytest.fixture(scope="module")
def data_dirs(tmp_path_factory, tfds_dir):
    """Data set -> tfds directory: digits, and a small MNIST of random pixels."""
    folder = tmp_path_factory.mktemp("raw")
    write_mnist(folder, np.random.default_rng(0))
    raw.prepare("mnist", str(folder / "tfds"), folder)
    return {"digits": tfds_dir, "digits_text": tfds_dir, "mnist": str(folder / "tfds")}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture
def trained(runs, data_dirs, monkeypatch):
    """A function from a recipe's name to its run and what that printed, made once, after the run that it starts from."""

    def train(name):
        run, said = runs / name, runs / f"{name}.txt"
        if said.exists():
            return run, said.read_text()
        sources, flags = RUN[name]
        started = [word for place, source in sources.items() for word in (f"--sources.{place}", str(train(source)[0]))]
        recipe, devices = config.load(pathlib.Path("configs", f"{name}.py")), jax.devices()
        if "--mesh.fsdp" not in flags:
            monkeypatch.setattr(jax, "devices", lambda: devices[:1])
        command = ["train", f"configs/{name}.py", "--workdir", str(run), "--data-dir", data_dirs[recipe.data.name]]
        monkeypatch.setattr(networks, "UNet", SmallUNet)
        monkeypatch.setattr(autoencoder.Half, "block", small_block)
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            assert cli.main([*command, *TINY, *flags, *started]) == 0
        said.write_text(printed.getvalue())
        return run, said.read_text()

    return train


@pytest.mark.slow
@pytest.mark.parametrize("name", RUN)
def test_recipe_trains_and_samples(name, trained):
    recipe = config.load(pathlib.Path("configs", f"{name}.py"))
    run, said = trained(name)
    assert MADE[recipe.objective] <= {file.name for file in run.iterdir() if file.stat().st_size > 0}
    if recipe.objective == "classifier":
        saved = json.loads((run / "accuracy.json").read_text())
        assert [level["time"] for level in saved["levels"]] == [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
        assert said.count(f"% of {saved['num']} held-out images named right") == 6
    if recipe.objective == "progressive":
        assert {file.name for file in (run / "samples").iterdir()} == {"steps_2.png", "steps_1.png"}
    if name in ("digits", "digits_text"):
        assert (run / "samples" / "step_0000001.png").exists()
    if name == "digits_text":
        assert " of 10 samples" in said.split("label agreement: ")[1]


def test_a_recipe_of_every_objective_is_run():
    found = {config.load(pathlib.Path("configs", f"{name}.py")).objective for name in RUN}
    assert found | RUN_ELSEWHERE == {config.load(path).objective for path in RECIPES if path.stem not in IMPORTED}


@pytest.fixture(scope="module")
def each_once():
    """Recipes are loaded with one block a level, one batch size and one rate of dropout; what they share is traced once for all."""
    shapes, found = build.state_shapes, {}

    def load(path):
        recipe = config.load(path)
        model = dataclasses.replace(recipe.model, blocks=1, dropout=0.1)
        return dataclasses.replace(recipe, model=model, data=dataclasses.replace(recipe.data, batch_size=8))

    def state_shapes(recipe, sources=types.MappingProxyType({})):
        name = repr((recipe, dict(sources)))
        found[name] = found.get(name) or shapes(recipe, sources)
        return found[name]

    apply = functools.cache(lambda module: counted(jax.jit(unet.network(module))))
    init = functools.cache(lambda module: jax.jit(functools.partial(nn.Module.init, module)))
    with pytest.MonkeyPatch.context() as patch:
        training = sys.modules["jaxdiff.app.build.train_step"]  # hidden by its function
        for module in (build, training):
            patch.setattr(module, "state_shapes", state_shapes)
        patch.setattr(networks, "network", apply)
        patch.setattr(unet.UNet, "init", lambda module, *inputs, **given: init(module)(*inputs, **given))
        patch.setattr(program, "load", load)
        yield load


CALLS = []


def counted(apply):
    """The network, with an element in `CALLS` for each call of it."""

    def call(*args):
        CALLS.append(None)
        return apply(*args)

    return call


@pytest.mark.slow
@pytest.mark.parametrize("path", [path for path in RECIPES if path.stem not in IMPORTED], ids=lambda path: path.stem)
def test_recipe_is_traced_at_full_width(path, each_once):
    """Its loss is a number of as many network calls as `config.training_calls` counts, and its sampler returns images."""
    recipe = sources_module.inherited(each_once(path))
    recipe = dataclasses.replace(recipe, sampling=dataclasses.replace(recipe.sampling, batch_size=1))
    _, (state, batch, key), _ = program._training(recipe, jax.devices()[:2])
    sources, _ = program.source_shapes(recipe, tuple(storage.source_names(recipe)))
    batch = jax.eval_shape(scale_pixels, batch)
    CALLS.clear()
    loss = jax.eval_shape(build.objective(recipe, sources), state.params, state, batch, key)
    loss, metrics = loss if isinstance(loss, tuple) else (loss, {})
    assert all(described(value) == ((), np.float32) for value in (loss, *metrics.values()))
    if recipe.objective in set(config.DENOISERS) - {"distribution_matching"}:  # which makes some of its calls in some steps
        assert len(CALLS) == config.calls_per_example(recipe, sources.get("teacher"))
    if recipe.objective in (*config.DENOISERS, "vae"):
        sampler, arguments, _ = program._sampling(recipe, jax.devices())
        images = jax.eval_shape(sampler, *arguments)
        assert described(images) == ((jax.device_count(), *recipe.data.image_shape), np.float32)


def described(leaf):
    return leaf.shape, leaf.dtype


@pytest.mark.parametrize("path", LADDERS, ids=lambda path: path.stem)
def test_ladder_names_recipes_that_can_be_sampled(path, tmp_path):
    made = config.load_ladder(path)
    runs = ladder.ladder_runs(made, tmp_path / path.stem)
    names = {place.name.split(",")[0] for place in ladder.ladder_rungs(made, runs)}
    students = {pathlib.Path(name).stem for name in made.students}
    assert students < names
    taught = {stage.workdir.name for stage in runs if stage.config.objective == "diffusion"}
    assert {f"{teacher} {sampler}" for teacher in taught for sampler in made.baselines} <= names
    assert taught


@pytest.mark.parametrize("path", [*RECIPES, *LADDERS], ids=lambda path: path.stem)
def test_recipe_says_paper_data_cost_and_score(path):
    text = path.read_text()
    for word in ("Paper:", "Data:", "Cost:", "Score:", "Run: "):
        assert text.count(f"\n{word}") == 1
