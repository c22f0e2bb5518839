"""Bits per dimension of real runs, from the command line; and what is refused, in one line."""

import dataclasses
import json
from functools import partial

import jax
import numpy as np
import pytest

from jaxdiff import likelihood
from jaxdiff.app import build, cli, config
from jaxdiff.app.runs import finish, storage, trained
from jaxdiff.app.runs import likelihood as bits
from jaxdiff.data import Images
from jaxdiff.io import errors

pytestmark = pytest.mark.usefixtures("small_unet", "small_autoencoder", "one_device")

TINY = ("--data.batch-size", "16", "--model.channels", "8", "--model.attention", "--optimizer.warmup-steps", "2", "--steps", "4")


@pytest.fixture(scope="module")
def runs(tmp_path_factory, tfds_dir):
    """A diffusion run and a VAE, both of a few steps."""
    where = tmp_path_factory.mktemp("bits")
    plain = ("--evaluation.num", "0", "--sampling.num", "4", "--sampling.steps", "2")
    for name, flags in (("digits_learned_schedule", plain), ("digits_vae", ())):
        words = ["train", f"configs/{name}.py", "--workdir", str(where / name), "--data-dir", tfds_dir, *TINY, *flags]
        assert cli.main(words) == 0
    return where


def evaluated(capsys, workdir, tfds_dir, *flags):
    capsys.readouterr()
    status = cli.main(["evaluate", str(workdir), "--likelihood", "--data-dir", tfds_dir, "--num", "7", "--batch-size", "4", *flags])
    captured = capsys.readouterr()
    assert status == 0, captured.err
    return captured.out, json.loads((workdir / "likelihood.json").read_text())


@pytest.mark.slow
def test_diffusion_run(capsys, runs, tfds_dir):
    out, saved = evaluated(capsys, runs / "digits_learned_schedule", tfds_dir, "--steps", "12", "--labels", "none")
    assert saved["num"] == 7
    assert "7 test images of digits (bits/dim with standard error, less is better)" in out
    assert list(saved["estimates"]) == ["discrete", "continuous", "flow"]
    for name, estimate in saved["estimates"].items():
        assert f"{name} {estimate['value']:7.4f} +- {estimate['standard_error']:.4f}" in out
        assert estimate["unit"] == "bits/dim"
        np.testing.assert_allclose(sum(estimate["terms"].values()), estimate["value"], rtol=1e-5)
        assert 0 < estimate["standard_error"] < estimate["value"] < 60
    assert "continuous - discrete:" in out
    assert "the flow's errors leave out that of its 12 steps" in out
    assert saved["effort"] == {"steps": 12, "times": 32, "flow_steps": 12, "probes": 1, "codes": 64}
    values = [estimate["value"] for estimate in saved["estimates"].values()]
    np.testing.assert_allclose(saved["differences"]["flow"]["value"], values[2] - values[0], atol=1e-4)
    flags = ("--steps", "4", "--estimators", "flow,flow_uniform", "--probes", "0")
    _, saved = evaluated(capsys, runs / "digits_learned_schedule", tfds_dir, *flags)
    np.testing.assert_allclose(saved["estimates"]["flow_uniform"]["terms"]["dequantization"], 6.9943, atol=1e-3)  # log2(255 / 2)


@pytest.mark.slow
def test_vae_run(capsys, runs, tfds_dir):
    workdir = runs / "digits_vae"
    for name in ("samples", "reconstructions", "interpolations"):
        assert (workdir / f"{name}.png").stat().st_size > 0
    out, saved = evaluated(capsys, workdir, tfds_dir)
    estimates = saved["estimates"]
    assert list(estimates) == ["elbo", "importance"]
    assert estimates["importance"]["value"] < estimates["elbo"]["value"]  # of bits, fewer
    assert set(estimates["elbo"]["terms"]) == {"reconstruction", "prior"}
    assert "each given its label" not in out
    out, saved = evaluated(capsys, workdir, tfds_dir, "--estimators", "importance", "--split", "train")
    assert list(saved["estimates"]) == ["importance"]
    assert "train images" in out
    assert cli.main(["sample", str(workdir), "--num", "3", "--seed", "1"]) == 0
    assert (workdir / "samples" / "prior_seed_1.png").stat().st_size > 0
    assert cli.main(["sample", str(workdir), "--guidance", "2"]) == 1
    assert "--guidance does not apply to a vae run, whose samples are decoded from its prior" in capsys.readouterr().err


def test_measure_has_the_known_value_image_by_image():
    """A model that gives every pixel 1 / 256 has 8 bits; the last batch is filled up and cut again."""
    seen = []

    def estimator(params, key, x0, label):
        seen.append((x0.shape, label))
        value = -np.log(256.0) * x0[0].size + 0 * x0.sum((1, 2, 3)) + params * label.astype(np.float32)
        return likelihood.Estimate(value, 0 * value, {"all": value})

    pixels = np.random.default_rng(0).integers(0, 256, (10, 4, 4, 1)).astype(np.uint8)
    source = Images(lambda indices: (pixels[indices], indices.astype(np.int32)), 10, 10, (4, 4, 1))
    found = bits.estimate({"flat": estimator}, np.float32(0), source, 10, None, 4, 0)["flat"]
    np.testing.assert_allclose(likelihood.in_bits_per_dim(found, (4, 4, 1)).value, np.full(10, 8), rtol=1e-6)
    by_label = bits.estimate({"flat": estimator}, np.float32(1), source, 10, None, 4, 0)["flat"].value
    np.testing.assert_allclose(by_label - found.value, np.arange(10), atol=1e-4)
    fixed = bits.estimate({"flat": estimator}, np.float32(1), source, 10, 3, 4, 0)["flat"].value
    np.testing.assert_allclose(fixed - found.value, np.full(10, 3), atol=1e-4)
    with pytest.raises(errors.NonFiniteError, match="flat has NaN or infinite values"):
        bits.estimate({"flat": estimator}, np.float32(np.nan), source, 10, None, 4, 0)


def test_pictures_of_a_vae_have_the_ends_of_their_lines():
    tiny = config.load("configs/digits_vae.py")
    tiny = dataclasses.replace(tiny, model=dataclasses.replace(tiny.model, channels=8))
    params = jax.jit(partial(build.init, tiny))(jax.random.key(0)).params
    params["decoder"]["conv_out"]["kernel"] += 0.1
    a, b = np.random.default_rng(0).uniform(-1, 1, (2, 3, 8, 8, 1)).astype(np.float32)
    lines = finish.interpolations(tiny, params, a, b, 5).reshape(3, 5, 8, 8, 1)
    np.testing.assert_allclose(lines[:, 0], finish.reconstructions(tiny, params, a), atol=1e-5)
    np.testing.assert_allclose(lines[:, -1], finish.reconstructions(tiny, params, b), atol=1e-5)
    samples = trained.image_sampler(tiny, 4)(params, np.zeros(6, np.int32), 0)
    assert samples.shape == (6, 8, 8, 1)
    assert np.std(samples, axis=0).mean() > 0.1


@pytest.mark.parametrize(
    ("name", "flags", "message"),
    [
        ("digits_vae", ("--estimators", "flow"), "--estimators flow: does not apply to a vae run; write some of elbo, importance"),
        ("digits_elbo", ("--estimators", "elbo"), "does not apply to a diffusion run; write some of discrete, continuous, flow"),
        ("digits_classifier", (), "a classifier has no likelihood of images"),
        ("digits_elbo", ("--guidance", "2"), "--guidance does not go with --likelihood"),
        ("digits_elbo", ("--labels", "3"), "--labels 3: --likelihood uses the label of each image; write none"),
        ("digits_elbo", ("--estimators", ","), "--estimators ',': no name in it; write elbo, importance or discrete"),
        ("digits_vae", ("--steps", "5"), "--steps does not apply to the likelihood of a vae run"),
        ("digits_elbo", ("--num", "1"), "--num must be at least 2, got 1"),
        ("digits_elbo", ("--probes", "-1"), "--probes must be at least 0, got -1"),
    ],
)
def test_what_does_not_apply_is_one_line(capsys, tmp_path, name, flags, message):
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict(config.load(f"configs/{name}.py"))))
    status = cli.main(["evaluate", str(tmp_path), "--likelihood", *flags])
    error = capsys.readouterr().err
    assert status == 1
    assert error.count("\n") == 1
    assert message in error


def test_flags_of_likelihood_alone(capsys, tmp_path):
    assert cli.main(["evaluate", str(tmp_path), "--probes", "2"]) == 1
    assert "--probes is for --likelihood; give both, or neither" in capsys.readouterr().err
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict(config.load("configs/digits_vae.py"))))
    assert cli.main(["evaluate", str(tmp_path)]) == 1
    assert "is a vae run, whose samples have no labels to evaluate; add --likelihood" in capsys.readouterr().err


def begun(workdir, made):
    """A run that has its config and no checkpoint."""
    storage.check_or_write_config(workdir, made)
    return workdir


def test_gaussian_pixels_and_padded_images_are_refused(tmp_path, tfds_dir):
    vae = config.load("configs/digits_vae.py")
    vae = dataclasses.replace(vae, vae=dataclasses.replace(vae.vae, pixels="gaussian"))
    with pytest.raises(errors.ConfigError, match="gaussian pixels have a density, not a probability; train with"):
        bits.estimators(vae, [], bits.Effort())
    padded = config.load("configs/digits_vae.py")
    padded = dataclasses.replace(padded, data=dataclasses.replace(padded.data, image_shape=(16, 16, 1)))
    with pytest.raises(errors.ConfigError, match=r"pads images of \(8, 8, 1\) to \(16, 16, 1\).*--data.image-shape 8 8 1"):
        bits.evaluate_likelihood(begun(tmp_path / "padded", padded), images=bits.Measured(data_dir=tfds_dir))
    images = bits.Measured(split="test[:1]", data_dir=tfds_dir)
    with pytest.raises(errors.ConfigError, match="1 image has no error bar"):
        bits.evaluate_likelihood(begun(tmp_path / "vae", config.load("configs/digits_vae.py")), images=images)
