"""Recipes of several stages: what is missing, training in order, and runs that must not be mixed up."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

from jaxdiff.app import build, cli, config
from jaxdiff.app.runs import storage
from jaxdiff.app.runs import train as run
from jaxdiff.app.runs.sources import check_measured, record_sources, resolve_sources, source_configs, source_params
from jaxdiff.app.runs.trained import image_sampler
from jaxdiff.io.errors import ConfigError
from jaxdiff.training import checkpoint

KL = """
from jaxdiff.app.config import *

config = Experiment(
    objective="autoencoder",
    data=Data(name="digits", image_shape=(8, 8, 1), batch_size=16),
    model=Model(channels=8, multipliers=(1, 1), blocks=1, head_channels=8, num_classes=10),
    autoencoder=Autoencoder(latent_channels=2, measured=100),
    steps=3,
)
"""
LATENT = """
from jaxdiff.app.config import *

config = Experiment(
    sources=Sources(autoencoder="{kl}"),
    data=Data(name="digits", image_shape=(8, 8, 1), batch_size=16),
    model=Model(channels=8, multipliers=(1,), blocks=1, attention=(4,), head_channels=8, num_classes=10),
    sampling=Sampling(steps=2, num=10, clip=False),
    steps=3,
)
"""


pytestmark = pytest.mark.usefixtures("small_unet", "small_autoencoder", "one_device")


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tfds_dir):
    """Two recipes, and their runs trained by one command."""
    folder = tmp_path_factory.mktemp("stages")
    (folder / "kl.py").write_text(KL)
    (folder / "latent.py").write_text(LATENT.format(kl=folder / "kl.py"))
    train = ["train", str(folder / "latent.py"), "--workdir", str(folder / "latent"), "--data-dir", tfds_dir]
    missing = cli.main(train), not (folder / "kl").exists() and not (folder / "latent").exists()
    assert missing == (1, True)
    assert cli.main([*train, "--with-stages"]) == 0
    return folder


def test_all_stages_are_trained_and_each_is_a_run(folder):
    assert checkpoint.steps(folder / "kl")[-1] == checkpoint.steps(folder / "latent")[-1] == 3
    assert storage.read_config(folder / "latent").sources.autoencoder == str(folder / "kl")
    recorded = json.loads((folder / "latent" / "sources.json").read_text())
    assert recorded == {"autoencoder": {"run": str(folder / "kl"), "fingerprint": storage.fingerprint(folder / "kl")}}
    assert (folder / "latent" / "samples.png").stat().st_size > 0


def test_a_trained_stage_is_not_trained_again(folder, tfds_dir, capsys):
    before = (folder / "kl" / "metrics.jsonl").stat().st_mtime_ns
    train = ["train", str(folder / "latent.py"), "--workdir", str(folder / "latent"), "--data-dir", tfds_dir]
    assert cli.main([*train, "--with-stages"]) == 0
    assert cli.main(train) == 0
    assert "jaxdiff train" not in capsys.readouterr().out
    assert (folder / "kl" / "metrics.jsonl").stat().st_mtime_ns == before


def test_a_missing_stage_is_said_in_one_line(folder, tmp_path, capsys):
    recipes = ["train", str(folder / "latent.py"), "--workdir"]
    assert cli.main([*recipes, str(tmp_path / "latent")]) == 1
    said = capsys.readouterr().err
    kl = tmp_path / "kl"
    assert said == (
        f"jaxdiff: {tmp_path / 'latent'} starts from {kl} (not there yet); add --with-stages to train in order, "
        f"or run: jaxdiff train {folder / 'kl.py'} --workdir {kl}\n"
    )
    shutil.copytree(folder / "kl", kl)
    values = json.loads((kl / "config.json").read_text())
    (kl / "config.json").write_text(json.dumps({**values, "steps": 5}))
    assert cli.main([*recipes, str(tmp_path / "latent")]) == 1
    assert f"{kl} (step 3 of 5)" in capsys.readouterr().err
    made = storage.read_config(folder / "latent")
    made = dataclasses.replace(made, sources=dataclasses.replace(made.sources, autoencoder=str(kl)))
    with pytest.raises(ConfigError, match=r"kl is at step 3 of 5; its latents are measured at the end: train it on"):
        source_params(made)
    assert cli.main([*recipes, str(kl)]) == 1
    assert "is where a stage of this recipe is trained" in capsys.readouterr().err


def test_a_recipe_that_starts_from_itself_is_refused(tmp_path):
    path = tmp_path / "loop.py"
    path.write_text(LATENT.format(kl=path))
    with pytest.raises(ConfigError, match=r"loop\.py starts from itself"):
        resolve_sources(config.load(path), tmp_path / "run")


def test_stages_of_a_cascade_come_in_order(tmp_path):
    resolved, before = resolve_sources(config.load("configs/mnist_32.py"), tmp_path / "mnist_32")
    assert [stage.workdir.name for stage in before] == ["mnist_8", "mnist_16"]
    assert resolved.sources.base == str(tmp_path / "mnist_16")
    assert before[1].config.sources.base == str(tmp_path / "mnist_8")


def test_latents_of_another_autoencoder_are_refused(folder, tmp_path, tfds_dir):
    """Both on the command line and by the library: sampling, and going on."""
    for name in ("kl", "latent"):
        shutil.copytree(folder / name, tmp_path / name)
    values = json.loads((tmp_path / "latent" / "config.json").read_text())
    values["sources"]["autoencoder"] = str(tmp_path / "kl")
    made = config.from_dict(values)
    step, params = storage.read_params(made, tmp_path / "latent")
    same = image_sampler(made, workdir=tmp_path / "latent")(params, np.arange(4), 0)
    other = dataclasses.replace(storage.read_config(tmp_path / "kl"), seed=1)
    shutil.rmtree(tmp_path / "kl")
    run.train_run(other, tmp_path / "kl", tfds_dir)
    expected = "was trained with the autoencoder .* as it was then .* is another .*; name that one"
    with pytest.raises(ConfigError, match=expected):
        image_sampler(made, workdir=tmp_path / "latent")
    with pytest.raises(ConfigError, match=expected):
        run.train_run(dataclasses.replace(made, steps=4), tmp_path / "latent", tfds_dir)
    assert step == 3
    assert np.abs(same - image_sampler(made)(params, np.arange(4), 0)).max() > 1e-3  # it would have decoded something else


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_shape": (9, 8, 1)}, "9x8 cannot be halved by the autoencoder .*; choose sizes divisible by 2"),
        ({"image_shape": (8, 8, 3)}, "data.image_shape has 3 channels, the autoencoder .* 1; set the same"),
    ],
)
def test_an_image_that_the_autoencoder_cannot_encode_is_refused(folder, change, message):
    made = storage.read_config(folder / "latent")
    with pytest.raises(ConfigError, match=message):
        source_configs(dataclasses.replace(made, data=dataclasses.replace(made.data, **change)))


def test_a_network_must_fit_the_latents(folder):
    made = storage.read_config(folder / "latent")
    for change, message in (
        ({"multipliers": (1, 1, 1, 1)}, "latents of 4x4 .* cannot be halved 3 times; choose fewer model.multipliers"),
        ({"attention": (8,)}, r"model.attention must be sizes that the network has on latents of .*: \[4\]"),
    ):
        with pytest.raises(ConfigError, match=message):
            source_configs(dataclasses.replace(made, model=dataclasses.replace(made.model, **change)))


def test_what_has_no_meaning_in_latents_is_refused(folder, capsys):
    latent = str(folder / "latent")
    assert cli.main(["evaluate", latent, "--likelihood"]) == 1
    assert "--likelihood: of images there is none in latents" in capsys.readouterr().err
    assert cli.main(["sample", str(folder / "kl")]) == 1
    assert "is an autoencoder run, here a diffusion run is wanted" in capsys.readouterr().err
    assert cli.main(["train", str(folder / "latent.py"), "--sampling.clip"]) == 1
    assert "sampling.clip must be False in latent space" in capsys.readouterr().err
    assert cli.main(["train", "configs/digits.py", "--sources.autoencoder", str(folder / "latent"), "--sampling.no-clip"]) == 1
    assert "is a diffusion run, here an autoencoder run is wanted" in capsys.readouterr().err


def test_samples_are_decoded_latents(folder, tmp_path):
    """By hand: the levels walked along in latent space, then the decoder."""
    made = storage.read_config(folder / "latent")
    sources, frozen = source_configs(made), source_params(made)
    _, params = storage.read_params(made, folder / "latent")
    given = {"index": np.arange(4), "label": np.arange(4)}
    images = jax.jit(build.image_generator(made, sources))(params, jax.random.key(0), given, frozen)
    codec = build.codec(sources["autoencoder"])

    def undecoded(networks, params, z):
        return z

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(codec), "decode", undecoded)
        z = jax.jit(build.image_generator(made, sources))(params, jax.random.key(0), given, frozen)
    assert z.shape == (4, 4, 4, 2)
    np.testing.assert_allclose(images, codec.decode(frozen["autoencoder"], z), atol=1e-5)


def test_runs_that_moved_together_find_each_other(folder, tmp_path):
    values = json.loads((folder / "latent" / "config.json").read_text())
    values["sources"]["autoencoder"] = "runs/that/is/gone/kl"
    made = config.from_dict(values)
    with pytest.raises(ConfigError, match="no run in runs/that/is/gone/kl"):
        source_configs(made)
    assert source_configs(made, folder / "latent") == {"autoencoder": storage.read_config(folder / "kl")}
    assert set(source_params(made, folder / "latent")) == {"autoencoder"}


def test_a_run_on_pixels_does_not_go_on_in_latents(folder, tmp_path):
    shutil.copytree(folder / "latent", tmp_path / "pixels")
    (tmp_path / "pixels" / "sources.json").unlink()
    with pytest.raises(ConfigError, match=r"was begun without sources\.autoencoder"):
        record_sources(storage.read_config(folder / "latent"), tmp_path / "pixels")


def test_latents_that_were_not_measured_are_refused(folder):
    made = storage.read_config(folder / "kl")
    step, params = storage.read_params(made, folder / "kl")
    check_measured(made, params, step, folder / "kl")
    params["latent"] = {"shift": np.zeros(2), "scale": np.ones(2)}
    with pytest.raises(ConfigError, match="latents are measured at the end: train it on, by its recipe with more --steps"):
        check_measured(made, params, step, folder / "kl")


def test_a_stage_of_a_cascade_sees_levels_of_its_training():
    large, base = config.load("configs/mnist_32.py"), config.load("configs/mnist_16.py")
    diffusion = dataclasses.replace(large.diffusion, schedule="lognormal", sampling_schedule="karras", prediction="edm")
    large = dataclasses.replace(large, diffusion=diffusion)
    base = dataclasses.replace(base, cascade=config.Cascade(), sources=config.Sources())
    first, last = build.cascade_stages(large, None, {"label": np.zeros(2)}, {"base": base}, {"base": None})
    assert first.augmentation is None
    np.testing.assert_allclose(
        last.augmentation.logsnr, build.SCHEDULES["lognormal"](large.betas)(large.cascade.augmentation).logsnr
    )
    build.check_source("base", large, base, "here")
    for change, message in (
        ({"sources": config.Sources(autoencoder="kl")}, "the base here has sources.autoencoder 'kl'"),
        (
            {"data": dataclasses.replace(base.data, image_shape=(8, 8, 1))},
            r"has data.image_shape \(8, 8, 1\), .* needs \(16, 16, 1\)",
        ),
    ):
        with pytest.raises(ConfigError, match=message):
            build.check_source("base", large, dataclasses.replace(base, **change), "here")
