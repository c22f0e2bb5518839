"""A tiny run of every recipe on two simulated devices, from raw files to a picture."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from raw_files import write_cifar10, write_mnist

from jaxdiff import config
from jaxdiff.datasets import raw

RECIPES = sorted(pathlib.Path("configs").glob("*.py"))
TINY = (
    *("--data.batch-size", "4", "--model.channels", "8", "--model.blocks", "1", "--model.head-channels", "8", "--mesh.fsdp", "2"),
    *("--optimizer.warmup-steps", "1", "--steps", "2"),
)
SAMPLED = ("--evaluation.num", "0", "--sampling.every", "1", "--sampling.num", "2", "--sampling.steps", "2")


@pytest.mark.slow
@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipe_trains_and_samples(path, tmp_path, tfds_dir):
    recipe = config.load(path)
    name = recipe.data.name
    data_dir = tfds_dir
    if name in raw.RAW:
        {"mnist": write_mnist, "cifar10": write_cifar10}[name](tmp_path, np.random.default_rng(0))
        data_dir = str(tmp_path / "tfds")
        raw.prepare(name, data_dir, tmp_path)
    command = [
        sys.executable,
        "-m",
        "jaxdiff",
        "train",
        str(path),
        "--workdir",
        str(tmp_path / "run"),
        "--data-dir",
        data_dir,
        *TINY,
        *(SAMPLED if recipe.objective == "diffusion" else ()),
    ]
    result = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "JAX_NUM_CPU_DEVICES": "2"})
    assert result.returncode == 0, result.stderr[-2000:]
    if recipe.objective == "classifier":
        saved = json.loads((tmp_path / "run" / "accuracy.json").read_text())
        assert [level["time"] for level in saved["levels"]] == [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
        assert result.stdout.count(f"% of {saved['num']} held-out images named right") == 6
        return
    assert (tmp_path / "run" / "samples.png").stat().st_size > 0
    if recipe.objective == "vae":
        assert {"reconstructions.png", "interpolations.png"} <= {path.name for path in (tmp_path / "run").iterdir()}
        return
    assert (tmp_path / "run" / "samples" / "step_0000001.png").exists()


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipe_says_paper_cost_and_score(path):
    text = path.read_text()
    for word in ("Paper:", "Cost:", "Score:", "Run: "):
        assert word in text
