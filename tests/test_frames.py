"""How many calls of ours lie between a command and the arithmetic: CONTRIBUTING lists them, and these are real stacks."""

import dataclasses
import json
import pathlib
import re
import traceback

import jax
import numpy as np
import pytest

import jaxdiff
from jaxdiff import losses
from jaxdiff.app import build, cli
from jaxdiff.app.config import load, to_dict
from jaxdiff.io.errors import ConfigError
from jaxdiff.samplers.loop import stateless
from jaxdiff.training import checkpoint

PACKAGE = pathlib.Path(jaxdiff.__file__).parent
CONTRIBUTING = (PACKAGE.parent / "CONTRIBUTING.md").read_text()
RECIPE = PACKAGE.parent / "configs" / "digits.py"
FLAGS = ("--data.batch-size", "8", "--model.channels", "16", "--model.multipliers", "1", "--model.attention")


pytestmark = pytest.mark.usefixtures("small_unet")


def frames(stack):
    """Functions of the package on a stack, outermost first, as `wing/file.py function`."""
    inside = [each for each in stack if pathlib.Path(each.filename).is_relative_to(PACKAGE)]
    return [f"{pathlib.Path(each.filename).relative_to(PACKAGE)} {each.name}" for each in inside]


def listed(title):
    """The list of CONTRIBUTING under a title."""
    (block,) = re.findall(rf"{re.escape(title)}.*?```text\n(.*?)```", CONTRIBUTING, re.S)
    return block.splitlines()


def test_ten_frames_from_train_to_the_squared_error(tmp_path, tfds_dir, monkeypatch):
    seen = []

    def stop(trees):
        seen.extend(frames(traceback.extract_stack()[:-1]))
        raise ConfigError("far enough")

    monkeypatch.setattr(losses.chex, "assert_equal_shape", stop)
    assert cli.main(["train", str(RECIPE), "--workdir", str(tmp_path / "run"), "--data-dir", tfds_dir, *FLAGS]) == 1
    assert seen == listed("From `jaxdiff train` to the squared error")
    assert len(seen) <= 10


def test_eight_frames_from_sample_to_a_step_of_the_sampler(tmp_path, monkeypatch):
    seen, config = [], load(RECIPE)
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, channels=16, multipliers=(1,), attention=()))

    def step(denoise, x, t, s, key):
        seen.extend(frames(traceback.extract_stack()[:-1]))
        raise ConfigError("far enough")

    with checkpoint.manager(tmp_path) as to:
        checkpoint.save(
            to, jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), build.state_shapes(config)), to_dict(config)
        )
    (tmp_path / "config.json").write_text(json.dumps(to_dict(config)))
    monkeypatch.setitem(build.SAMPLERS, "ddim", lambda eta, levels: stateless(step))
    assert cli.main(["sample", str(tmp_path), "--num", "8", "--sampler", "ddim"]) == 1
    assert seen == listed("From `jaxdiff sample` to a sampler's step")
    assert len(seen) <= 8
