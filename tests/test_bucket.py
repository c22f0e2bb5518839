"""Runs in a bucket: the life of one, beside the same run on a disk; and what is said where a path cannot be used."""

import dataclasses
import importlib.util
import json
import pathlib
import subprocess
import sys
import time

import flax.linen as nn
import gcs_proxy
import gcs_server
import jax
import numpy as np
import pytest
from PIL import Image
from raw_files import write_mnist
from test_latents import untrained

from jaxdiff import data
from jaxdiff.app import build, cli
from jaxdiff.app.cli import doctor_command
from jaxdiff.app.runs import latent_cache, storage
from jaxdiff.data.latents import check_free
from jaxdiff.evaluate import reference_classifier
from jaxdiff.io import copies, files, gcs, paths, uploads
from jaxdiff.io.errors import ConfigError, DataError
from jaxdiff.training import checkpoint

TINY = (
    *("--data.split", "train[:150]", "--data.held-out", "test[:100]", "--data.batch-size", "8"),
    *("--model.channels", "8", "--model.attention", "--steps", "20", "--log-every", "1"),
    *("--checkpoint-every", "10", "--sampling.every", "0", "--sampling.num", "10", "--sampling.steps", "2"),
    *("--evaluation.num", "0"),
)
BUCKET = "gs://bucket"
RECIPE = pathlib.Path(__file__).parents[1] / "configs" / "digits.py"

pytestmark = pytest.mark.usefixtures("small_unet", "small_autoencoder", "one_device")


@pytest.fixture(scope="module")
def proxy():
    """What all requests to the bucket pass."""
    with gcs_proxy.proxy() as proxy:
        yield proxy


@pytest.fixture(scope="module", autouse=True)
def root(tmp_path_factory, proxy):
    """The folder that is the bucket."""
    folder = tmp_path_factory.mktemp("buckets")
    (folder / "bucket").mkdir()
    with gcs_server.server(folder, proxy):
        yield folder / "bucket"


@pytest.fixture(scope="module", autouse=True)
def caches(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAXDIFF_CACHE_DIR", str(tmp_path_factory.mktemp("caches")))
        yield


ONE_DEVICE = """
import conftest, jax, small_unet
one = jax.devices()[:1]
jax.devices = lambda *backend: one
small_unet.replace_networks()
small_unet.cli.entry()
"""  # jaxdiff as in the tests' own process, to the bit


class SmallClassifier(nn.Module):
    """Two layers in place of the classifier that measures samples: it compiles in no time."""

    num_classes: int

    @nn.compact
    def __call__(self, x, train=False):
        features = nn.Dense(8, name="features")(x.reshape(len(x), -1))
        return nn.Dense(self.num_classes, name="logits")(features), features


def words(workdir, tfds_dir):
    return ["train", str(RECIPE), "--workdir", str(workdir), "--data-dir", tfds_dir, *TINY, "--power-ema", "0.05", "0.1"]


def final_state(workdir):
    workdir = paths.path(workdir)
    single = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return checkpoint.restore(workdir, storage.with_sharding(build.state_shapes(storage.read_config(workdir)), single))


def metrics(workdir):
    rows = [json.loads(line) for line in (paths.path(workdir) / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name != "steps_per_s"} for row in rows]


@pytest.fixture(scope="module")
def local(tmp_path_factory, tfds_dir, small_unet, one_device):
    """A run on the disk."""
    workdir = tmp_path_factory.mktemp("runs") / "run"
    assert cli.main(words(workdir, tfds_dir)) == 0
    return workdir


@pytest.fixture(scope="module")
def remote(root, tfds_dir, small_unet, one_device):
    """The same run in the bucket, killed while it writes its second checkpoint, and resumed."""
    workdir, saved = f"{BUCKET}/run", root / "run" / "checkpoints"
    command = [sys.executable, "-c", ONE_DEVICE, *words(workdir, tfds_dir)]  # a forked process hangs there
    process = subprocess.Popen(command, cwd=pathlib.Path(__file__).parent, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 200
    while process.poll() is None and not (saved / "20").exists():
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.kill()
    assert process.wait() == -9, process.communicate()[1]
    before = checkpoint.steps(workdir)
    assert before == [10]
    assert cli.main(words(workdir, tfds_dir)) == 0
    return paths.path(workdir)


def assert_same_run(local, remote):
    one, other = final_state(local), final_state(remote)
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(np.asarray(x), np.asarray(y)), one, other)
    assert metrics(local) == metrics(remote)


def test_a_run_in_a_bucket_that_was_killed_is_bit_equal_to_one_on_a_disk(local, remote, root):
    assert_same_run(local, remote)
    assert [row["step"] for row in metrics(remote)] == list(range(1, 21))
    assert (root / "run" / "samples.png").read_bytes() == (local / "samples.png").read_bytes()
    assert checkpoint.steps(remote) == checkpoint.steps(local) == [10, 20]
    for name in ("power_ema/000000010.npz", "power_ema/000000020.npz"):
        assert (root / "run" / name).read_bytes() == (local / name).read_bytes()
    assert len(list((root / "run" / "tensorboard").iterdir())) == 2
    assert not pathlib.Path("gs:").exists()


def test_a_run_is_the_same_where_a_third_of_all_requests_fails(local, proxy, tfds_dir, monkeypatch):
    for name in ("PAUSE", "LONGEST_PAUSE"):
        monkeypatch.setattr(gcs, name, getattr(gcs, name) / 100)
    monkeypatch.setattr(proxy, "fault", gcs_proxy.failing(1 / 3))
    assert cli.main(words(f"{BUCKET}/failing", tfds_dir)) == 0
    assert_same_run(local, f"{BUCKET}/failing")


def test_commands_read_and_write_in_the_bucket(remote, root, tfds_dir, capsys, monkeypatch):
    monkeypatch.setattr(reference_classifier, "Classifier", SmallClassifier)
    out = ["--out", f"{BUCKET}/pictures/samples.npz", "--num", "10", "--seed", "3"]
    assert cli.main(["sample", str(remote), *out]) == 0
    assert capsys.readouterr().out == "10 samples of step 20: gs://bucket/pictures/samples.npz\n"
    with np.load(root / "pictures" / "samples.npz") as file:
        assert file["image"].shape == (10, 8, 8, 1)
    assert cli.main(["ema", str(remote), "--length", "0.1"]) == 0
    assert "gs://bucket/run_ema_0.1: the average of length 0.1 at step 20" in capsys.readouterr().out
    assert checkpoint.steps(f"{BUCKET}/run_ema_0.1") == [20]
    measured = ["--num", "100", "--metrics", "fid", "--epochs", "1", "--data-dir", tfds_dir]
    assert cli.main(["evaluate", str(remote), *measured]) == 0
    assert cli.main(["evaluate", str(remote), "--stored"]) == 0
    assert "| run | ddim 2, guidance 2 | 4 |" in capsys.readouterr().out
    assert cli.main(["report", str(remote), "--num", "0"]) == 0
    assert "loss" in (root / "run" / "report.html").read_text()


def test_a_student_learns_from_a_teacher_in_the_bucket(remote, root, tfds_dir, capsys):
    command = words(f"{BUCKET}/student", tfds_dir)
    taught = ["--objective", "guided", "--sources.teacher", str(remote), "--distillation.guidance", "1", "4", "--steps", "2"]
    assert cli.main([*command, *taught]) == 0
    recorded = json.loads((root / "student" / "sources.json").read_text())
    assert recorded["teacher"]["run"] == "gs://bucket/run"
    assert (root / "student" / "samples.png").exists()


def test_latents_in_the_bucket_are_copied_to_the_disk_once(root, tfds_dir, monkeypatch):
    run, out = untrained(paths.path(f"{BUCKET}/autoencoder"), seed=0), paths.path(f"{BUCKET}/latents")
    made = latent_cache.write_latents(run, out, ("test",), data_dir=tfds_dir)
    assert made.num_bytes == sum(file.stat().st_size for file in (root / "latents").iterdir())
    config = storage.read_config(run)
    c = dataclasses.replace(config.data, latents=str(out), split="test")
    assert latent_cache.load_latents(c, run).num_examples == 299
    with pytest.raises(ConfigError, match="gs://bucket/latents exists already"):
        latent_cache.write_latents(run, out, ("test",), data_dir=tfds_dir)
    copy = copies.local_copy(out)
    (shard,) = copy.glob("*array_record*")
    whole = shard.read_bytes()
    monkeypatch.setattr(paths, "download", None)  # all is there
    assert copies.local_copy(out) == copy
    monkeypatch.undo()
    shard.write_bytes(whole[:-10])  # as an interrupted copy leaves it
    copies.local_copy(out)
    assert shard.read_bytes() == whole
    monkeypatch.setattr(paths, "free_bytes", lambda folder: 10)
    shard.unlink()
    with pytest.raises(DataError, match=r"gs://bucket/latents does not fit in .* 0.0 MB left; make room, or set JAXDIFF_CACHE_DIR"):
        copies.local_copy(out)
    monkeypatch.undo()
    (root / "latents" / shard.name).write_bytes(whole[::-1])
    with pytest.raises(DataError, match="changed while it was copied, or was damaged"):
        copies.local_copy(out)
    assert not shard.exists()


def test_a_data_set_in_the_bucket_is_prepared_there_and_copied_to_the_disk_once(root, tmp_path, monkeypatch, capsys):
    images = write_mnist(tmp_path, np.random.default_rng(0))["train"]
    command = ["data", "mnist", "--data-dir", f"{BUCKET}/data", "--raw-dir", str(tmp_path)]
    for _ in range(2):  # the second time it is there
        assert cli.main(command) == 0
        assert capsys.readouterr().out.endswith(" 20): gs://bucket/data/mnist/3.0.1\n")
        monkeypatch.setattr(paths, "upload", None)
    monkeypatch.undo()
    monkeypatch.setenv("JAXDIFF_CACHE_DIR", str(tmp_path / "caches"))
    for _ in range(2):
        pixels, labels = data.load_split("mnist", "train", (28, 28, 1), data_dir=f"{BUCKET}/data").fetch(np.arange(20))
        order = [int(np.where((images == each[..., 0]).all((1, 2)))[0][0]) for each in pixels]
        assert sorted(order) == list(range(20))
        np.testing.assert_array_equal(labels, np.array(order) % 10)
        monkeypatch.setattr(paths, "download", None)  # all is on the disk
    size = sum(file.stat().st_size for file in (root / "data" / "mnist" / "3.0.1").iterdir())
    assert doctor_command._prepared(paths.path(f"{BUCKET}/data")) == [f"mnist/3.0.1: {size / 1e6:.1f} MB"]
    monkeypatch.setenv("TFDS_DATA_DIR", f"{BUCKET}/data")  # in place of the flag
    assert cli.main(command[:2]) == 0
    with pytest.raises(DataError, match="cifar10 is not prepared in gs://bucket/data; run: jaxdiff data cifar10 --data-dir gs:"):
        data.load_split("cifar10", "train", (32, 32, 3))


def write_three(out):
    with files.atomic_folder(out, last="dataset_info.json") as draft:
        for name in ("a", "dataset_info.json", "z"):
            (draft / name).write_text(name)


def test_images_are_imported_from_a_bucket_into_a_bucket(root, tmp_path, capsys):
    for number in range(5):
        Image.fromarray(np.full((9, 9, 3), number, np.uint8)).save(tmp_path / f"{number}.png")
        paths.upload(tmp_path / f"{number}.png", paths.path(f"{BUCKET}/own_images/{number}.png"))
    words = ["data", "import", f"{BUCKET}/own_images", "--size", "8", "--split", "train", "--data-dir", f"{BUCKET}/data", "--quiet"]
    for _ in range(2):
        assert cli.main(words) == 0
        assert "photos: 5 images (train 5; 8x8) in gs://bucket/data/photos/1.0.0\n" in capsys.readouterr().out
    images = data.load_split("photos", "train", (8, 8, 3), data_dir=f"{BUCKET}/data")
    assert images.fetch(np.arange(5))[0][:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4]
    assert not list((files.cache_dir() / "imports").rglob("*.array_record*"))


def test_latents_of_which_the_last_file_is_missing_are_not_there(root, monkeypatch):
    def upload(file, target):
        if file.name == "dataset_info.json":
            raise OSError("killed")
        whole(file, target)

    whole = paths.upload
    monkeypatch.setattr(paths, "upload", upload)
    out = paths.path(f"{BUCKET}/half")
    with pytest.raises(OSError, match="killed"):
        write_three(out)
    assert sorted(file.name for file in (root / "half").iterdir()) == ["a", "z"]
    check_free(out)


def test_a_growing_folder_is_uploaded_again_and_again(root, caplog, monkeypatch):
    target = root / "growing" / "sub" / "log"
    with uploads.uploaded_folder(paths.path(f"{BUCKET}/growing"), every=0.05) as (folder, upload):
        (folder / "sub").mkdir()
        with (folder / "sub" / "log").open("a") as file:
            file.write("one\n")
            file.flush()
            wait_until(lambda: target.exists() and target.read_text() == "one\n")
            file.write("two\n")
            file.flush()
            upload()
            assert target.read_text() == "one\ntwo\n"
            monkeypatch.setattr(paths, "upload", lambda file, target: 1 / 0)
            file.write("three\n")
            file.flush()
            wait_until(lambda: "gs://bucket/growing could not be written to (division by zero); trying again" in caplog.text)
            monkeypatch.undo()
    assert target.read_text() == "one\ntwo\nthree\n"


def wait_until(happened):
    deadline = time.monotonic() + 30
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_step_that_was_not_finished_is_not_there_and_is_removed(root):
    workdir = paths.path(f"{BUCKET}/unfinished")
    for name in ("3/array", "3/commit_success.txt", "5/array"):
        (workdir / "checkpoints" / name).write_text("x")
    assert checkpoint.steps(workdir) == [3]
    with checkpoint.manager(workdir):
        pass
    assert not (root / "unfinished" / "checkpoints" / "5" / "array").exists()
    checkpoint._move_away(workdir, 3)
    assert (root / "unfinished" / "damaged" / "3-0" / "array").read_text() == "x"
    assert checkpoint.steps(workdir) == []


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("s3://b/run", "s3://b/run: jaxdiff cannot reach s3://; gs://bucket/folder works, and a bucket of any other kind"),
        ("az:/b/run", "az://b/run: jaxdiff cannot reach az://"),
        ("hf://b/run", "hf://b/run: jaxdiff cannot reach hf://"),
        ("gs://", "gs:// names no bucket; write gs://bucket/folder"),
    ],
)
def test_paths_of_other_kinds_are_refused_in_one_line(name, message, capsys):
    with pytest.raises(ConfigError) as refused:
        paths.path(name)
    assert str(refused.value).startswith(message)
    assert cli.main(["sample", name]) == 2
    line = capsys.readouterr().err
    assert message in line
    assert line.count("\n") == 1


def test_a_bucket_without_gcsfs_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r'gs://b/run: .* run: pip install "jaxdiff\[gcs\]"'):
        paths.path("gs://b/run")


def test_a_bucket_that_is_not_there_is_said_in_one_line(tfds_dir, capsys):
    assert cli.main(words("gs://nobody/run", tfds_dir)) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("jaxdiff: gs://nobody/run cannot be written (")


def test_paths():
    for name in ("runs/x", "/a:b/x", "x:y", pathlib.Path("runs/x")):
        assert paths.path(name) == pathlib.Path(name)
    for name in ("gs://b/x/y", "gs:/b/x/y", pathlib.Path("gs://b/x/y"), paths.path("gs://b/x/y")):
        made = paths.path(name)
        assert str(made) == "gs://b/x/y"
        assert (str(made.parent), made.name, paths.in_bucket(made)) == ("gs://b/x", "y", True)
        assert paths.absolute(made) == paths.resolved(made) == made
