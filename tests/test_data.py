import gzip
import io
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import grain
import numpy as np
import pytest
from PIL import Image
from raw_files import idx, write_cifar10, write_mnist
from sklearn import datasets

from jaxdiff import data
from jaxdiff.data import raw
from jaxdiff.data.batches import Order
from jaxdiff.data.decoding import decode_image
from jaxdiff.io.errors import DataError

SHARED = pathlib.Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(scope="module")
def digits(tfds_dir):
    return data.load_split("digits", "train", (8, 8, 1), data_dir=tfds_dir)


def take(source, num, **options):
    stream = data.batches(source, 12, **options)
    return [next(stream) for _ in range(num)]


def test_digits_are_scikit_learns(digits, tfds_dir):
    test = data.load_split("digits", "test", (8, 8, 1), data_dir=tfds_dir)
    assert (digits.num_examples, test.num_examples, digits.num_classes) == (1498, 299, 10)
    bundled = datasets.load_digits()
    ours = np.concatenate([split.fetch(np.arange(split.num_examples))[0] for split in (digits, test)])
    theirs = np.round(bundled.images * 255 / 16).astype(np.uint8)
    assert sorted(map(bytes, ours.squeeze(-1).reshape(-1, 64))) == sorted(map(bytes, theirs.reshape(-1, 64)))
    first = np.flatnonzero((ours.squeeze(-1) == theirs[0]).all((1, 2)))
    labels = np.concatenate([split.fetch(np.arange(split.num_examples))[1] for split in (digits, test)])
    assert (labels[first] == bundled.target[0]).all()


def test_batches_have_the_documented_form(digits):
    (batch,) = take(digits, 1)
    assert {name: (value.shape, value.dtype) for name, value in batch.items()} == {
        "image": ((12, 8, 8, 1), np.uint8), "label": ((12,), np.int32), "index": ((12,), np.int32)}  # fmt: skip
    assert batch["image"].min() == 0
    assert batch["image"].max() == 255
    np.testing.assert_array_equal(batch["index"], np.arange(12))


@pytest.mark.parametrize("rows", [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 10, 11], [2, 3, 7]])
def test_each_process_sees_its_own_rows_of_the_same_batches(digits, rows):
    """12 rows a batch, of 1,498 examples, which they do not divide."""
    num = 130  # more than an epoch
    alone = take(digits, num, flip=True, seed=3)
    part = take(digits, num, flip=True, seed=3, rows=np.array(rows))
    for mine, whole in zip(part, alone, strict=True):
        assert mine["index"].tolist() == rows
        for name in ("image", "label"):
            np.testing.assert_array_equal(mine[name], whole[name][rows])


def test_an_epoch_holds_every_example_once_and_the_next_is_in_another_order(digits):
    stream = data.batches(digits, 7 * 2, seed=0)
    epochs = [[next(stream)["image"] for _ in range(107)] for _ in range(2)]  # 107 * 14 = 1498
    images = [np.concatenate(epoch).reshape(-1, 64) for epoch in epochs]
    assert sorted(map(bytes, images[0])) == sorted(map(bytes, images[1]))
    assert (images[0] != images[1]).any()
    assert (take(digits, 1, seed=1)[0]["image"] != take(digits, 1, seed=0)[0]["image"]).any()


@pytest.mark.parametrize("num", [1, 3, 12, 50])
def test_each_epoch_holds_each_example_once_where_batches_are_larger_too(num):
    source = data.Images(lambda indices: (np.zeros((len(indices), 1, 1, 1), np.uint8), indices.astype(np.int32)), num, num)
    order = np.concatenate([batch["label"] for batch in take(source, 25)])
    epochs = order[: 300 // num * num].reshape(-1, num)
    np.testing.assert_array_equal(np.sort(epochs, axis=1), np.broadcast_to(np.arange(num), epochs.shape))
    assert num == 1 or (epochs != epochs[0]).any()


def test_the_order_is_uniform():
    """Of 3 examples, each of the 6 orders in a sixth of 6,000 epochs, within five standard deviations; half are mirrored."""
    places = Order(3, 5, flip=True)(np.arange(18_000)).reshape(-1, 3)
    orders, counts = np.unique(places % 3, axis=0, return_counts=True)
    assert len(orders) == 6
    np.testing.assert_allclose(counts, 1000, atol=5 * np.sqrt(6000 * 5 / 36))
    np.testing.assert_allclose((places >= 3).mean(axis=0), 0.5, atol=5 * 0.5 / np.sqrt(6000))


def test_the_stream_goes_on_from_any_batch(digits):
    through = take(digits, 9, flip=True)
    resumed = take(digits, 4, flip=True, start=5)
    for a, b in zip(through[5:], resumed, strict=True):
        np.testing.assert_array_equal(a["image"], b["image"])


def test_grains_own_state_says_the_same_as_the_step(digits):
    stream = data.batches(digits, 12)
    assert isinstance(stream, grain.DatasetIterator)
    for _ in range(5):
        next(stream)
    assert stream.get_state()["next_index"] == 5
    other = data.batches(digits, 12)
    other.set_state(stream.get_state())
    np.testing.assert_array_equal(next(other)["image"], next(stream)["image"])


def test_flip_mirrors_half(digits):
    plain = np.concatenate([batch["image"] for batch in take(digits, 40)])
    flipped = np.concatenate([batch["image"] for batch in take(digits, 40, flip=True)])
    same = (plain == flipped).all((1, 2, 3))
    mirrored = (plain[:, :, ::-1] == flipped).all((1, 2, 3))
    assert (same | mirrored).all()
    assert 0.4 < same.mean() < 0.6


@pytest.mark.parametrize("fit", ["crop", "resize"])
def test_a_jpeg_is_scaled_while_it_is_decoded(fit):
    """A photograph of 427x640 pixels: within 35 dB of Pillow's bicubic resize of the whole, where that takes an eighth of it."""
    photograph, file = Image.fromarray(datasets.load_sample_image("china.jpg")), io.BytesIO()
    photograph.save(file, "JPEG", quality=95)
    for size, least in ((48, 35), (64, 35), (240, 99)):
        shape, whole = (size, size, 3), np.asarray(Image.open(file))
        scaled = decode_image(file.getvalue(), 3, shape[:2])
        assert (scaled.shape == whole.shape) == (size == 240)
        assert min(scaled.shape[:2]) >= 2 * size or size == 240
        error = data.fit_image(scaled, shape, fit).astype(float) - data.fit_image(whole, shape, fit)
        assert 10 * np.log10(255**2 / max(np.mean(error**2), 1e-9)) > least
    np.testing.assert_array_equal(decode_image(file.getvalue(), 3), whole)
    grey = np.asarray(Image.open(file).convert("L"))[..., None]
    np.testing.assert_array_equal(decode_image(file.getvalue(), 1), grey)


def test_images_are_padded_or_resized(tfds_dir):
    small = data.load_split("digits", "test", (8, 8, 1), data_dir=tfds_dir).fetch(np.arange(5))[0]
    padded = data.load_split("digits", "test", (12, 12, 1), data_dir=tfds_dir).fetch(np.arange(5))[0]
    np.testing.assert_array_equal(padded[:, 2:-2, 2:-2], small)
    assert padded.sum() == small.sum()
    resized = data.load_split("digits", "test", (16, 16, 1), fit="resize", data_dir=tfds_dir).fetch(np.arange(5))[0]
    assert resized.shape == (5, 16, 16, 1)
    np.testing.assert_allclose(resized.mean((1, 2, 3)), small.mean((1, 2, 3)), rtol=0.05)


def test_large_sets_are_read_from_disk_to_the_same_values(digits, tfds_dir, monkeypatch):
    monkeypatch.setattr(data.read, "IN_MEMORY", 0)
    lazy = data.load_split("digits", "train", (8, 8, 1), data_dir=tfds_dir)
    indices = np.array([3, 1400, 3])
    for a, b in zip(lazy.fetch(indices), digits.fetch(indices), strict=True):
        np.testing.assert_array_equal(a, b)


WORKERS = """
import signal
import sys
from jaxdiff import data

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    data.read.IN_MEMORY = 0
    source = data.load_split("digits", "train", (8, 8, 1), data_dir=sys.argv[1])
    stream = data.batches(source, 12, flip=True, start=7, workers=2)
    print([int(next(stream)["image"].sum()) for _ in range(5)], flush=True)
    sys.stdin.read(1)
    stream.close()
"""


def running(pid):
    """Whether a process runs, and did not only leave its number behind."""
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc for children")
@pytest.mark.parametrize("end", ["kill", "interrupt", "close"])
def test_worker_processes_read_the_same_batches_and_end_with_their_parent(digits, tfds_dir, tmp_path, end):
    script = tmp_path / "reads.py"
    script.write_text(WORKERS)
    command, pipe = [sys.executable, str(script), tfds_dir], subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, process_group=0) as reader:
        line = reader.stdout.readline()
        children = [
            pid for each in pathlib.Path(f"/proc/{reader.pid}/task").iterdir() for pid in (each / "children").read_text().split()
        ]
        workers = [pid for pid in children if "spawn_main" in pathlib.Path(f"/proc/{pid}/cmdline").read_text()]
        assert [int(batch["image"].sum()) for batch in take(digits, 5, flip=True, start=7)] == json.loads(line)
        assert len(workers) == 2
        if end == "close":
            reader.communicate("\n")
        else:
            os.killpg(reader.pid, signal.SIGINT) if end == "interrupt" else reader.kill()
        reader.wait()
    deadline = time.monotonic() + 10
    while any(map(running, workers)):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_split_is_decoded_once_until_its_files_change(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(data.read, "fit_image", lambda image, shape, fit: asked.append(1) or image)

    def decoded(split="test"):
        before = len(asked)
        images = data.load_split("digits", split, (8, 8, 1), data_dir=str(tmp_path)).fetch(np.arange(20))[0]
        images[:] = 0  # a copy of what is kept
        return len(asked) - before

    assert [decoded(), decoded("train[:50]"), decoded()] == [299, 50, 0]
    assert [decoded("train[:60]"), decoded("train[:50]")] == [60, 0]  # the last two
    assert decoded() == 299
    (shard,) = tmp_path.glob("digits/*/*test.array_record*")
    os.utime(shard, (1, 1))
    assert decoded() == 299
    whole = data.load_split("digits", "test", (8, 8, 1), data_dir=str(tmp_path)).fetch(np.arange(20))[0]
    assert whole.any((1, 2, 3)).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("digitz", "train", (8, 8, 1)), "no data set is named 'digitz'; did you mean digits"),
        (("digits", "valid", (8, 8, 1)), r"split 'valid': Unknown split 'valid'. Should be one of .'train', 'test'."),
        (("digits", "train", (8, 8, 3)), "digits has 1 channel; set data.image_shape to end in 1"),
        (("digits", "train", (4, 4, 1)), "larger than data.image_shape .* set data.fit to resize"),
        (("digits", "train[:10", (8, 8, 1)), "split 'train.:10': "),
        (("digits", "train[:0]", (8, 8, 1)), "split 'train.:0.': "),
        (("mnist", "train", (28, 28, 1)), "mnist is not prepared in .*; run: jaxdiff data mnist --data-dir"),
    ],
)
def test_what_cannot_be_read_is_said_in_one_line(arguments, message, tfds_dir):
    with pytest.raises(DataError, match=message) as error:
        data.load_split(*arguments, data_dir=tfds_dir)
    assert "\n" not in str(error.value)


def test_mnist_is_prepared_from_raw_files(tmp_path):
    images = write_mnist(tmp_path, np.random.default_rng(0))
    raw.prepare("mnist", str(tmp_path / "tfds"), tmp_path)
    for split in ("train", "test"):
        read = data.load_split("mnist", split, (28, 28, 1), data_dir=str(tmp_path / "tfds"))
        pixels, labels = read.fetch(np.arange(20))
        expected = {bytes(image): number % 10 for number, image in enumerate(images[split])}
        assert {bytes(image.squeeze(-1)): label for image, label in zip(pixels, labels, strict=True)} == expected


def test_cifar10_is_prepared_from_raw_files(tmp_path):
    rows = write_cifar10(tmp_path, np.random.default_rng(0))
    raw.prepare("cifar10", str(tmp_path / "tfds"), tmp_path)
    read = data.load_split("cifar10", "train", (32, 32, 3), data_dir=str(tmp_path / "tfds"))
    pixels, labels = read.fetch(np.arange(read.num_examples))
    train = np.concatenate([rows[name] for name in raw.CIFAR10_FILES["train"]])
    expected = {bytes(np.stack(row[1:].reshape(3, 32, 32), -1)): row[0] for row in train}
    assert {bytes(image): label for image, label in zip(pixels, labels, strict=True)} == expected


def test_raw_files_that_are_missing_or_cut_short_are_named(tmp_path):
    with pytest.raises(DataError, match=r"no file .*train-images-idx3-ubyte.gz; --raw-dir must hold"):
        raw.prepare("mnist", str(tmp_path / "a"), tmp_path)
    write_mnist(tmp_path, np.random.default_rng(0))
    labels = tmp_path / "train-labels-idx1-ubyte.gz"
    labels.write_bytes(gzip.compress(gzip.decompress(labels.read_bytes())[:-5]))
    with pytest.raises(DataError, match=r"train-labels-idx1-ubyte.gz is cut short"):
        raw.prepare("mnist", str(tmp_path / "b"), tmp_path)
    images = tmp_path / "train-images-idx3-ubyte.gz"
    content = bytearray(images.read_bytes())
    content[len(content) // 2] ^= 0x40
    images.write_bytes(content)
    with pytest.raises(DataError, match="mnist could not be prepared: ") as error:
        raw.prepare("mnist", str(tmp_path / "d"), tmp_path)
    assert "\n" not in str(error.value)
    with pytest.raises(DataError, match="'svhn' has no preparation here; write one of mnist, cifar10"):
        raw.prepare("svhn", str(tmp_path / "c"))


def test_no_network_is_said_within_seconds(tmp_path, monkeypatch):
    urls, parse = raw.RAW["mnist"]
    closed = [url.replace("https://storage.googleapis.com", "http://127.0.0.1:9") for url in urls]
    monkeypatch.setitem(raw.RAW, "mnist", (closed, parse))
    start = time.monotonic()
    with pytest.raises(DataError, match=r"127.0.0.1 cannot be reached; .* jaxdiff data mnist --raw-dir DIR"):
        raw.prepare("mnist", str(tmp_path))
    assert time.monotonic() - start < 10


@pytest.mark.skipif(not (SHARED / "mnist.npz").exists(), reason="needs the real MNIST")
@pytest.mark.slow
def test_the_real_mnist_through_its_raw_files(tmp_path):
    real = np.load(SHARED / "mnist.npz")
    for split, (image_file, label_file) in raw.MNIST_FILES.items():
        (tmp_path / image_file).write_bytes(idx(real[f"{split}_images"]))
        (tmp_path / label_file).write_bytes(idx(real[f"{split}_labels"]))
    raw.prepare("mnist", str(tmp_path / "tfds"), tmp_path)
    test = data.load_split("mnist", "test", (28, 28, 1), data_dir=str(tmp_path / "tfds"))
    pixels, labels = test.fetch(np.arange(test.num_examples))
    expected = sorted(zip(map(bytes, real["test_images"]), real["test_labels"].tolist(), strict=True))
    assert sorted(zip(map(bytes, pixels.squeeze(-1)), labels.tolist(), strict=True)) == expected
