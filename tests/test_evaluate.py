"""Evaluations: the judge and its cache, features over devices, specs that do not compare, files and tables."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import published_weights
import pytest

from jaxdiff import data, evaluate
from jaxdiff.app import cli, config
from jaxdiff.app.runs import finish, storage
from jaxdiff.app.runs import train as run
from jaxdiff.evaluate import feature_cache, reference_classifier, reference_statistics
from jaxdiff.io import files, pictures
from jaxdiff.io.errors import ConfigError

DIGITS = config.Data(name="digits", image_shape=(8, 8, 1))


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory, small_unet):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAXDIFF_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        yield files.cache_dir()


@pytest.fixture(scope="module")
def digits(tfds_dir):
    return evaluate.data_set(DIGITS, tfds_dir)


@pytest.fixture(scope="module")
def nearest(digits):
    """A network by hand: its features are the pixels, its logits the distances from the mean of each label's images."""
    pixels, labels = digits.train.fetch(np.arange(digits.train.num_examples))
    means = np.stack([data.normalize(pixels[labels == label]).mean(0).ravel() for label in range(10)])

    def apply(means, images):
        flat = images.reshape(len(images), -1)
        return flat, -((flat[:, None] - means[None]) ** 2).sum(-1)

    return evaluate.Network("nearest mean", "none", apply, jnp.asarray(means), labels=True)


def test_held_out_images_are_measured_as_samples_are(digits, nearest):
    """By the whole path: the held-out images, given as samples, get their own figures."""
    judged = evaluate.evaluator(nearest, digits, 1000)
    pixels, labels = digits.held_out.fetch(np.arange(digits.held_out.num_examples))
    found = judged.measure(data.normalize(pixels), labels)
    assert found.samples == found.spec.num == 299
    for name, interval in found.metrics.items():
        assert interval == pytest.approx(found.held_out[name], rel=1e-5, abs=1e-6)
        assert interval.low <= interval.value <= interval.high
    flat = data.normalize(pixels).reshape(299, -1)
    train = data.normalize(digits.train.fetch(np.arange(1498))[0]).reshape(1498, -1)
    assert found.metrics["fid"].value == pytest.approx(evaluate.frechet_distance(flat, train), rel=1e-6)
    assert found.metrics["kid"].value == pytest.approx(evaluate.kernel_distance(flat, train), rel=1e-5)
    some = train[np.arange(299) * 1498 // 299]
    measured = (found.metrics["precision"].value, found.metrics["recall"].value)
    assert measured == pytest.approx(evaluate.precision_recall(flat, some), abs=1e-6)


def test_noise_is_told_from_digits(digits, nearest):
    judged = evaluate.evaluator(nearest, digits, 1000)
    noise = np.random.default_rng(0).normal(size=(1000, 8, 8, 1)).astype(np.float32)
    bad = judged.measure(noise, np.arange(1000) % 10)
    assert bad.metrics["label_agreement"].value < 0.2
    assert bad.metrics["fid"].low > 5 * bad.held_out["fid"].value
    assert bad.metrics["kid"].low > bad.held_out["kid"].high
    assert bad.metrics["precision"].high < 0.1 < bad.held_out["precision"].low
    assert "label agreement: " in str(bad)
    assert "Frechet distance (FID): " in str(bad)


def test_several_sets_of_samples_make_the_mean_and_narrow_the_interval(digits, nearest):
    judged = evaluate.evaluator(nearest, digits, 1000, ["fid"])
    images = data.normalize(digits.train.fetch(np.arange(1498))[0])
    several, one = (judged.measure(images[:num], np.zeros(num)).metrics["fid"] for num in (897, 299))
    flat = images.reshape(1498, -1)
    assert several.value == pytest.approx(np.mean([evaluate.frechet_distance(flat[i : i + 299], flat) for i in (0, 299, 598)]))
    assert several.high - several.low < 0.8 * (one.high - one.low)


@pytest.mark.parametrize("num", [5, 16, 37])
def test_features_do_not_depend_on_devices_or_batches(nearest, num):
    images = np.random.default_rng(0).uniform(-1, 1, (num, 8, 8, 1)).astype(np.float32)
    found = evaluate.extract(nearest, lambda rows: images[rows], num, batch_size=16)
    features, logits = nearest.apply(nearest.variables, jnp.asarray(images))
    np.testing.assert_allclose(found.features, features, rtol=1e-6)
    np.testing.assert_allclose(found.probabilities, jax.nn.softmax(logits), rtol=1e-3, atol=1e-7)


def test_features_are_computed_on_all_devices():
    seen = []

    def apply(variables, images):
        jax.debug.inspect_array_sharding(images, callback=seen.append)
        return images.reshape(len(images), -1), images.reshape(len(images), -1)

    network = evaluate.Network("inspected", "none", apply, {}, labels=False)
    evaluate.extract(network, lambda rows: np.zeros((len(rows), 2, 2, 1), np.float32), 20)
    assert {len(sharding.device_set) for sharding in seen} == {8}
    assert not any(sharding.is_fully_replicated for sharding in seen)


def test_the_judge_is_trained_once_and_again_where_it_is_damaged(digits, cache, monkeypatch, caplog):
    """Truly twice: the same seed and steps make the same bits. Then its params stand for those of every other training."""
    trained, params = [], []

    def train(images, epochs):
        trained.append(epochs)
        if len(trained) in (1, 3):
            params.append(judge_of(images, 1))
        return params[-1]

    judge_of = reference_classifier.train_classifier
    monkeypatch.setattr(reference_classifier, "train_classifier", train)
    first = evaluate.classifier(digits, 1)
    assert evaluate.classifier(digits, 1).name == first.name
    assert trained == [1]
    other = evaluate.classifier(digits, 2)
    assert trained == [1, 2]
    assert other.name != first.name
    (path,) = (cache / "judges").glob("digits_*_1_epochs_*")
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", whole[:2000] + bytes(100) + whole[2100:]):
        path.write_bytes(damaged)
        caplog.clear()
        assert evaluate.classifier(digits, 1).name == first.name
        assert "is damaged and made again" in caplog.text
        assert path.read_bytes() == whole
    assert trained == [1, 2, 1, 1, 1]
    monkeypatch.setattr(reference_classifier, "VERSION", reference_classifier.VERSION + 1)
    evaluate.classifier(digits, 1)
    assert len(trained) == 6


def test_features_of_real_images_are_kept_for_a_network_and_a_data_set(digits, nearest, tfds_dir, monkeypatch):
    asked = []
    extract = reference_statistics.extract

    def counted(network, fetch, num, *rest):
        asked.append((network.name, num))
        return extract(network, fetch, num, *rest)

    monkeypatch.setattr(reference_statistics, "extract", counted)
    other = nearest._replace(name="another of these")
    first, again = evaluate.reference(other, digits), evaluate.reference(other, digits)
    assert asked == [("another of these", 1498), ("another of these", 299)]
    jax.tree.map(np.testing.assert_array_equal, first, again)
    part = evaluate.data_set(dataclasses.replace(DIGITS, split="train[:500]"), tfds_dir)
    assert part.file != digits.file
    seen = data.load_images(DIGITS, "train", tfds_dir)
    darker = seen._replace(fetch=lambda rows: (seen.fetch(rows)[0] // 2, seen.fetch(rows)[1]))
    with monkeypatch.context() as patch:
        patch.setattr(data, "load_images", lambda *_: darker)
        changed = evaluate.data_set(DIGITS)
        patch.setattr(data, "load_images", lambda *_: seen)
        same = evaluate.data_set(DIGITS)
    assert changed.name == same.name
    assert changed.file != same.file
    evaluate.reference(other, part)
    assert asked[2:] == [("another of these", 500), ("another of these", 299)]


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    found = feature_cache.cached_arrays(tmp_path / "file" / "x.npz", lambda: {"a": np.ones(2)})
    np.testing.assert_array_equal(found["a"], [1, 1])
    assert "cannot be kept" in caplog.text


INTERVAL = evaluate.Interval(1.5, 1.0, 2.0)
SPEC = evaluate.Spec("classifier, 30 epochs, 12345678", "none", "float32", 299, "digits train, 1498 images")


def record(spec=SPEC, **sampling):
    result = evaluate.Result(spec, {"fid": INTERVAL, "recall": INTERVAL}, {"fid": INTERVAL, "recall": INTERVAL}, 1000)
    how = json.loads(json.dumps(dataclasses.asdict(config.Sampling(**sampling))))  # as it is in a file
    return evaluate.Record(400, how, 100, 0, "ema", result)


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(evaluate.Spec)])
def test_figures_of_two_specs_are_refused_by_the_field(field):
    other = dataclasses.replace(SPEC, **{field: 7 if field == "num" else "other"})
    rows = [("a", record()), ("b", record(other))]
    with pytest.raises(ConfigError, match=rf"b .* and a .* do not compare: {field} is (7|'other') of the one") as error:
        evaluate.results_table(rows)
    assert "\n" not in str(error.value)
    assert evaluate.results_table([rows[0], rows[0]])


def test_a_table_holds_a_row_for_each_setting_and_one_of_real_images():
    head, _, *rows, empty, note = evaluate.results_table([("a", record()), ("b", record(steps=4, guidance=1.0))]).splitlines()
    assert head == "| run | sampling | network calls | FID | recall |"
    assert rows[0] == "| a | ddim 50, guidance 2 | 100 | 1.50 (1.00, 2.00) | 1.500 (1.000, 2.000) |"
    assert rows[1].startswith("| b | ddim 4, guidance 1 | 100 | ")
    assert rows[2] == "| real held-out images | | | 1.50 (1.00, 2.00) | 1.500 (1.000, 2.000) |"
    assert len(rows) == 3
    assert empty == ""
    assert "12345678" in note


def test_a_table_shows_small_and_large_kernel_distances():
    shown = []
    for value in (0.001234, 134.7):
        metrics = {"kid": evaluate.Interval(value, -value / 10, 2 * value)}
        result = evaluate.Result(SPEC, metrics, metrics, 1000)
        shown.append(evaluate.results_table([("a", dataclasses.replace(record(), result=result))]).splitlines()[2])
    assert "| 0.00123 (-0.000123, 0.00247) |" in shown[0]
    assert "| 135 (-13.5, 269) |" in shown[1]


def test_records_are_read_as_they_were_written(tmp_path):
    path = tmp_path / evaluate.FOLDER / "x.json"
    evaluate.write_record(path, record())
    assert evaluate.read_record(path) == record()
    assert evaluate.results_of_run(tmp_path) == [record()]
    saved = json.loads(path.read_text())
    assert saved["metrics"]["fid"] == {"value": 1.5, "low": 1.0, "high": 2.0}
    assert saved["spec"] == dataclasses.asdict(SPEC)
    path.write_text("{}")
    with pytest.raises(ConfigError, match=r"x\.json holds no evaluation"):
        evaluate.results_of_run(tmp_path)
    with pytest.raises(ConfigError, match="has no evaluations; run: jaxdiff evaluate"):
        evaluate.results_of_run(tmp_path / "nowhere")


def test_network_calls_count_guidance_once_it_is_learned():
    digits = config.Experiment()
    for sampling, calls in (
        (config.Sampling(steps=10), 20),
        (config.Sampling(steps=10, guidance=1.0, sampler="heun"), 19),
        (config.Sampling(steps=10, sampler="heun_edm"), 38),
    ):
        assert config.network_calls(dataclasses.replace(digits, sampling=sampling)) == calls
    student = dataclasses.replace(digits, objective="guided", sampling=config.Sampling(steps=4, guidance=2.0))
    assert config.network_calls(student) == 4


def test_grid_places_every_image_and_enlarges_by_whole_factors(tmp_path):
    images = np.linspace(-1, 1, 6)[:, None, None, None] * np.ones((6, 8, 8, 1))
    picture = pictures.grid(images, columns=3, min_size=16)
    assert picture.shape == (2 * 18 + 2, 3 * 18 + 2, 1)
    centres = picture[10::18, 10::18, 0]
    np.testing.assert_array_equal(centres.ravel(), np.round((np.linspace(-1, 1, 6) + 1) * 127.5))
    pictures.save_grid(tmp_path / "deep" / "grid.png", images, columns=3)
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["grid.png"]


TINY = config.Experiment(
    data=dataclasses.replace(DIGITS, batch_size=8),
    model=config.Model(channels=8, multipliers=(1,), blocks=1, head_channels=8),
    steps=2,
    checkpoint_every=2,
    sampling=config.Sampling(steps=2, num=10),
    evaluation=config.Evaluation(num=20, epochs=1),
)


@pytest.fixture(scope="module")
def runs(tmp_path_factory, tfds_dir):
    """A run, and a copy of it."""
    folder = tmp_path_factory.mktemp("runs")
    assert run.train_run(config.validated(TINY), folder / "labelled", tfds_dir) is None
    shutil.copytree(folder / "labelled", folder / "copied")
    return folder


def test_label_agreement_is_left_out_of_runs_without_labels(tfds_dir):
    bare = dataclasses.replace(TINY, model=dataclasses.replace(TINY.model, num_classes=0))
    judged = finish.run_evaluator(bare, 20, tfds_dir)
    found = judged.measure(np.zeros((20, 8, 8, 1), np.float32), np.zeros(20, np.int32))
    assert found.metrics.keys() == evaluate.MEASURES.keys() - {"label_agreement", "clip_score"}


def test_the_command_evaluates_runs_and_prints_what_is_stored(runs, tfds_dir, capsys):
    flags = ["--num", "30", "--data-dir", tfds_dir]
    both = [str(runs / "labelled"), str(runs / "copied")]
    assert cli.main(["evaluate", *both, *flags, "--guidance", "1", "--ema", "ema", "--seed", "3"]) == 0
    table = capsys.readouterr().out.splitlines()
    assert [line.split(" | ")[0] for line in table if line.startswith("| ")][1:] == [
        "| labelled",
        "| copied",
        "| real held-out images",
    ]
    name = "ddim_2_guidance_1_seed_3_ema_ema"
    saved = json.loads((runs / "labelled" / "evaluations" / f"{name}.json").read_text())
    assert (saved["step"], saved["calls"], saved["samples"], saved["spec"]["num"]) == (2, 2, 30, 30)
    assert saved["metrics"].keys() == saved["held_out"].keys() == evaluate.MEASURES.keys() - {"clip_score"}
    assert (runs / "labelled" / "samples" / f"{name}.png").exists()
    assert cli.main(["evaluate", *both, "--stored"]) == 0
    assert capsys.readouterr().out.splitlines()[-6:] == table[-6:]
    assert cli.main(["evaluate", both[0], *flags[2:], "--num", "40", "--metrics", "kid,fid"]) == 0
    out = capsys.readouterr().out
    assert "kernel distance (KID): " in out
    assert "recall" not in out
    assert cli.main(["evaluate", *both, "--stored"]) == 1
    assert "do not compare: num is" in capsys.readouterr().err


def test_another_split_is_compared_with(runs, tfds_dir, capsys):
    flags = ["--num", "30", "--data-dir", tfds_dir, "--metrics", "label_agreement", "--split", "train[:50]"]
    assert cli.main(["evaluate", str(runs / "labelled"), *flags]) == 0
    assert "held-out ones of train[:50], 50" in capsys.readouterr().out
    assert (runs / "labelled" / "evaluations" / "ddim_2_guidance_2_seed_0_train[:50].json").exists()
    shutil.rmtree(runs / "labelled" / "evaluations")


def test_a_run_ends_with_the_same_evaluation(runs, tfds_dir):
    text = finish.finish_run(storage.read_config(runs / "labelled"), runs / "labelled", tfds_dir)
    assert "label agreement: " in text
    assert "Frechet distance (FID): " in text
    (path,) = (runs / "labelled" / "evaluations").glob("ddim_2_guidance_2_seed_0.json")
    assert str(path) in text
    assert evaluate.read_record(path).result.samples == 20


def test_a_clip_judges_a_run_without_text(tfds_dir, tmp_path):
    """By its image encoder alone."""
    clip = evaluate.clip(published_weights.write_clip(tmp_path / "clip"))
    found = finish.run_evaluator(TINY, 20, tfds_dir, network=clip).measure(np.zeros((20, 8, 8, 1), np.float32), np.zeros(20))
    assert found.metrics.keys() == found.held_out.keys() == {"fid", "kid", "precision", "recall"}
    with pytest.raises(ConfigError, match="--metrics clip_score: samples of a run without text have no captions"):
        finish.run_evaluator(TINY, 20, tfds_dir, network=clip, names=["clip_score"])


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--num", "9"], "--num must be at least 10, got 9"),
        (["--metrics", "fidd"], "--metrics fidd: unknown; write some of fid, kid, precision,"),
        (["--features", "inception"], "--features inception needs its weights; write --weights FILE.npz (see jaxdiff.models."),
        (["--features", "clip"], "--features clip needs its weights; write --weights FOLDER (a CLIP as transformers saves it)"),
        (["--weights", "x.npz"], "is of which network? write --features inception (FILE.npz) or --features clip (FOLDER)"),
        (["--features", "clip", "--weights", "./none"], "there is no none; write a folder or a file of weights, or OWNER/NAME of"),
        (["--metrics", "clip_score"], "--metrics clip_score: classifier reads no captions; write --features clip --weights FOLDER"),
        (["--stored", "--seed", "1"], "--seed does not go with --stored, which draws no samples"),
        (["--likelihood", "--metrics", "fid"], "--metrics does not go with --likelihood"),
        (["--ema", "fast"], "has no ema 'fast'; write one of ema"),
    ],
)
def test_what_cannot_be_measured_is_one_line(runs, tfds_dir, capsys, flags, said):
    assert cli.main(["evaluate", "--quiet", str(runs / "labelled"), "--data-dir", tfds_dir, *flags]) == 1
    err = capsys.readouterr().err.strip().splitlines()
    assert said in err[-1]
    assert len(err) == 1


def test_runs_of_other_images_are_refused_before_they_are_sampled(runs, tfds_dir, tmp_path, capsys):
    values = json.loads((runs / "labelled" / "config.json").read_text())
    values["evaluation"]["epochs"] = 2
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text(json.dumps(values))
    flags = ["--num", "30", "--data-dir", tfds_dir]
    assert cli.main(["evaluate", str(runs / "labelled"), str(tmp_path / "other"), *flags]) == 1
    assert "do not compare: features is 'classifier, 2 epochs, " in capsys.readouterr().err
    assert cli.main(["evaluate", str(runs / "labelled"), str(runs / "labelled"), "--likelihood"]) == 1
    assert "--likelihood takes one run, got 2" in capsys.readouterr().err
    assert cli.main(["evaluate"]) == 1
    assert "evaluate needs a run" in capsys.readouterr().err
