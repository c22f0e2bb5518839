"""Data sets of 1 to 63 images: what is measured, what is not, and when that is said."""

import dataclasses
import logging

import flax.linen as nn
import jax
import numpy as np
import pytest

from jaxdiff import data, evaluate
from jaxdiff.app import build, cli, config
from jaxdiff.app.runs import finish, storage
from jaxdiff.evaluate import reference_classifier, statistics
from jaxdiff.io.errors import DataError

DIGITS = config.Data(name="digits", image_shape=(8, 8, 1), batch_size=8)
RECIPE = """
from jaxdiff.app import config

config = config.Experiment(
    data=config.Data(batch_size=8, split="train[:1]", held_out="test[:3]"),
    model=config.Model(channels=8, multipliers=(1,), blocks=1, head_channels=8),
    steps=2,
    checkpoint_every=2,
    sampling=config.Sampling(steps=2, num=10),
    evaluation=config.Evaluation(num=20, epochs=1),
)
"""
LADDER = """
from jaxdiff.app import config

ladder = config.Ladder(students=("{}/student.py",), calls=(2,), num=20, shown=10)
"""
STUDENT = """
import dataclasses
import runpy

from jaxdiff.app import config

teacher = runpy.run_path("{0}/recipe.py")["config"]
config = dataclasses.replace(
    teacher,
    objective="guided",
    sources=config.Sources(teacher="{0}/recipe.py"),
    distillation=config.Distillation(guidance=(1.0, 4.0)),
)
"""


class Linear(nn.Module):
    """In place of the classifier: quick to compile."""

    num_classes: int

    @nn.compact
    def __call__(self, x, train=False):
        flat = x.reshape(len(x), -1)
        return nn.Dense(self.num_classes)(flat), flat


@pytest.fixture(scope="module", autouse=True)
def _small(small_unet, one_device):
    """Everything here is about what is around the networks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reference_classifier, "Classifier", Linear)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("small")
    (made / "recipe.py").write_text(RECIPE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAXDIFF_CACHE_DIR", str(made / "cache"))
        yield made


@pytest.fixture(scope="module")
def train(folder, tfds_dir):
    """Trains the recipe with other flags; a second time it is finished at once."""

    def train(*flags):
        return cli.main(["train", str(folder / "recipe.py"), "--workdir", str(folder / "run"), "--data-dir", tfds_dir, *flags])

    return train


def pixels(num_classes):
    """A network by hand: the pixels are its features, the first of them its logits."""

    def apply(variables, images):
        flat = images.reshape(len(images), -1)
        return flat, flat[:, :num_classes]

    return evaluate.Network("pixels", "none", apply, {}, labels=True)


def test_a_run_of_one_image_says_before_its_first_step_what_it_will_not_measure(train, folder, caplog, capsys):
    with caplog.at_level(logging.INFO, "jaxdiff"):
        assert train() == 0
    before, after = (next(i for i, line in enumerate(caplog.messages) if text in line) for text in ("not measured", "mesh: "))
    assert before < after
    assert caplog.messages[before] == (
        "at the end of the run: not measured: fid, kid, precision, recall, inception_score, whose intervals need sets of at "
        "least 10 images, got 1 (20 samples, 1 training image, 3 held-out images)"
    )
    assert "label agreement: " in (out := capsys.readouterr().out)
    assert "FID" not in out
    (path,) = (folder / "run" / "evaluations").glob("*.json")
    assert evaluate.read_record(path).result.metrics.keys() == {"label_agreement"}


def test_the_command_measures_what_it_can_and_refuses_what_is_named(train, folder, tfds_dir, capsys, caplog):
    train()
    capsys.readouterr()
    assert cli.main(["evaluate", str(folder / "run"), "--num", "20", "--data-dir", tfds_dir]) == 0
    assert "label agreement: " in capsys.readouterr().out
    assert "not measured: fid, kid" in caplog.text
    assert (
        cli.main(["evaluate", str(folder / "run"), "--num", "20", "--data-dir", tfds_dir, "--metrics", "label_agreement,kid"]) == 1
    )
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "jaxdiff" in line]
    assert line.startswith("jaxdiff: not measured: kid, whose intervals need sets of at least 10 images, got 1")


@pytest.mark.parametrize("held_out", ["nowhere", "test[:0]"])
def test_a_run_without_held_out_images_is_trained(train, held_out, caplog, capsys):
    assert train("--data.held-out", held_out) == 0
    reason = {"nowhere": "Unknown split 'nowhere'", "test[:0]": "it has no images"}[held_out]
    assert f"at the end of the run: data set digits, split '{held_out}': {reason}" in caplog.text
    out = capsys.readouterr().out
    assert "10 samples of step 2" in out
    assert f"is trained, but not measured: data set digits, split '{held_out}': {reason}" in out


@pytest.mark.parametrize("objective", ["classifier", "vae", "autoencoder"])
def test_what_ends_with_held_out_images_ends_without_them(objective, monkeypatch, tmp_path, tfds_dir):
    none = config.Experiment(
        objective=objective, data=dataclasses.replace(DIGITS, held_out="nowhere"), model=config.Model(channels=8)
    )
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), build.state_shapes(none).params)
    monkeypatch.setattr(storage, "read_params", lambda *_: (2, params))
    assert "split 'nowhere'" in finish.missing_measures(none, tfds_dir)
    assert "is trained, but not measured: data set digits, split 'nowhere'" in finish.finish_run(none, tmp_path, tfds_dir)
    assert (tmp_path / "samples.png").exists() == (objective == "vae")
    assert not finish.missing_measures(dataclasses.replace(none, data=DIGITS), tfds_dir)


def test_a_ladder_on_too_few_images_trains_nothing(folder, tfds_dir, capsys):
    (folder / "student.py").write_text(STUDENT.format(folder))
    (folder / "ladder.py").write_text(LADDER.format(folder))
    flags = ["--workdir", str(folder / "ladders" / "ladder"), "--data-dir", tfds_dir]
    assert cli.main(["ladder", str(folder / "ladder.py"), *flags]) == 1
    assert "jaxdiff: not measured: fid, whose intervals need sets of at least 10 images, got 1" in capsys.readouterr().err
    assert not (folder / "ladders").exists()


@pytest.mark.parametrize(("train", "held_out"), [(1, 1), (9, 10), (63, 3)])
def test_sets_too_small_for_intervals_leave_label_agreement(folder, tfds_dir, train, held_out):
    """Of a class without images too: three images have at most three of the ten."""
    source = evaluate.data_set(dataclasses.replace(DIGITS, split=f"train[:{train}]", held_out=f"test[:{held_out}]"), tfds_dir)
    judged = evaluate.evaluator(pixels(10), source, 100)
    found = judged.measure(np.zeros((20, 8, 8, 1), np.float32), np.arange(20) % 10)
    assert found.metrics.keys() == found.held_out.keys() == {"label_agreement"}
    assert found.metrics["label_agreement"].value == 0.1
    assert judged.spec.num == min(train, held_out)
    with pytest.raises(DataError, match="not measured: fid, kid, precision"):
        evaluate.evaluator(pixels(10)._replace(labels=False), source, 100)


@pytest.mark.parametrize(("train", "held_out"), [(10, 10), (63, 12)])
@pytest.mark.parametrize("alike", [False, True], ids=["different", "all alike"])
def test_sets_of_ten_images_are_measured_in_full(folder, tfds_dir, train, held_out, alike):
    source = evaluate.data_set(dataclasses.replace(DIGITS, split=f"train[:{train}]", held_out=f"test[:{held_out}]"), tfds_dir)
    judged = evaluate.evaluator(pixels(10), source, 20)
    assert judged.spec.num == min(train, held_out, 20)
    image = data.normalize(source.train.fetch(np.arange(1))[0])
    samples = np.repeat(image, 25, 0) if alike else np.random.default_rng(0).uniform(-1, 1, (25, 8, 8, 1)).astype(np.float32)
    found = judged.measure(samples, np.arange(25) % 10)
    assert found.metrics.keys() == evaluate.MEASURES.keys() - {"clip_score"}
    for interval in [*found.metrics.values(), *found.held_out.values()]:
        assert np.isfinite(interval).all()
        assert interval.low <= interval.value <= interval.high
    if alike:
        assert found.metrics["precision"].value == 1
        assert found.metrics["inception_score"].value == pytest.approx(1)


@pytest.mark.parametrize("num", [1, 63])
def test_a_classifier_learns_from_fewer_images_than_a_batch(num, tfds_dir):
    images = data.load_images(DIGITS, f"train[:{num}]", tfds_dir)
    params = evaluate.train_classifier(images, epochs=50)
    assert evaluate.accuracy(lambda x: Linear(10).apply({"params": params}, x)[0].argmax(-1), images) > 0.2  # of ten classes


def test_statistics_of_too_few_images_are_refused_in_one_line():
    one, many = np.ones((1, 4)), np.random.default_rng(0).normal(size=(20, 4))
    refused = {
        2: [lambda x: evaluate.frechet_distance(x, many), lambda x: evaluate.kernel_distance(many, x)],
        4: [lambda x: evaluate.precision_recall(x, many), lambda x: evaluate.precision_recall(many, x)],
        10: [lambda x: evaluate.inception_score(np.abs(x), splits=10)],
    }
    for least, measures in refused.items():
        for measure in measures:
            with pytest.raises(ValueError, match=rf"^this measure needs sets of at least {least} images, got 1$"):
                measure(one)
            assert np.isfinite(measure(many[:least])).all()
    assert evaluate.inception_score(np.full((1, 4), 0.25)) == pytest.approx(1)


def test_statistics_of_images_that_are_all_alike():
    """Covariances of rank 0 and 1, distances of nothing, which rounding must not make more of."""
    rng = np.random.default_rng(0)
    alike, other = (np.repeat(rng.normal(size=(1, 64)), 12, 0) for _ in range(2))
    line = other + np.outer(rng.normal(size=12), rng.normal(size=64))
    assert evaluate.frechet_distance(alike, alike) == pytest.approx(0, abs=1e-10)
    assert evaluate.frechet_distance(alike, other) == pytest.approx(np.sum((alike[0] - other[0]) ** 2))
    assert evaluate.frechet_distance(line, line) == pytest.approx(0, abs=1e-10)
    assert evaluate.kernel_distance(alike, alike) == pytest.approx(0, abs=1e-9)
    assert evaluate.precision_recall(alike, alike) == (1, 1)
    assert evaluate.precision_recall(line, line) == (1, 1)
    assert evaluate.precision_recall(alike, other) == (0, 0)
    constant = np.ones((12, 1))
    assert evaluate.frechet_distance(constant, constant + 2) == pytest.approx(4)
    assert statistics.gaussian(constant).covariance.shape == (1, 1)
    assert evaluate.inception_score(np.full((12, 10), 0.1)) == pytest.approx(1)
