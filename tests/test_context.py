"""Context vectors from a data set to samples: a run where only the context says the class."""

import dataclasses
import pathlib

import numpy as np
import pytest
import tensorflow_datasets as tfds
import told

from jaxdiff import data
from jaxdiff.app import build, cli, config
from jaxdiff.app.config import Data, Diffusion, Experiment, Model, Optimizer, Sampling
from jaxdiff.app.runs import finish, storage, train
from jaxdiff.app.runs.trained import image_sampler
from jaxdiff.io.errors import ConfigError, DataError

CLASSES = ((40, (1.0, 0.0, 0.0)), (220, (0.0, 1.0, 0.0)))  # grey level of the images, and their context vectors
TINY = Experiment(
    data=Data(name="captioned", image_shape=(8, 8, 1), batch_size=16),
    model=Model(
        channels=4, multipliers=(1,), blocks=1, attention=(), head_channels=4, transformer=1, context_channels=3, num_classes=0
    ),
    diffusion=Diffusion(schedule="cosine", prediction="x0", weight="truncated_snr"),
    optimizer=Optimizer(learning_rate=5e-3),
    ema={"ema": 0.9},
    steps=300,
    sampling=Sampling(steps=10, guidance=1.0, num=4),
)


pytestmark = pytest.mark.usefixtures("small_unet", "one_device")


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """A data set with the feature context: dark and bright images, all with the same label."""
    label, context = tfds.features.ClassLabel(num_classes=1), tfds.features.Tensor(shape=(2, 3), dtype=np.float32)
    features = {"image": told.IMAGE, "label": label, "context": context}
    examples = [{"image": told.grey(grey), "label": 0, "context": np.float32([vector, vector])} for grey, vector in CLASSES] * 20
    return told.write_data_set(tmp_path_factory.mktemp("captioned"), "captioned", features, {"train": examples, "test": examples})


@pytest.fixture(scope="module")
def trained(data_dir, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run") / "run"
    assert train.train_run(config.validated(TINY), workdir, data_dir) is None
    return workdir


def test_batches_hold_the_context_of_their_images(data_dir):
    source = data.with_context(data.load_images(TINY.data, "train", data_dir), TINY.data, "train", 3, data_dir)
    batch = next(data.batches(source, 16, flip=True))
    assert batch["context"].shape == (16, 2, 3)
    dark = batch["image"][:, 0, 0, 0] < 128
    assert 0 < dark.sum() < 16
    np.testing.assert_array_equal(batch["context"][:, 1], np.where(dark[:, None], *np.float32([v for _, v in CLASSES])))


def test_samples_follow_their_context(trained, tmp_path):
    made = storage.read_config(trained)
    _, params = storage.read_params(made, trained)
    vectors = np.float32([vector for _, vector in CLASSES])[np.arange(4) % 2]
    images = image_sampler(made)(params, np.zeros(4), 0, {"context": np.repeat(vectors[:, None], 2, axis=1)})
    wanted = np.array([grey for grey, _ in CLASSES])[np.arange(4) % 2] / 127.5 - 1
    assert np.abs(images.mean(axis=(1, 2, 3)) - wanted).max() < 0.2  # from the other class they are 1.4
    np.save(tmp_path / "bright.npy", np.repeat(vectors[1:2], 2, axis=0))
    command = ["sample", str(trained), "--num", "4", "--context", str(tmp_path / "bright.npy"), "--out", str(tmp_path / "x.npz")]
    assert cli.main(command) == 0
    assert np.load(tmp_path / "x.npz")["image"].mean() > 180


def test_a_finished_run_draws_samples_of_held_out_context(trained, data_dir):
    made = storage.read_config(trained)
    out = trained / "samples.png"
    assert "4 samples of step 300" in finish.finish_run(made, trained, data_dir)
    assert out.stat().st_size > 0


def test_guidance_leaves_the_context_out_of_the_reference(trained):
    """At guidance 0 samples are those of no context, whatever it says."""
    made = storage.read_config(trained)
    made = dataclasses.replace(made, sampling=dataclasses.replace(made.sampling, guidance=0.0))
    _, params = storage.read_params(made, trained)
    generate = image_sampler(made)
    first, other = (generate(params, np.zeros(4), 0, {"context": np.full((2, 3), value, np.float32)}) for value in (0.0, 5.0))
    np.testing.assert_array_equal(first, other)


def test_context_that_does_not_fit_is_refused(trained, tmp_path, data_dir, capsys):
    for content, message in ((np.zeros((2, 4)), r"context: got \[2, 4\], this run takes vectors \[T, 3\]"), (None, "got none")):
        with pytest.raises(ConfigError, match=message):
            image_sampler(TINY)(None, np.zeros(3), 0, {} if content is None else {"context": content})
    with pytest.raises(ConfigError, match=r"takes none: model\.context_channels is 0"):
        image_sampler(config.load(pathlib.Path("configs/digits.py")))(None, np.zeros(3), 0, {"context": np.zeros((2, 3))})
    (tmp_path / "no.npy").write_text("text")
    assert cli.main(["sample", str(trained), "--context", str(tmp_path / "no.npy")]) == 1
    assert "no.npy must be a .npy file of numbers" in capsys.readouterr().err
    source = data.load_images(TINY.data, "train", data_dir)
    with pytest.raises(DataError, match=r"must have the feature context \[T, 5\] \(model.context_channels\); it has \(2, 3\)"):
        data.with_context(source, TINY.data, "train", 5, data_dir)


def test_a_context_wants_blocks_that_attend_to_it():
    with pytest.raises(ConfigError, match=r"model\.context_channels must be 0 without"):
        config.validated(dataclasses.replace(TINY, model=dataclasses.replace(TINY.model, transformer=0)))
    assert build.unet(TINY).context_channels == 3
