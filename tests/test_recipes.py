"""A tiny run of every recipe on two simulated devices, after those that it starts from, from raw files to a picture."""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from raw_files import write_cifar10, write_mnist

from jaxdiff.app import config
from jaxdiff.app.runs import ladder
from jaxdiff.data import raw

LADDERS = sorted(pathlib.Path("configs").glob("*_ladder.py"))
RECIPES = sorted(set(pathlib.Path("configs").glob("*.py")) - set(LADDERS))
TINY = (
    *("--data.batch-size", "4", "--model.channels", "8", "--model.blocks", "1", "--model.head-channels", "8", "--mesh.fsdp", "2"),
    *("--optimizer.warmup-steps", "1", "--steps", "2"),
)
SAMPLED = ("--evaluation.num", "0", "--sampling.every", "1", "--sampling.num", "2", "--sampling.steps", "2")
ROUNDS = ("--distillation.steps", "4", "--distillation.final-steps", "1", "--sampling.every", "0")  # two, of a step each
COMPRESSED = ("--autoencoder.discriminator-channels", "4", "--autoencoder.adversarial-start", "0")
SMALL = ("--data.name", "cifar10", "--data.held-out", "test", "--data.image-shape", "32", "32", "3")  # in the place of ImageNet
TAUGHT = ("v", "guided", "progressive", "edm", "consistency", "consistency_training")  # of one network, of which half is enough
OTHERS = {
    **{f"cifar10_{name}": ("--model.multipliers", "1", "2") for name in TAUGHT},
    "imagenet256_kl": (*SMALL, "--autoencoder.perceptual", "0", "--sources.features", ""),
    "imagenet256_latent": (*SMALL, "--model.attention", "2"),
    "imagenet256_latent_large": (*SMALL, "--model.multipliers", "1", "2", "--model.attention", "4", "--model.heads", "1"),
    "imagenet64": (*SMALL, "--model.multipliers", "1", "2", "--model.attention", "16"),
}
MADE = {
    "classifier": {"accuracy.json"},
    "vae": {"samples.png", "reconstructions.png", "interpolations.png"},
    "autoencoder": {"reconstruction.json", "reconstructions.png"},
    **{objective: {"samples.png"} for objective in config.DENOISERS},
}


@pytest.fixture(scope="module")
def data_dirs(tmp_path_factory, tfds_dir):
    """Data set -> tfds directory: digits, and small ones of random pixels."""
    folder, found = tmp_path_factory.mktemp("raw"), {"digits": tfds_dir}
    for name, write in (("mnist", write_mnist), ("cifar10", write_cifar10)):
        write(folder, np.random.default_rng(0))
        found[name] = str(folder / "tfds")
        raw.prepare(name, found[name], folder)
    return found


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
        changes = (*TINY, *OTHERS.get(path.stem, ()))
        changes += SAMPLED if recipe.objective in config.DENOISERS else ()
        changes += {"autoencoder": COMPRESSED, "progressive": ROUNDS}.get(recipe.objective, ())
        data_dir = data_dirs[{"imagenet2012": "cifar10"}.get(recipe.data.name, recipe.data.name)]
        command = [sys.executable, "-m", "jaxdiff", "train", str(path), "--workdir", str(run), "--data-dir", data_dir, *changes]
        result = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "JAX_NUM_CPU_DEVICES": "2"})
        assert result.returncode == 0, result.stderr[-2000:]
        done[path] = run, result.stdout
        return done[path]

    return train


@pytest.mark.slow
@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipe_trains_and_samples(path, trained):
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
