"""Latents encoded once: what is kept, how training reads it, and what is said of caches that do not fit."""

import dataclasses
import functools
import json
import pathlib
import shutil
import subprocess
import sys
import types

import jax
import numpy as np
import pytest
import tensorflow_datasets as tfds
from small_unet import SmallUNet
from tensorflow_datasets.core import shuffle

from jaxdiff import data, objectives
from jaxdiff.app import build
from jaxdiff.app.build import networks
from jaxdiff.app.config import Autoencoder, Data, Experiment, Model, Optimizer, Sources, to_dict
from jaxdiff.app.runs import latent_cache, storage, train
from jaxdiff.data import latents as files
from jaxdiff.io.errors import ConfigError, DataError, NonFiniteError
from jaxdiff.likelihood import Posterior
from jaxdiff.training import checkpoint

pytestmark = pytest.mark.usefixtures("small_autoencoder")

DIGITS = Data(name="digits", image_shape=(8, 8, 1), batch_size=16)
TINY = Model(channels=8, multipliers=(1, 2), blocks=1, head_channels=8)
ONE_LEVEL = dataclasses.replace(TINY, multipliers=(1,))
CHUNK = 100


def untrained(workdir, seed, size=0.2, model=TINY, **options):
    """An autoencoder's run of random params of that size, with latents of another mean and scale than 0 and 1."""
    made = Experiment(objective="autoencoder", data=DIGITS, model=model, autoencoder=Autoencoder(latent_channels=2, **options))
    shapes, rng = build.state_shapes(made), np.random.default_rng(seed)
    params = jax.tree.map(lambda leaf: size * rng.normal(size=leaf.shape).astype(leaf.dtype), shapes.params)
    params["latent"] = {"shift": np.array([0.5, -1.0], np.float32), "scale": np.array([2.0, 0.5], np.float32)}
    rest = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    last = np.full((), made.steps, np.int32)
    with checkpoint.manager(workdir) as to:
        checkpoint.save(to, dataclasses.replace(rest, step=last, params=params, ema={"ema": params}), to_dict(made))
    (workdir / "config.json").write_text(json.dumps(to_dict(made)))
    return workdir


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory):
    return untrained(tmp_path_factory.mktemp("runs") / "autoencoder", seed=0)


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    return untrained(tmp_path_factory.mktemp("runs") / "other", seed=1)


@pytest.fixture(scope="module")
def cached(autoencoder, tmp_path_factory, tfds_dir):
    """Of both splits, with mirrored images, in batches that do not divide them."""
    out = tmp_path_factory.mktemp("caches") / "flipped"
    made = latent_cache.write_latents(autoencoder, out, ("train", "test"), data_dir=tfds_dir, batch_size=100, flip=True)
    size = sum(path.stat().st_size for path in out.iterdir())
    assert made == (out, {"train": 1498, "train_mirrored": 1498, "test": 299, "test_mirrored": 299}, size)
    assert str(made).startswith("latents (train 1498, train_mirrored 1498, test 299, test_mirrored 299; ")
    assert str(made).endswith(f" MB): {out}")
    return out


def named(directory, **changes):
    return dataclasses.replace(DIGITS, latents=str(directory), **changes)


@functools.cache
def encoder(autoencoder):
    config = storage.read_config(autoencoder)
    params = storage.read_params(config, autoencoder)[1]
    return functools.partial(jax.jit(build.codec(config).encode), params)


def directly(autoencoder, pixels):
    """The moments of images, encoded here, on one device and in other batches."""
    chunks = [data.normalize(pixels[start : start + CHUNK]) for start in range(0, len(pixels), CHUNK)]
    moments = [encoder(autoencoder)(np.resize(x0, (CHUNK, 8, 8, 1))) for x0 in chunks]
    return [np.concatenate(part)[: len(pixels)] for part in zip(*moments, strict=True)]


def assert_same(rows, moments):
    for kept, expected in zip((rows["mean"], rows["std"]), moments, strict=True):
        np.testing.assert_allclose(kept, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("split", ["train", "test", "train[10%:20%]"])
def test_the_cache_holds_the_moments_of_every_image_in_order(cached, autoencoder, tfds_dir, split):
    images = data.load_images(DIGITS, split, tfds_dir)
    kept = latent_cache.read_latents(cached, split, flip=True)
    assert (kept.num_examples, kept.num_classes) == (images.num_examples, 10)
    everything = np.arange(images.num_examples)
    pixels, labels = images.fetch(everything)
    for rows, shown in ((kept.rows(everything), pixels), (kept.rows(everything + images.num_examples), pixels[:, :, ::-1])):
        assert_same(rows, directly(autoencoder, shown))
        assert rows["mean"].shape == (images.num_examples, 4, 4, 2)
        np.testing.assert_array_equal(rows["label"], labels)
        assert {name: value.dtype for name, value in rows.items()} == {"mean": np.float32, "std": np.float32, "label": np.int32}


def test_a_codebook_has_no_spread(tmp_path, tfds_dir):
    workdir = untrained(tmp_path / "vq", seed=0, model=ONE_LEVEL, codebook=8)
    latent_cache.write_latents(workdir, tmp_path / "out", ("test",), data_dir=tfds_dir)
    rows = latent_cache.read_latents(tmp_path / "out", "test").rows(np.arange(299))
    assert_same(rows, directly(workdir, data.load_images(DIGITS, "test", tfds_dir).fetch(np.arange(299))[0]))
    assert not rows["std"].any()


def test_large_caches_are_read_from_disk_to_the_same_values(cached, monkeypatch):
    held = latent_cache.read_latents(cached, "train", flip=True)
    monkeypatch.setattr(data, "IN_MEMORY", 0)
    stored = latent_cache.read_latents(cached, "train", flip=True)
    assert stored.rows.__code__ is not held.rows.__code__
    indices = np.array([3, 2995, 3])
    for name, values in held.rows(indices).items():
        np.testing.assert_array_equal(stored.rows(indices)[name], values)


@pytest.mark.parametrize("flip", [False, True])
def test_batches_are_those_of_the_images(cached, autoencoder, tfds_dir, flip):
    """The same examples, mirrored or not, in the same places, from any step and in the rows of any process."""
    images, kept = data.load_images(DIGITS, "train", tfds_dir), latent_cache.read_latents(cached, "train", flip)
    options = {"seed": 3, "flip": flip, "start": 92, "rows": np.arange(8, 16)}  # the epoch ends in the second batch
    streams = data.batches(images, 16, **options), data.batches(kept, 16, **options)
    for _ in range(3):
        of_images, of_latents = map(next, streams)
        assert set(of_latents) == {"mean", "std", "label", "index"}
        assert_same(of_latents, directly(autoencoder, of_images["image"]))
        for name in ("label", "index"):
            np.testing.assert_array_equal(of_latents[name], of_images[name])


def test_every_step_draws_latents_afresh(cached):
    """Of the same example in two epochs: other draws of the same moments, whose mean and spread they have."""
    rows = latent_cache.read_latents(cached, "train").rows(np.arange(64))
    state = types.SimpleNamespace(frozen={})
    drawing = objectives.latent(lambda params, state, batch, key: batch["image"], lambda frozen, b: Posterior(b["mean"], b["std"]))
    draw = jax.jit(lambda key: drawing(None, state, rows | {"index": np.arange(64)}, key))
    seen = [draw(jax.random.fold_in(jax.random.key(0), number)) for number in range(60)]
    draws = (np.stack(seen) - rows["mean"]) / rows["std"]
    assert len({bytes(draw) for draw in draws}) == 60
    assert abs(draws.mean()) < 5 / np.sqrt(draws.size)
    assert abs(draws.std() - 1) < 5 / np.sqrt(2 * draws.size)


def test_training_from_the_cache_is_training_on_the_fly(cached, autoencoder, tmp_path, tfds_dir, monkeypatch):
    """To rounding, as the two compile the encoder in different programs; on one device, by a small network."""
    monkeypatch.setattr(networks, "UNet", SmallUNet)
    monkeypatch.setattr(build, "layout", functools.partial(build.layout, devices=jax.devices()[:1]))
    trained = []
    for directory in ("", str(cached)):
        config = Experiment(
            data=named(directory, flip=True),
            model=ONE_LEVEL,
            sources=Sources(autoencoder=str(autoencoder)),
            optimizer=Optimizer(learning_rate=1e-2),
            steps=3,
            log_every=1,
        )
        workdir = tmp_path / (pathlib.Path(directory).name or "images")
        train.train_run(config, workdir, tfds_dir)
        losses = [json.loads(line)["loss"] for line in (workdir / "metrics.jsonl").read_text().splitlines()]
        trained.append((losses, storage.read_params(config, workdir)[1]))
    assert len(set(trained[0][0])) == 3
    np.testing.assert_allclose(trained[1][0], trained[0][0], rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5), trained[1][1], trained[0][1])


def test_any_program_reads_the_cache(cached):
    """A fresh process with nothing but tensorflow-datasets."""
    code = f"""
import sys
sys.modules["jaxdiff"] = None
import tensorflow_datasets as tfds
builder = tfds.builder_from_directory({str(cached)!r})
source = builder.as_data_source("train")
seventh, about = source[7], builder.info.metadata
print(len(source), seventh["mean"].tolist(), seventh["label"], about["image_shape"], "tensorflow" in sys.modules)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    rows = latent_cache.read_latents(cached, "train").rows(np.array([7]))
    expected = f"1498 {rows['mean'][0].tolist()} {rows['label'][0]} [8, 8, 1] False"
    assert result.stdout.strip() == expected, result.stderr


def test_large_splits_do_not_pass_through_the_shuffler_of_tfds(autoencoder, tmp_path, tfds_dir, monkeypatch):
    """Which keeps all in memory, and beyond 1000 MB needs TensorFlow; several files a split hold their examples in order."""
    monkeypatch.setattr(shuffle, "MAX_MEM_BUFFER_SIZE", 1)
    monkeypatch.setattr(files, "SHARD", 100 * 2 * 4 * 4 * 4 * 2)
    latent_cache.write_latents(autoencoder, tmp_path / "out", ("test",), data_dir=tfds_dir)
    assert tfds.builder_from_directory(str(tmp_path / "out")).info.splits["test"].shard_lengths == [100, 100, 99]
    rows = latent_cache.read_latents(tmp_path / "out", "test").rows(np.arange(299))
    assert_same(rows, directly(autoencoder, data.load_images(DIGITS, "test", tfds_dir).fetch(np.arange(299))[0]))


ORIGIN = files.Origin("01234567", "runs/kl", "digits", (8, 8, 1), "pad", 1, False)


def some(num=3):
    """Batches of moments."""
    for number in range(num):
        rows = np.full((5, 4, 4, 2), number, np.float32)
        yield {"mean": rows, "std": rows, "label": np.zeros(5, np.int32)}


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_write_leaves_nothing(tmp_path, monkeypatch, error):
    write = tfds.core.SequentialWriter.add_examples

    def interrupted(self, examples):
        write(self, examples)
        assert any(tmp_path.rglob("*.array_record*"))
        raise error("no space left\nat byte 5")

    monkeypatch.setattr(tfds.core.SequentialWriter, "add_examples", interrupted)
    with pytest.raises((KeyboardInterrupt, DataError)) as raised:
        files.write_latents(tmp_path / "out", {"train": some()}, 10, ORIGIN)
    assert list(tmp_path.iterdir()) == []
    if error is RuntimeError:
        assert str(raised.value) == f"latents could not be written to {tmp_path / 'out'}: no space left"


def test_a_full_disk_is_said(tmp_path):
    """array_record tells of it only when a file is closed."""
    code = f"""
import pathlib, resource, signal, sys
sys.path.insert(0, "tests")
import test_latents as here
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
try:
    here.files.write_latents(pathlib.Path({str(tmp_path / "out")!r}), {{"train": here.noise()}}, 10, here.ORIGIN)
except here.DataError as error:
    print(error)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.startswith(f"latents could not be written to {tmp_path / 'out'}: "), result.stderr
    assert "File too large" in result.stdout
    assert result.stdout.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def noise():
    rng = np.random.default_rng(0)
    yield {name: rng.normal(size=(500, 4, 4, 2)).astype(np.float32) for name in ("mean", "std")} | {
        "label": np.zeros(500, np.int32)
    }


def test_a_killed_write_does_not_count(tmp_path):
    """What it leaves is no cache and in nobody's way."""
    code = f"""
import os, pathlib, sys
sys.path.insert(0, "tests")
import test_latents as here
def killed():
    yield from here.some()
    os._exit(9)
here.files.write_latents(pathlib.Path({str(tmp_path / "out")!r}), {{"train": killed()}}, 10, here.ORIGIN)
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 9
    (draft,) = tmp_path.iterdir()
    assert draft.name.startswith(".out.")
    assert any(draft.glob("*.array_record*"))
    with pytest.raises(ConfigError, match="is no cache of latents; write one: jaxdiff latents RUN --out "):
        latent_cache.read_latents(tmp_path / "out", "train")
    files.write_latents(tmp_path / "out", {"train": some()}, 10, ORIGIN)
    assert latent_cache.read_latents(tmp_path / "out", "train").num_examples == 15


def test_a_cache_is_never_overwritten(cached, autoencoder, tfds_dir):
    before = {path.name: path.stat().st_mtime_ns for path in cached.iterdir()}
    with pytest.raises(ConfigError, match=r"exists already and stays as it is; remove it, or choose another --out$"):
        latent_cache.write_latents(autoencoder, cached, data_dir=tfds_dir)
    with pytest.raises(ConfigError, match="exists already"):
        files.write_latents(cached, {}, 10, files.open_latents(cached)[1])
    assert before == {path.name: path.stat().st_mtime_ns for path in cached.iterdir()}


def test_what_cannot_be_cached(autoencoder, tmp_path, tfds_dir):
    broken = untrained(tmp_path / "broken", seed=0, size=np.nan)
    for error, arguments, message in (
        (ConfigError, (tmp_path, ("train",)), f"no run in {tmp_path}; train one"),
        (ConfigError, (autoencoder, ("train[:10]",)), "--split train[:10]: latents are kept of whole splits, such as train;"),
        (DataError, (autoencoder, ("valid",)), "split 'valid': Unknown split 'valid'. Should be one of"),
        (NonFiniteError, (broken, ("test",)), "the latents hold NaN or infinite values; train"),
    ):
        run_, splits = arguments
        with pytest.raises(error) as raised:
            latent_cache.write_latents(run_, tmp_path / "out", splits, data_dir=tfds_dir)
        assert message in str(raised.value)
        assert "\n" not in str(raised.value)
    with pytest.raises(ConfigError, match="--batch-size must be at least 1, got 0"):
        latent_cache.write_latents(autoencoder, tmp_path / "out", data_dir=tfds_dir, batch_size=0)
    assert [path.name for path in tmp_path.iterdir()] == ["broken"]


def test_a_cache_that_fits_is_taken(cached, autoencoder, tmp_path):
    """Also when the run has moved."""
    shutil.copytree(autoencoder, tmp_path / "moved")
    assert latent_cache.load_latents(named(cached, flip=True), tmp_path / "moved").num_examples == 1498


def test_latents_of_another_autoencoder(cached, autoencoder, other, tmp_path, tfds_dir):
    prints = [storage.fingerprint(workdir) for workdir in (autoencoder, other)]
    with pytest.raises(ConfigError) as raised:
        latent_cache.load_latents(named(cached), other)
    assert str(raised.value) == (
        f"latents {cached} are of the autoencoder {autoencoder} as it was then ({prints[0]}), {other} is another ({prints[1]}); "
        f"write them anew: jaxdiff latents {other} --out DIR, and set data.latents to it"
    )
    config = Experiment(data=named(cached), model=ONE_LEVEL, sources=Sources(autoencoder=str(other)))
    with pytest.raises(ConfigError, match="is another"):
        train.train_run(config, tmp_path / "run", tfds_dir)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "mnist"}, "data.name is mnist, of the latents {} it is digits; set the same, or no data.latents"),
        ({"image_shape": (16, 16, 1)}, "data.image_shape is (16, 16, 1), of the latents {} it is (8, 8, 1); set"),
        ({"fit": "resize"}, "data.fit is resize, of the latents {} it is pad; set"),
        ({"reduce": 2}, "data.reduce is 2, of the latents {} it is 1; set"),
        ({"split": "valid"}, "latents {} have the splits test, not 'valid'; write them with --split"),
        ({"split": "all"}, "latents {} have the splits test, not 'all'; write them with --split"),
        ({"split": "test_mirrored"}, "latents {} have the splits test, not 'test_mirrored'; write them with --split"),
        ({"split": "test[:x]"}, "latents {}, split 'test[:x]': "),
        ({"split": "test[:0]"}, "latents {}, split 'test[:0]': "),
        ({"flip": True}, "data.flip wants mirrored images, which latents {} do not hold; write them anew: jaxdiff latents "),
    ],
    ids=str,
)
def test_latents_of_other_images(plain, autoencoder, changes, message):
    with pytest.raises((ConfigError, DataError)) as raised:
        latent_cache.load_latents(dataclasses.replace(named(plain, split="test"), **changes), autoencoder)
    assert message.format(plain) in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.fixture(scope="module")
def plain(autoencoder, tmp_path_factory, tfds_dir):
    """Of one split, without mirrored images."""
    return latent_cache.write_latents(
        autoencoder, tmp_path_factory.mktemp("caches") / "plain", ("test",), data_dir=tfds_dir
    ).directory


def test_directories_that_are_no_cache(plain, autoencoder, tmp_path, tfds_dir):
    (prepared,) = pathlib.Path(tfds_dir, "digits").iterdir()
    shutil.copytree(plain, tmp_path / "cut")
    (tmp_path / "cut" / "metadata.json").write_text('{"fingerprint": "0')
    for directory in (tmp_path / "nowhere", autoencoder, prepared, tmp_path / "cut"):
        with pytest.raises(ConfigError) as raised:
            latent_cache.load_latents(named(directory), autoencoder)
        assert str(raised.value) == f"{directory} is no cache of latents; write one: jaxdiff latents RUN --out {directory}"


@pytest.mark.parametrize("in_memory", [data.IN_MEMORY, 0])
@pytest.mark.parametrize("damage", ["flipped", "cut", "gone"])
def test_damaged_files_are_found(plain, autoencoder, tmp_path, monkeypatch, in_memory, damage):
    monkeypatch.setattr(data, "IN_MEMORY", in_memory)
    shutil.copytree(plain, tmp_path / "copy")
    (path,) = (tmp_path / "copy").glob("*.array_record*")
    content = bytearray(path.read_bytes())
    if damage == "flipped":
        for position in range(len(content) // 2, len(content) // 2 + 4):
            content[position] ^= 0x40
    path.write_bytes(content[: len(content) // 2] if damage == "cut" else content)
    if damage == "gone":
        path.unlink()
    with pytest.raises(DataError) as raised:
        latent_cache.load_latents(named(tmp_path / "copy", split="test"), autoencoder).rows(np.arange(299))
    assert str(raised.value).startswith(f"latents {tmp_path / 'copy'}")
    assert "\n" not in str(raised.value)
