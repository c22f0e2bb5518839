"""A tiny run of every kind of recipe, from raw files to a picture; of the others, training and sampling are traced at full size."""

import contextlib
import dataclasses
import io
import json
import pathlib

import jax
import numpy as np
import pytest
from raw_files import write_mnist

from jaxdiff.app import cli, config
from jaxdiff.app.plan import program
from jaxdiff.app.runs import ladder
from jaxdiff.data import raw

LADDERS = sorted(pathlib.Path("configs").glob("*_ladder.py"))
RECIPES = sorted(set(pathlib.Path("configs").glob("*.py")) - set(LADDERS))
TINY = (
    *("--data.batch-size", "8", "--model.channels", "8", "--model.blocks", "1", "--model.head-channels", "8", "--mesh.fsdp", "2"),
    *("--optimizer.warmup-steps", "1", "--steps", "2"),
)
SAMPLED = ("--evaluation.num", "0", "--sampling.every", "1", "--sampling.num", "2", "--sampling.steps", "2")
ROUNDS = ("--distillation.steps", "4", "--distillation.final-steps", "1", "--sampling.every", "0")  # two, of a step each
COMPRESSED = ("--autoencoder.discriminator-channels", "4", "--autoencoder.adversarial-start", "0")
FLAT, ATTENTION = ("--model.multipliers", "1"), ("--model.attention", "8")
RUN = {  # a recipe of each kind, with those that it starts from, and what makes its network smaller
    "digits": (*FLAT, *ATTENTION),
    "digits_guided": (*FLAT, *ATTENTION),
    "digits_progressive": (*FLAT, *ATTENTION),
    "digits_classifier": FLAT,
    "digits_kl": (),
    "digits_latent": (),
    "digits_latent_consistency": (),
    "digits_vae": (),
    "mnist_8": (),
    "mnist_16": (),
    "mnist_vq": ("--model.multipliers", "1", "2"),
}
TRACED = [path for path in RECIPES if path.stem not in RUN]
MADE = {
    "classifier": {"accuracy.json"},
    "vae": {"samples.png", "reconstructions.png", "interpolations.png"},
    "autoencoder": {"reconstruction.json", "reconstructions.png"},
    **{objective: {"samples.png"} for objective in config.DENOISERS},
}


@pytest.fixture(scope="module")
def data_dirs(tmp_path_factory, tfds_dir):
    """Data set -> tfds directory: digits, and a small MNIST of random pixels."""
    folder = tmp_path_factory.mktemp("raw")
    write_mnist(folder, np.random.default_rng(0))
    raw.prepare("mnist", str(folder / "tfds"), folder)
    return {"digits": tfds_dir, "mnist": str(folder / "tfds")}


@pytest.fixture(scope="module")
def trained(tmp_path_factory, data_dirs):
    """A function from a recipe to its run, with what the run printed, made once after those that it starts from."""
    runs, done = tmp_path_factory.mktemp("runs"), {}

    def train(path):
        if path in done:
            return done[path]
        recipe, run = config.load(path), runs / path.stem
        for source in dataclasses.astuple(recipe.sources):
            if source.endswith(".py"):
                train(pathlib.Path(source))
        changes = (*TINY, *RUN[path.stem])
        changes += SAMPLED if recipe.objective in config.DENOISERS else ()
        changes += ROUNDS if recipe.objective == "progressive" else ()
        changes += COMPRESSED if recipe.autoencoder.adversarial else ()
        command = ["train", str(path), "--workdir", str(run), "--data-dir", data_dirs[recipe.data.name], *changes]
        with contextlib.redirect_stdout(io.StringIO()) as said:
            assert cli.main(command) == 0
        done[path] = run, said.getvalue()
        return done[path]

    return train


@pytest.mark.slow
@pytest.mark.parametrize("name", RUN)
def test_recipe_trains_and_samples(name, trained):
    path = pathlib.Path("configs", f"{name}.py")
    recipe = config.load(path)
    run, said = trained(path)
    assert MADE[recipe.objective] <= {file.name for file in run.iterdir() if file.stat().st_size > 0}
    if recipe.objective == "classifier":
        saved = json.loads((run / "accuracy.json").read_text())
        assert [level["time"] for level in saved["levels"]] == [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
        assert said.count(f"% of {saved['num']} held-out images named right") == 6
    if recipe.objective == "progressive":
        assert {file.name for file in (run / "samples").iterdir()} == {"steps_2.png", "steps_1.png"}
    elif recipe.objective in config.DENOISERS:
        assert (run / "samples" / "step_0000001.png").exists()


def test_a_recipe_of_every_objective_is_run():
    found = {config.load(pathlib.Path("configs", f"{name}.py")).objective for name in RUN}
    assert found == {config.load(path).objective for path in RECIPES}


@pytest.mark.slow
@pytest.mark.parametrize("path", TRACED, ids=lambda path: path.stem)
def test_recipe_is_traced_at_full_size(path):
    """Its training step keeps the shapes and dtypes of the state and returns metrics; its sampler returns images."""
    recipe = config.load(path)
    step, arguments, _, _ = program._training(recipe, jax.devices()[:2])
    state, metrics = step.trace(*arguments).out_info
    assert jax.tree.map(described, state) == jax.tree.map(described, arguments[0])
    assert described(metrics["loss"]) == ((), np.float32)
    if recipe.objective in (*config.DENOISERS, "vae"):
        sampler, arguments, _, _ = program._sampling(recipe, jax.devices())
        images = sampler.trace(*arguments).out_info
        assert described(images) == ((recipe.sampling.num, *recipe.data.image_shape), np.float32)


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
def test_recipe_says_paper_cost_and_score(path):
    text = path.read_text()
    for word in ("Paper:", "Cost:", "Score:", "Run: "):
        assert word in text
