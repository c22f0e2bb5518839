"""Real runs in real processes: killed, stopped, resumed, sampled."""

import dataclasses
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import chex
import forked
import jax
import numpy as np
import pytest
from PIL import Image

from jaxdiff.app import cli, config
from jaxdiff.app.runs import storage, train
from jaxdiff.app.runs.trained import sample_file_name
from jaxdiff.training import checkpoint, steps_per_call

TINY = (
    *("--data.batch-size", "16", "--model.channels", "16", "--model.multipliers", "1", "--model.attention"),
    *("--optimizer.warmup-steps", "5", "--optimizer.schedule", "constant", "--log-every", "20", "--checkpoint-every", "50"),
    *("--sampling.every", "0", "--sampling.num", "20", "--sampling.steps", "2", "--evaluation.num", "0"),
)
LAST = 400
STEPS = ("--steps", str(LAST))


pytestmark = pytest.mark.usefixtures("small_unet", "one_device")


def words(workdir, tfds_dir, *flags):
    return ["train", "configs/digits.py", "--workdir", str(workdir), "--data-dir", tfds_dir, *TINY, *flags]


def start(workdir, tfds_dir, *flags):
    folder = pathlib.Path(tempfile.mkdtemp(dir=workdir.parent))
    return forked.start(words(workdir, tfds_dir, *flags), folder / "out", folder / "err")


def wait_until(process, happened, seconds=180):
    deadline = time.monotonic() + seconds
    while process.poll() is None and not happened():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def final_state(workdir):
    config = storage.read_config(workdir)
    single = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return checkpoint.restore(workdir, storage.with_sharding(train.build.state_shapes(config), single))


def assert_same_run(a, b):
    one, other = final_state(a), final_state(b)
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(np.asarray(x), np.asarray(y)), one, other)
    lines = [[json.loads(line) for line in (pathlib.Path(w) / "metrics.jsonl").read_text().splitlines()] for w in (a, b)]
    assert [line["step"] for line in lines[0]] == sorted({line["step"] for line in lines[0]})
    ends = [
        {line["step"]: line["loss"] for line in run if line["step"] > LAST - 50} for run in lines
    ]  # means over the same steps again
    assert ends[0] == ends[1] != {}


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory, tfds_dir):
    """A run of 400 steps from start to end, by one process with one device."""
    workdir = tmp_path_factory.mktemp("runs") / "unbroken"
    process = start(workdir, tfds_dir, *STEPS)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert f"20 samples of step {LAST}: {workdir / 'samples.png'}" in out
    assert [path.stat().st_size > 1000 for path in (workdir / "tensorboard").iterdir()] == [True]
    return workdir


@pytest.mark.slow
def test_a_run_stopped_and_killed_ends_as_one_that_nobody_stopped(tmp_path, tfds_dir, unbroken):
    """By SIGTERM and SIGINT, which save first, then at random by SIGKILL; resumed, it is bit-equal."""
    metrics, size = tmp_path / "metrics.jsonl", 0
    for number, status in ((signal.SIGTERM, 0), (signal.SIGINT, 130)):
        process = start(tmp_path, tfds_dir, "--steps", "100000", "--checkpoint-every", "100000")
        wait_until(process, lambda size=size: metrics.exists() and metrics.stat().st_size > size)
        process.send_signal(number)
        out, err = process.communicate(timeout=120)
        assert process.returncode == status, err
        assert "Traceback" not in err
        step, size = checkpoint.steps(tmp_path)[-1], metrics.stat().st_size
        assert step < LAST
        assert f"{number.name}: saved step {step} of {tmp_path}; rerunning the same command resumes from there" in out
    process = start(tmp_path, tfds_dir, *STEPS)
    wait_until(process, lambda: checkpoint.steps(tmp_path)[-1] > step)
    time.sleep(random.uniform(0, 0.1))
    process.kill()
    process.communicate()
    assert checkpoint.steps(tmp_path)[-1] < LAST
    process = start(tmp_path, tfds_dir, *STEPS)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert "going on from step" in err
    assert_same_run(tmp_path, unbroken)


@pytest.mark.slow
def test_a_run_goes_on_over_eight_devices(tmp_path, tfds_dir, unbroken, one_device, monkeypatch):
    """Made by one device, resumed by eight: data-parallel, fsdp and pmap give the same losses to rounding."""
    monkeypatch.setattr(jax, "devices", lambda *backend: one_device)
    losses = []
    for number, flags in enumerate(([], ["--mesh.fsdp", "8"], ["--mesh.mapping", "pmap"])):
        workdir = tmp_path / str(number)
        shutil.copytree(unbroken, workdir)
        assert cli.main(words(workdir, tfds_dir, "--steps", "420", *flags)) == 0
        assert checkpoint.steps(workdir)[-1] == 420
        losses.append(json.loads((workdir / "metrics.jsonl").read_text().splitlines()[-1]))
    assert losses[0]["step"] == 420
    np.testing.assert_allclose([line["loss"] for line in losses], losses[0]["loss"], rtol=2e-5)


@pytest.fixture
def answer(capsys):
    def ask(*words):
        status = cli.main(words)
        return status, capsys.readouterr()

    return ask


def test_sample_writes_png_and_npz(answer, tmp_path, unbroken):
    status, text = answer(
        "sample",
        str(unbroken),
        "--steps",
        "3",
        "--guidance",
        "2",
        "--labels",
        "0..9",
        "--num",
        "30",
        "--out",
        str(tmp_path / "a.png"),
    )
    assert status == 0
    assert f"30 samples of step {LAST}: {tmp_path / 'a.png'}" in text.out
    width, height = Image.open(tmp_path / "a.png").size
    assert width / height == pytest.approx(10 / 3, rel=0.05)
    assert (
        str(unbroken / "samples" / "ddim_2_guidance_2_seed_5.png")
        in answer("sample", str(unbroken), "--num", "4", "--seed", "5")[1].out
    )
    words = ("sample", str(unbroken), "--sampler", "ddpm", "--steps", "3", "--labels", "3,7", "--num", "5", "--batch-size", "2")
    assert answer(*words, "--out", str(tmp_path / "a.npz"))[0] == 0
    saved = np.load(tmp_path / "a.npz")
    assert saved["image"].shape == (5, 8, 8, 1)
    assert saved["image"].dtype == np.uint8
    assert saved["label"].tolist() == [3, 7, 3, 7, 3]
    assert len({bytes(image) for image in saved["image"]}) == 5


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--labels", "0..12"), "--labels 0..12: this run has the labels 0..9"),
        (("--steps", "0"), "sampling.steps must be at least 1, got 0"),
        (("--num", "0"), "--num must be at least 1, got 0"),
        (("--out", "a.jpg"), "--out a.jpg: write a name that ends in .png or .npz"),
        (("--ema", "slow"), "has no ema 'slow'; write one of ema"),
        (("--sampler", "hoin"), "invalid choice 'hoin'"),
    ],
)
def test_wrong_flags_of_sample(answer, unbroken, flags, message):
    status, text = answer("sample", str(unbroken), *flags)
    assert status in (1, 2)
    assert message in text.err
    assert text.err.count("\n") == 1


@pytest.fixture(scope="module")
def guiding(tmp_path_factory):
    """A classifier's run with random params."""
    workdir = tmp_path_factory.mktemp("runs") / "guiding"
    recipe = config.load("configs/digits_classifier.py")
    tiny = dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, channels=8, multipliers=(1,), head_channels=8))

    @jax.jit
    def random_state(key):
        state = train.build.init(tiny, key)
        return jax.tree.map(lambda leaf: leaf + jax.random.normal(key, leaf.shape).astype(leaf.dtype), state)

    with checkpoint.manager(workdir) as to:
        checkpoint.save(to, random_state(jax.random.key(0)), config.to_dict(tiny))
    (workdir / "config.json").write_text(json.dumps(config.to_dict(tiny)))
    return workdir


def test_a_classifier_guides_samples_by_its_scale(answer, tmp_path, unbroken, guiding):
    def images(*flags):
        out = tmp_path / "images.npz"
        status, text = answer("sample", str(unbroken), "--guidance", "0", "--num", "10", "--out", str(out), *flags)
        assert status == 0, text.err
        return np.load(out)["image"]

    plain = images()
    words = ("--classifier", str(guiding), "--classifier-scale")
    guided, zero, unlabelled = (images(*words, *more) for more in (("1e4",), ("0",), ("1e4", "--labels", "none")))
    assert (guided != plain).any(axis=(1, 2, 3)).all()
    np.testing.assert_array_equal(zero, plain)
    np.testing.assert_array_equal(unlabelled, plain)


def test_default_names_tell_how_samples_were_made():
    recipe = config.load("configs/digits.py")
    for changes, name in (
        ({}, "ddim_50_guidance_2_seed_3.png"),
        ({"eta": 0.5, "spacing": "karras"}, "ddim_50_karras_eta_0.5_guidance_2_seed_3.png"),
        ({"guidance": 0.0, "classifier": "runs/c", "classifier_scale": 2.5}, "ddim_50_guidance_0_by_c_2.5_seed_3.png"),
    ):
        sampling = dataclasses.replace(recipe.sampling, **changes)
        assert sample_file_name(dataclasses.replace(recipe, sampling=sampling), 3) == name


def test_runs_that_cannot_guide_or_be_guided(answer, tmp_path, unbroken, guiding):
    def other(name, **changes):
        values = json.loads((guiding / "config.json").read_text())
        for section, fields in changes.items():
            values[section] |= fields
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(values))
        return str(tmp_path / name)

    asked = [
        (("sample", str(guiding)), f"{guiding} is a classifier run, here a diffusion run is wanted"),
        (("evaluate", str(guiding)), f"{guiding} is a classifier run, here a diffusion run is wanted"),
        (
            ("sample", str(unbroken), "--classifier", str(unbroken)),
            f"{unbroken} is a diffusion run, here a classifier run is wanted",
        ),
        (("sample", str(unbroken), "--classifier", "nowhere"), "no run in nowhere; train one: "),
        (
            ("evaluate", str(unbroken), "--classifier-scale", "3"),
            "classifier_scale must be 1 unless sampling.classifier names a run",
        ),
    ]
    for changes, message in (
        ({"data": {"image_shape": [16, 16, 1]}}, "has data.image_shape (16, 16, 1), this run needs (8, 8, 1)"),
        ({"model": {"num_classes": 11}}, "has model.num_classes 11, this run needs 10"),
        ({"diffusion": {"schedule": "linear"}}, "knows logsnr -10.0 to 15.0 (schedule linear), the samples pass through -15.0 to"),
    ):
        name = next(iter(changes))
        asked.append((("sample", str(unbroken), "--classifier", other(name, **changes)), message))
    for words, message in asked:
        status, text = answer(*words)
        assert status == 1
        assert message in text.err
        assert text.err.count("\n") == 1


def test_another_config_does_not_touch_the_run(answer, tfds_dir, unbroken):
    before = (unbroken / "config.json").read_bytes()
    status, text = answer(*words(unbroken, tfds_dir, "--seed", "7", "--optimizer.learning-rate", "1"))
    assert status == 1
    assert "was made by another config: " in text.err
    assert "optimizer.learning_rate was 0.002, now 1.0" in text.err
    assert "seed was 0, now 7" in text.err
    assert "choose another --workdir" in text.err
    assert (unbroken / "config.json").read_bytes() == before


def test_the_first_loss_that_is_no_number_stops_the_run(answer, tmp_path, tfds_dir):
    flags = ("--optimizer.learning-rate", "1e14", "--optimizer.clip-norm", "0", "--steps", "50", "--checkpoint-every", "1")
    status, text = answer(*words(tmp_path, tfds_dir, *flags))
    assert status == 1
    line = text.err.strip().splitlines()[-1]
    (saved,) = checkpoint.steps(tmp_path)[-1:]
    assert f"at step {saved + 1}; try a lower learning rate" in line
    assert f"the last good checkpoint is step {saved} in {tmp_path}" in line


@pytest.mark.slow
def test_a_checkpoint_cut_short_is_passed_over_by_train(tmp_path, tfds_dir, unbroken, capsys, caplog):
    workdir = tmp_path / "run"
    shutil.copytree(unbroken, workdir)
    files = [path for path in (workdir / "checkpoints" / str(LAST) / "opt_state").rglob("*") if path.is_file()]
    largest = max(files, key=lambda path: path.stat().st_size)
    largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])
    assert cli.main(words(workdir, tfds_dir, *STEPS)) == 0
    lines = [record.getMessage() for record in caplog.records if record.name.startswith("jaxdiff")]
    assert "going back to the checkpoint before it" in lines[0]
    assert lines[1] == f"going on from step {LAST - 50} of {workdir}"
    assert checkpoint.steps(workdir)[-1] == LAST


@pytest.fixture(scope="module")
def first(tmp_path_factory, tfds_dir):
    """The README's first command, optimized by XLA, with half the width, batch and steps, fewer samples; its cache."""
    workdir, cache = tmp_path_factory.mktemp("runs") / "first", tmp_path_factory.mktemp("cache")
    command = [sys.executable, "-m", "jaxdiff", "train", "configs/digits.py", "--workdir", str(workdir), "--data-dir", tfds_dir]
    command += ["--model.channels", "16", "--model.head-channels", "16", "--data.batch-size", "64"]
    command += ["--steps", "200", "--ema.ema", "0.98"]
    command += ["--sampling.every", "0", "--sampling.steps", "20", "--evaluation.num", "200"]
    quick = os.environ["XLA_FLAGS"].replace("optimization_level=0", "optimization_level=1")
    environment = {**os.environ, "XLA_FLAGS": quick, "JAXDIFF_CACHE_DIR": str(cache)}
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr[-2000:]
    return workdir, cache


@pytest.mark.slow
def test_the_first_command_makes_digits(first):
    workdir, _ = first
    assert (workdir / "samples.png").exists()
    (path,) = (workdir / "evaluations").iterdir()
    report = json.loads(path.read_text())
    assert report["samples"] == 200
    assert report["held_out"]["label_agreement"]["value"] >= 0.97
    assert report["metrics"]["label_agreement"]["value"] >= 0.95


@pytest.mark.slow
def test_evaluation_reports_agreement_and_distance(answer, monkeypatch, tfds_dir, unbroken, first):
    """Of a run too short for digits, by the classifier that the first command has trained."""
    monkeypatch.setenv("JAXDIFF_CACHE_DIR", str(first[1]))
    before = {path: path.stat().st_mtime_ns for path in (first[1] / "judges").iterdir()}
    status, text = answer("evaluate", str(unbroken), "--num", "40", "--steps", "2", "--data-dir", tfds_dir)
    assert status == 0, text.err
    assert "label agreement: " in text.out
    saved = json.loads((unbroken / "evaluations" / "ddim_2_guidance_2_seed_0.json").read_text())
    assert saved["sampling"]["steps"] == 2
    assert saved["calls"] == 4
    assert saved["held_out"]["label_agreement"]["value"] >= 0.97
    assert saved["metrics"]["label_agreement"]["value"] < 0.95
    assert saved["metrics"]["fid"]["low"] > saved["held_out"]["fid"]["high"]
    assert {path: path.stat().st_mtime_ns for path in (first[1] / "judges").iterdir()} == before != {}


@pytest.mark.slow
def test_steps_done_together_are_logged_and_traced_as_ever(tmp_path, tfds_dir, capsys, one_device, monkeypatch):
    """Two at a time, on two devices; the trace is of those that hold steps 3 to 5."""
    monkeypatch.setattr(jax, "devices", lambda *backend: one_device[:2])
    lines = {}
    for per_call in ("1", "2"):
        workdir = tmp_path / per_call
        flags = ("--steps", "8", "--log-every", "4", "--steps-per-call", per_call, "--profile", "3:5" if per_call == "2" else "")
        assert cli.main(words(workdir, tfds_dir, *flags)) == 0
        lines[per_call] = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
        assert checkpoint.steps(workdir) == [8]
    assert [line["step"] for line in lines["2"]] == [line["step"] for line in lines["1"]] == [4, 8]
    np.testing.assert_allclose([line["loss"] for line in lines["2"]], [line["loss"] for line in lines["1"]], rtol=1e-4)
    assert list((tmp_path / "2" / "profile").rglob("*.xplane.pb"))
    assert not (tmp_path / "1" / "profile").exists()


@pytest.mark.parametrize(
    ("seconds", "divides", "left", "compiling", "expected"),
    [
        (0.020, 50, 10**6, 54.0, 5),
        (0.019, 50, 10**6, 54.0, 10),
        (0.001, 1000, 10**6, 20.0, 100),
        (0.001, 7, 10**6, 20.0, 7),
        (0.001, 1009, 10**6, 20.0, 1),  # a prime
        (0.120, 50, 10**6, 54.0, 1),
        (0.020, 50, 20_000, 54.0, 1),  # which end before ten times the compilation
    ],
)
def test_steps_per_call_last_a_tenth_of_a_second(seconds, divides, left, compiling, expected):
    assert steps_per_call.chosen(seconds, divides, left, compiling) == expected


@pytest.mark.slow
def test_automatic_steps_per_call_are_kept_and_bit_equal(tmp_path, tfds_dir, monkeypatch, one_device):
    """As on an accelerator: chosen by the time of 12 steps; a run that resumes at 10 begins with single steps."""
    monkeypatch.setattr(steps_per_call, "HOSTS", ())
    monkeypatch.setattr(
        steps_per_call, "chosen", lambda seconds, divides, left, compiling: 4 if seconds > 0 and divides == 8 else 1
    )
    for name, stops in (("stopped", (10, 32, 48)), ("whole", (48,))):
        for steps in stops:
            every = str(10 if steps == 10 else 8)
            flags = ("--steps", str(steps), "--log-every", every, "--checkpoint-every", every)
            assert cli.main(words(tmp_path / name, tfds_dir, *flags)) == 0
    kept = json.loads((tmp_path / "whole" / "steps_per_call.json").read_text())
    assert list(kept.values()) == [4]
    chex.assert_trees_all_equal(*(final_state(tmp_path / name) for name in ("stopped", "whole")))


@pytest.mark.slow
def test_a_run_resumes_with_other_steps_per_call_and_remat(tmp_path, tfds_dir):
    """From step 3, which 2 does not divide."""
    begun = ("--steps", "3", "--log-every", "1", "--checkpoint-every", "1")
    resumed = ("--steps", "8", "--log-every", "4", "--checkpoint-every", "4", "--steps-per-call", "2", "--model.remat", "blocks")
    assert cli.main(words(tmp_path, tfds_dir, *begun)) == 0
    assert cli.main(words(tmp_path, tfds_dir, *resumed)) == 0
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 8]
    assert checkpoint.steps(tmp_path)[-1] == 8


def test_a_wrong_steps_per_call_or_profile_is_one_line(tmp_path, tfds_dir, capsys):
    for flags, said in (
        (("--steps-per-call", "3"), "steps_per_call must be a divisor of steps, 400, got 3"),
        (("--profile", "20:10"), "--profile 20:10: write the first and the last step to trace, such as 10:20"),
    ):
        assert cli.main(words(tmp_path / "run", tfds_dir, *flags)) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert said in line
    assert not (tmp_path / "run").exists()
