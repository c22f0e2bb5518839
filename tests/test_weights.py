"""Runs of published weights: imported, used by every command, trained on, and exported again."""

import contextlib
import dataclasses
import errno
import functools
import hashlib
import io
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import published_weights
import pytest
from PIL import Image

from jaxdiff import interop
from jaxdiff.app import build, cli, config
from jaxdiff.app.runs import experiments, exported, storage, train
from jaxdiff.app.runs.trained import load_run
from jaxdiff.data import importing
from jaxdiff.data.chunks import Wanted
from jaxdiff.interop import chains, loading, parts
from jaxdiff.io.errors import ConfigError, DataError
from jaxdiff.models import autoencoder, lora

pytestmark = pytest.mark.usefixtures("one_device")
SOURCES = {
    "ddpm": ("ddpm",),
    "small": ("small", "--data", "photos"),
    "stable": ("sd1",),
    "adm": ("adm/adm.safetensors", "--head-channels", "16", "--no-new-order", "--size", "16"),
    "consistency": ("consistency_diffusers",),
    "autoencoder": ("vq/vqvae",),
}


SMALL = {  # a network that is quick to compile
    **{"kind": "unet", "in_channels": 3, "channels": 8, "multipliers": (1,), "blocks": 1, "attention_levels": (), "heads": 1},
    **{"head_channels": 64, "groups": 4, "epsilon": 1e-6, "told": "step", "cosine_first": False, "shift": 1.0, "padding": (0, 1)},
    **{"residual_resampling": False, "scale_shift": False, "num_classes": 0, "dropout": 0.0, "context_channels": 0},
}


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Folders as the world publishes them, in float16."""
    folder = tmp_path_factory.mktemp("published")
    for name in ("ddpm", "sd1", "adm", "consistency_diffusers", "vq", "lora_kohya"):
        published_weights.write(folder / name, name, "float16")
    published_weights.write(folder / "sd1", "kl", "float16")
    draws = np.random.RandomState(0)
    params = jax.tree.map(lambda leaf: draws.normal(scale=0.1, size=leaf.shape).astype(np.float32), loading.unet_shapes(SMALL))
    interop.save_pipeline(folder / "small", interop.Network(params, SMALL, (16, 16)), chains.DDPM, None)
    (folder / "sd1" / "LICENSE.md").write_text("be kind")
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A data directory with a set of small photographs in two classes."""
    folder, pixels = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for number in range(48):
        path = folder / "pictures" / f"class_{number % 2}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.integers(100 * (number % 2), 150 + 100 * (number % 2), (16, 16, 3), np.uint8)).save(path)
    importing.import_images(folder / "pictures", "photos", Wanted(held_out=0.3), str(folder / "data"))
    return str(folder / "data")


@pytest.fixture(scope="module")
def command(photos):
    """A function that runs a command: its exit status, what it printed, and the one line of its error."""

    def run(*words):
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = cli.main([*map(str, words), "--quiet"])
        return status, out.getvalue().strip(), err.getvalue().strip()

    return run


@pytest.fixture(scope="module")
def runs(sources, command, tmp_path_factory):
    """Directories of imported runs by name."""
    folder = tmp_path_factory.mktemp("runs")

    @functools.cache
    def imported(name):
        source, *flags = SOURCES[name]
        status, _, error = command("import", sources / source, "--workdir", folder / name, *flags)
        assert status == 0, error
        return folder / name

    return imported


def read(run, kind="diffusion"):
    settings = storage.read_config(run, kind)
    return settings, storage.read_params(settings, run)[1]


def assert_equal(mine, theirs):
    jax.tree.map(np.testing.assert_array_equal, mine, theirs)


def test_a_run_holds_the_weights_once_and_says_where_they_came_from(runs, sources):
    run, file = runs("stable"), sources / "sd1" / "unet" / "diffusion_pytorch_model.safetensors"
    settings, params = read(run)
    assert_equal(params, interop.load(sources / "sd1").params)
    assert sorted(path.name for path in (run / "checkpoints" / "1").iterdir() if path.is_dir()) == ["ema_ema", "meta", "step"]
    record = json.loads((run / "source.json").read_text())
    assert record["sha256"] == {file.name: hashlib.sha256(file.read_bytes()).hexdigest()}
    assert (run / "licence" / "LICENSE.md").read_text() == "be kind"
    assert settings.sources.autoencoder == str(run / "autoencoder")
    assert settings.data.image_shape == (32, 32, 3)
    other = dataclasses.replace(settings.sampling, spacing="logsnr")  # whatever the offset of the published time steps
    assert settings.sampling.steps_offset == 1
    assert config.validated(dataclasses.replace(settings, sampling=other)).sampling == other
    _, params = read(run / "autoencoder", "autoencoder")
    np.testing.assert_allclose(params["latent"]["scale"], 1 / 0.18215, rtol=1e-6)


def test_an_import_again_changes_nothing_and_another_is_refused(runs, sources, command):
    run = runs("small")
    before = {path: path.stat().st_mtime_ns for path in (run / "checkpoints").rglob("*") if path.is_file()}
    assert command("import", sources / "small", "--workdir", run, "--data", "other")[0] == 0
    assert storage.read_config(run).data.name == "other"
    assert command("import", sources / "small", "--workdir", run, "--data", "photos")[0] == 0
    assert {path: path.stat().st_mtime_ns for path in (run / "checkpoints").rglob("*") if path.is_file()} == before
    status, _, error = command("import", sources / "consistency_diffusers", "--workdir", run)
    assert (status, error) == (1, f"jaxdiff: {run} holds another run; choose another --workdir")


@pytest.mark.parametrize("name", ["small", "consistency", "adm"])
def test_the_denoiser_of_a_run_is_that_of_its_source(name, runs, sources):
    trained, labels = load_run(runs(name), clip=False), jnp.arange(2)
    level, x = trained.levels[0], jax.random.normal(jax.random.key(0), (2, *trained.shape))
    given = {"label": labels} if storage.read_config(runs(name)).model.num_classes else {}
    options = {"head_channels": 16, "new_order": False} if name == "adm" else {}
    of_run = jax.jit(lambda denoiser, x: denoiser(labels)(x, level))(trained.denoiser, x)
    of_source = jax.jit(lambda x: interop.denoiser(sources / SOURCES[name][0], **options, **given)(x, level))(x)
    np.testing.assert_allclose(of_run, of_source, rtol=0, atol=1e-5 * np.abs(of_source).max())


CONTEXT = "jaxdiff: context: got none, this run takes vectors [T, 12] or [2, T, 12]"
NO_DATA = "jaxdiff: no data set is named; write data.name; of published weights: import them again with --data NAME"
TABLE = [  # a command on a run, and the one line where it cannot be done
    ("small", ("sample", "RUN", "--num", "2", "--steps", "2"), None),
    ("small", ("evaluate", "RUN", "--num", "10", "--steps", "2", "--epochs", "1", "--metrics", "fid", "--data-dir", "DATA"), None),
    ("small", ("report", "RUN", "--num", "2", "--data-dir", "DATA"), None),
    ("small", ("verify", "RUN"), None),
    ("small", ("inspect", "RUN"), "jaxdiff: RUN holds no .safetensors"),
    ("small", ("export", "RUN", "--out", "RUN/out"), None),
    ("small", ("latents", "RUN"), "jaxdiff: RUN is a diffusion run, here an autoencoder run is wanted"),
    ("stable", ("sample", "RUN", "--num", "2"), CONTEXT),
    ("stable", ("evaluate", "RUN", "--num", "10"), NO_DATA),
    ("stable", ("evaluate", "RUN", "--likelihood"), "jaxdiff: --likelihood: of images there is none in latents"),
    ("adm", ("evaluate", "RUN", "--num", "10"), NO_DATA),
    ("adm", ("export", "RUN", "--out", "RUN/out"), "jaxdiff: diffusers has no network with published.learned_variance"),
    ("consistency", ("sample", "RUN", "--num", "2", "--labels", "0,1"), None),
    ("consistency", ("sample", "RUN", "--steps", "3"), "jaxdiff: sampling: sampling.steps must be one of 40, 20"),
    ("autoencoder", ("sample", "RUN"), "jaxdiff: RUN is an autoencoder run, here a diffusion run is wanted"),
    ("autoencoder", ("latents", "RUN"), NO_DATA),
    ("autoencoder", ("verify", "RUN"), "jaxdiff: RUN is an autoencoder run, here a diffusion run is wanted"),
]


@pytest.mark.parametrize(("name", "words", "line"), TABLE, ids=lambda value: value[0] if isinstance(value, tuple) else "")
def test_every_command_works_on_an_imported_run_or_says_why_not(name, words, line, runs, command, photos):
    words = [word.replace("RUN", str(runs(name))).replace("DATA", photos) for word in words]
    status, _, error = command(*words)
    if line is None:
        assert (status, error) == (0, "")
    else:
        assert status == 1
        assert error.startswith(line.replace("RUN", str(runs(name))))
        assert "\n" not in error


@pytest.mark.parametrize("name", ["ddpm", "stable", "consistency", "autoencoder"])
def test_what_is_exported_is_what_was_imported(name, runs, sources, tmp_path):
    """The values are exact in float16, and the same table of names serves both ways."""
    exported.export_run(runs(name), tmp_path / "out", "float16")
    for path in sorted((sources / SOURCES[name][0]).rglob("*.safetensors")):
        theirs, mine = (
            interop.open_tensors(each) for each in (path, tmp_path / "out" / path.relative_to(sources / SOURCES[name][0]))
        )
        assert set(mine) == set(theirs)
        for array in theirs:
            np.testing.assert_array_equal(mine[array], theirs[array], err_msg=array)


def test_a_scale_for_each_channel_of_latents_is_folded_into_their_layers(runs, tmp_path, monkeypatch):
    """Diffusers knows one number for all."""
    run = runs("stable") / "autoencoder"
    settings, params = read(run, "autoencoder")
    params["latent"] = {"shift": jnp.array([0.5, -1.0, 0.0, 2.0]), "scale": jnp.array([1.0, 3.0, 0.25, 2.0])}
    monkeypatch.setattr(storage, "read_params", lambda *_: (1, params))
    exported.export_run(run, tmp_path / "out")
    encode, decode = interop.autoencoder(tmp_path / "out")
    networks, images = build.codec(settings), jax.random.uniform(jax.random.key(0), (1, 16, 16, 3), minval=-1)
    posterior = jax.jit(networks.encode)(params, images)
    written = parts.find(tmp_path / "out").autoencoder
    modules = loading.autoencoder_modules(written.options)
    again = jax.jit(autoencoder.encode(modules[0]))(jax.tree.map(np.asarray, loading.autoencoder_params(written)), images)
    np.testing.assert_allclose(jax.jit(encode)(images), posterior.mean, atol=1e-5)
    np.testing.assert_allclose(again[1], posterior.std, rtol=1e-4)
    np.testing.assert_allclose(jax.jit(decode)(posterior.mean), jax.jit(networks.decode)(params, posterior.mean), atol=1e-5)


def test_an_export_into_a_folder_that_is_not_empty_is_refused(runs, tmp_path):
    (tmp_path / "mine").write_text("")
    with pytest.raises(ConfigError, match="is not empty, and is left as it is; choose another --out"):
        exported.export_run(runs("small"), tmp_path)


def test_an_export_that_fails_leaves_nothing(runs, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(exported, "card", full)
    with pytest.raises(ConfigError, match=r"out cannot be written \(No space left on device\); choose another --out"):
        exported.export_run(runs("small"), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({}, "published.groups 0 (set 32)"),
        ({"groups": 32}, "published.told logsnr (set step)"),
        ({"groups": 32, "told": "step", "base": 100.0}, "published.base or published.features of its own"),
        ({"groups": 32, "told": "step", "told_scale": 0.5}, "published.told_scale 0.5 (set 1)"),
        ({"groups": 32, "told": "log_sigma", "told_scale": 0.25}, "published.told_scale 0.25 (set 250)"),
        ({"groups": 32, "told": "step", "shift": 0.5}, "published.shift 0.5 (set a whole number)"),
    ],
)
def test_options_that_diffusers_lacks_are_named(changed, message, tmp_path):
    network = {"kind": "unet", "in_channels": 3, **vars(config.Model()), **vars(config.Published()), **changed}
    with pytest.raises(DataError) as error:
        interop.save_network(tmp_path / "out", interop.Network({}, network, (8, 8)))
    assert message in str(error.value)
    assert not (tmp_path / "out").exists()


def test_a_lora_is_merged_into_the_run_that_it_adapts(runs, sources, command, tmp_path):
    file = sources / "lora_kohya" / "pytorch_lora_weights.safetensors"
    status, said, error = command("import", file, "--adapt", runs("stable"), "--workdir", tmp_path / "run", "--scale", "0.5")
    assert (status, error) == (0, "")
    assert re.search(r"not opened: \d+ arrays of text encoders", said)
    settings, base = read(runs("stable"))
    adapters = interop.load_lora(file, interop.load(sources / "sd1").config).params
    assert_equal(read(tmp_path / "run")[1], lora.merged(base, adapters, 0.5))
    assert storage.source_directories(settings, tmp_path / "run")["autoencoder"] == runs("stable") / "autoencoder"


def test_training_starts_from_the_params_of_a_run(runs):
    settings = config.of_run(runs("small"))
    assert settings.sources.init == str(runs("small"))
    start = jax.jit(functools.partial(build.init, settings))(jax.random.key(0), read(runs("small"))[1])
    assert_equal(start.params, read(runs("small"))[1])
    assert_equal(start.ema["ema"], start.params)


@pytest.mark.parametrize("place", ["init", "teacher"])
def test_training_does_not_write_into_the_run_that_it_starts_from(place, runs, command):
    before = (runs("small") / "config.json").read_text()
    student = ("--objective", "consistency", "--sources.init", "", "--sources.teacher", runs("small"))
    levels = (
        "--distillation.steps",
        "4",
        "--sampling.steps",
        "1",
        "--sampling.spacing",
        "time",
        "--sampling.sampler",
        "consistency",
    )
    flags = (*student, *levels) if place == "teacher" else ()
    status, _, error = command("train", runs("small"), "--workdir", runs("small"), "--steps", "5", *flags)
    assert status == 1
    assert error == f"jaxdiff: --workdir {runs('small')} is the run of sources.{place}, and stays as it is; choose another"
    assert (runs("small") / "config.json").read_text() == before


def train_on(runs, command, photos, workdir, *flags):
    small = ("--data.batch-size", "2", "--sampling.steps", "1", "--sampling.num", "2", "--steps", "2", "--log-every", "1")
    status, _, error = command("train", runs("small"), "--workdir", workdir, "--data-dir", photos, *small, *flags)
    assert (status, error) == (0, "")
    return storage.read_config(workdir)


def test_adapters_of_a_run_are_trained_and_exported_alone(runs, command, photos, tmp_path):
    _, before = read(runs("small"))
    settings = train_on(runs, command, photos, tmp_path / "run", "--distillation.lora-rank", "1")
    _, adapters = storage.read_params(settings, tmp_path / "run")
    assert_equal(read(runs("small"))[1], before)
    assert max(float(jnp.max(jnp.abs(leaf))) for leaf in jax.tree.leaves(adapters)) > 0
    exported.export_run(tmp_path / "run", tmp_path / "out")
    again = interop.load_lora(tmp_path / "out" / exported.LORA, experiments.options(storage.read_config(runs("small"))))
    assert_equal(again.params, adapters)


def test_a_run_is_the_teacher_of_a_consistency_student(runs, command, photos, tmp_path):
    teacher = ("--objective", "consistency", "--sources.init", "", "--sources.teacher", str(runs("small")))
    levels = ("--distillation.steps", "4", "--distillation.spacing", "trailing", "--sampling.spacing", "trailing")
    settings = train_on(runs, command, photos, tmp_path / "run", *teacher, *levels, "--sampling.sampler", "consistency")
    before, after = read(runs("small"))[1], storage.read_params(settings, tmp_path / "run")[1]
    moved = jax.tree.map(lambda a, b: float(jnp.max(jnp.abs(a - b))), before, after)
    assert 0 < max(jax.tree.leaves(moved)) < 0.01
    assert train.storage.read_levels(settings, tmp_path / "run").sigma.shape == (5,)


def test_a_network_that_is_broken_does_not_verify(runs, command, monkeypatch):
    real = storage.read_params

    def broken(*args):
        step, params = real(*args)
        params["Conv_0"]["bias"] = jnp.full_like(params["Conv_0"]["bias"], jnp.nan)
        return step, params

    monkeypatch.setattr(storage, "read_params", broken)
    status, said, _ = command("verify", runs("small"))
    assert status == 1
    assert said.startswith("FAILED  finite at 50 levels, but at logsnr")


def test_inspect_lists_arrays_and_their_family(sources, command):
    status, said, _ = command("inspect", sources / "ddpm" / "unet")
    lines = said.splitlines()
    assert status == 0
    assert lines[0] == "conv_in.bias  32  float16"
    assert lines[-1] == "268 arrays, 1624323 numbers, 3.2 MB; family: diffusers' UNet"
