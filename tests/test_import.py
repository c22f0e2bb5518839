"""Images of one's own: folders, archives and Parquet files with every oddity, imported, interrupted, and trained on."""

import errno
import io
import json
import re
import signal
import subprocess
import sys
import tarfile
import time

import numpy as np
import pyarrow as pa
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from pyarrow import parquet

from jaxdiff import data
from jaxdiff.app import cli
from jaxdiff.data import chunks, decoding, importing
from jaxdiff.data.chunks import Wanted
from jaxdiff.io.errors import ConfigError, DataError

RAMP = np.stack(np.meshgrid(np.arange(0, 240, 10), np.arange(0, 200, 5)), -1).astype(np.uint8)  # 40 x 24
PIXELS = np.concatenate([RAMP, np.full((40, 24, 1), 77, np.uint8)], -1)
TINY = (
    *("--model.channels", "8", "--model.multipliers", "1", "--model.blocks", "1", "--model.head-channels", "8", "--steps", "2"),
    *("--data.batch-size", "4", "--sampling.num", "2", "--sampling.steps", "1", "--sampling.every", "0"),
    *("--optimizer.warmup-steps", "1", "--model.dtype", "float32", "--quiet"),
)


def encoded(picture, format="PNG", **options):
    file = io.BytesIO()
    picture.save(file, format, **options)
    return file.getvalue()


def noise(seed, height=10, width=12):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


def read_back(content, size=None):
    return np.asarray(Image.open(io.BytesIO(decoding.kept(io.BytesIO(content), size).content)))


def examples(directory, name="photos"):
    """All examples of a data set, read by tfds alone."""
    builder = tfds.builder_from_directory(str(directory / name / "1.0.0"))
    return {split: list(builder.as_data_source(split)) for split in builder.info.splits}, builder.info


def write_folder(root, files):
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return root


def write_tar(path, files):
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            content = content if isinstance(content, bytes) else content.encode()
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def skipped(directory, name="photos"):
    lines = (directory / name / "1.0.0" / "skipped.jsonl").read_text().splitlines()
    return {row["key"]: row["reason"] for row in map(json.loads, lines)}


def no_adobe(jpeg):
    """A CMYK JPEG without the marker by which Adobe says that its values are inverted."""
    place = jpeg.index(b"\xff\xee")
    return jpeg[:place] + jpeg[place + 2 + int.from_bytes(jpeg[place + 2 : place + 4], "big") :]


UPRIGHT = Image.fromarray(PIXELS)
STORED = {  # by EXIF's orientation, as the standard says: which side of the upright picture the first row and column are
    1: PIXELS, 2: PIXELS[:, ::-1], 3: PIXELS[::-1, ::-1], 4: PIXELS[::-1], 5: PIXELS.swapaxes(0, 1),
    6: PIXELS.swapaxes(0, 1)[::-1], 7: PIXELS.swapaxes(0, 1)[::-1, ::-1], 8: PIXELS.swapaxes(0, 1)[:, ::-1],
}  # fmt: skip


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("format", ["PNG", "TIFF", "JPEG"])
def test_pictures_stand_upright(orientation, format):
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 100, "subsampling": 0} if format == "JPEG" else {}
    file = encoded(Image.fromarray(np.ascontiguousarray(STORED[orientation])), format, exif=exif, **options)
    found = read_back(file).astype(int)
    assert found.shape == PIXELS.shape
    assert np.abs(found - PIXELS).max() <= (4 if format == "JPEG" else 0)


def paletted(transparent):
    picture = Image.fromarray(np.array([[0, 1], [2, 3]], np.uint8), "P")
    picture.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90, 100, 110, 120])
    return encoded(picture, transparency=transparent) if transparent is not None else encoded(picture)


FIRST, SECOND = Image.new("RGB", (8, 8), (200, 0, 0)), Image.new("RGB", (8, 8), (0, 0, 200))
KINDS = {  # a file, and the pixel at its top left
    "grey": (encoded(Image.new("L", (3, 2), 90)), (90, 90, 90)),
    "grey and alpha": (encoded(Image.new("LA", (3, 2), (0, 51))), (204, 204, 204)),  # a fifth of black on white
    "RGBA": (encoded(Image.new("RGBA", (3, 2), (255, 0, 0, 51))), (255, 204, 204)),
    "RGBA without cover": (encoded(Image.new("RGBA", (3, 2), (1, 2, 3, 0))), (255, 255, 255)),
    "RGB with a transparent colour": (encoded(Image.new("RGB", (3, 2), (1, 2, 3)), transparency=(1, 2, 3)), (255, 255, 255)),
    "palette": (paletted(None), (10, 20, 30)),
    "palette with a transparent colour": (paletted(0), (255, 255, 255)),
    "palette with alphas": (paletted(bytes([51, 255, 255, 255])), (206, 208, 210)),  # (255 * 204 + value * 51) / 255
    "one bit": (encoded(Image.new("1", (3, 2), 1)), (255, 255, 255)),
    "16 bits, white": (encoded(Image.fromarray(np.full((2, 3), 65535, np.uint16))), (255, 255, 255)),
    "16 bits, grey": (encoded(Image.fromarray(np.full((2, 3), 257 * 90, np.uint16))), (90, 90, 90)),
    "16 bits, TIFF": (encoded(Image.fromarray(np.full((2, 3), 257 * 7, np.uint16)), "TIFF"), (7, 7, 7)),
    "CMYK of Adobe": (encoded(Image.new("CMYK", (8, 8), (255, 0, 0, 0)), "JPEG", quality=100), (0, 255, 255)),
    "CMYK of others": (no_adobe(encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 255)), "JPEG", quality=100)), (0, 255, 255)),
    "CMYK, TIFF": (encoded(Image.new("CMYK", (8, 8), (0, 0, 255, 0)), "TIFF"), (255, 255, 0)),
    "GIF of two": (encoded(FIRST, "GIF", save_all=True, append_images=[SECOND]), (200, 0, 0)),
    "WebP of two": (encoded(FIRST, "WEBP", save_all=True, append_images=[SECOND], lossless=True), (200, 0, 0)),
    "PNG of two": (encoded(FIRST, save_all=True, append_images=[SECOND]), (200, 0, 0)),
    "BMP": (encoded(FIRST, "BMP"), (200, 0, 0)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_pixels_are_known(kind):
    file, expected = KINDS[kind]
    found = read_back(file)
    assert found.dtype == np.uint8
    assert found.shape[-1] == 3
    assert np.abs(found[0, 0].astype(int) - expected).max() <= (2 if "CMYK of" in kind else 0)


def test_plain_files_are_kept_as_they_are_and_sizes_are_the_middle():
    jpeg, png = encoded(UPRIGHT, "JPEG"), encoded(UPRIGHT)
    assert decoding.kept(io.BytesIO(jpeg)).content == jpeg
    assert decoding.kept(io.BytesIO(png)).content == png
    assert read_back(encoded(noise(0)), (10, 12)).tolist() == np.asarray(noise(0)).tolist()
    wide = np.zeros((20, 60, 3), np.uint8)
    wide[:, 17:43] = 255
    assert (read_back(encoded(Image.fromarray(wide)), (10, 10)) == 255).all()


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize(("shape", "size"), [((600, 800), (36, 48)), ((3200, 200), (8, 96))])
def test_jpegs_decoded_at_a_fraction_look_the_same(orientation, shape, size):
    """Also where a tall picture becomes a wide one, of which libjpeg may leave out nothing."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright = noise(0, shape[0] // 5, shape[1] // 5).resize(shape[::-1], Image.Resampling.BICUBIC)
    stored = upright if orientation == 1 else upright.transpose(Image.Transpose.ROTATE_90)
    found = read_back(encoded(stored, "JPEG", quality=98, subsampling=0, exif=exif), size)
    assert np.abs(found - read_back(encoded(upright), size).astype(int)).mean() < 2


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """A folder of two classes, with all kinds of files and much that is none."""
    files = {f"cats/{kind}.img": content for kind, (content, _) in KINDS.items()}
    files |= {f"dogs/{seed}.png": encoded(noise(seed)) for seed in range(30)}
    files |= {"dogs/cut.jpg": encoded(noise(1, 200, 200), "JPEG")[:-900], "dogs/cut.png": encoded(noise(1))[:-40]}
    files |= {
        "dogs/empty.png": b"",
        "dogs/text.jpg": "no image",
        "dogs/.DS_Store": "x",
        "README": "words",
        "stray.png": encoded(FIRST),
    }
    files |= {"dogs/float.tif": encoded(Image.fromarray(np.ones((2, 2), np.float32)), "TIFF")}
    files |= {"dogs/0.txt": "the first dog\n", "metadata.csv": "file_name,text\ndogs/1.png,the second\n"}
    return write_folder(tmp_path_factory.mktemp("mixed"), files)


def test_a_folder_with_every_oddity(mixed, tmp_path):
    made = importing.import_images(mixed, "photos", data_dir=str(tmp_path))
    found, info = examples(tmp_path)
    assert info.features["label"].names == ["cats", "dogs"]
    assert made.splits == {split: len(each) for split, each in found.items()}
    everything = [example for each in found.values() for example in each]
    assert len(everything) == len(KINDS) + 30
    assert sum(example["label"] == 1 for example in everything) == 30
    captions = {bytes(np.ascontiguousarray(example["image"])): example["caption"] for example in everything}
    assert captions[np.asarray(noise(0)).tobytes()] == b"the first dog"
    assert captions[np.asarray(noise(1)).tobytes()] == b"the second"
    assert captions[np.asarray(noise(2)).tobytes()] == b""
    reasons = skipped(tmp_path)
    assert set(reasons) == {f"dogs/{name}" for name in ("cut.jpg", "cut.png", "empty.png", "text.jpg", "float.tif")} | {
        "README",
        "stray.png",
    }
    assert "truncated" in reasons["dogs/cut.jpg"]
    assert reasons["dogs/text.jpg"] == reasons["README"] == "it is no image that Pillow can read"
    assert "no class" in reasons["stray.png"]
    assert made.num_skipped == len(reasons)
    assert not {path.name for path in (tmp_path / "photos").iterdir()} - {"1.0.0"}


@pytest.mark.parametrize(
    ("names", "splits", "classes"),
    [
        (["a.png", "b.png"], {"train"}, []),
        (["all/a.png", "all/b.png"], {"train"}, []),
        (["x/cat/a.png", "x/cat/b.png", "x/dog/c.png"], {"train"}, ["cat", "dog"]),
        (["train/cat/a.png", "train/dog/b.png", "val/cat/c.png"], {"train", "validation"}, ["cat", "dog"]),
        (["train/a.png", "test/b.png"], {"train", "test"}, []),
        (["train/a.png", "bus/b.png"], {"train"}, ["bus", "train"]),
        (["2019/a.png", "2021/b.png"], {"train"}, ["2019", "2021"]),
        (["all/a.png", "all/b.png", "c.png"], {"train"}, []),
    ],
)
def test_folders_are_splits_and_classes(tmp_path, names, splits, classes):
    write_folder(tmp_path / "in", {name: encoded(noise(number)) for number, name in enumerate(names)})
    write_folder(tmp_path / "in", {"README": "words"})
    for _ in range(2):  # the second time it lies among the images
        importing.import_images(tmp_path / "in", "photos", Wanted(held_out=0.0), str(tmp_path / "in" / "data"))
    found, info = examples(tmp_path / "in" / "data")
    assert set(found) == splits
    assert (info.features["label"].names if "label" in info.features else []) == classes
    importing.import_images(tmp_path / "in", "whole", Wanted(split="every"), str(tmp_path))
    assert {name: len(each) for name, each in examples(tmp_path, "whole")[0].items()} == {"every": len(names)}


def test_archives_of_webdataset_and_img2dataset(tmp_path):
    for shard in range(2):
        files = {}
        for number in range(3):
            key = f"{shard:05d}{number:04d}"
            files |= {f"{key}.jpg": encoded(noise(number + 3 * shard), "JPEG"), f"{key}.cls": str(number)}
            files |= {f"{key}.json": json.dumps({"caption": f"image {key}", "url": "http://x"}), f"{key}.npy": b"not read"}
        write_tar(tmp_path / f"{shard:05d}.tar", files)
    whole = (tmp_path / "00001.tar").read_bytes()
    (tmp_path / "00002.tar").write_bytes(whole[: len(whole) // 3])
    (tmp_path / "00000.parquet").write_text("what img2dataset writes beside")
    importing.import_images(tmp_path, "photos", Wanted(split="train"), str(tmp_path / "data"))
    found, info = examples(tmp_path / "data")
    assert info.features["label"].num_classes == 3
    assert [example["label"] for example in found["train"]][:6] == [0, 1, 2, 0, 1, 2]
    assert found["train"][4]["caption"] == b"image 000010001"
    np.testing.assert_array_equal(found["train"][4]["image"], np.asarray(Image.open(io.BytesIO(encoded(noise(4), "JPEG")))))
    assert "damaged after" in skipped(tmp_path / "data")["00002.tar"]


def test_an_archive_of_class_folders(tmp_path):
    write_tar(tmp_path / "pets.tar", {f"./pets/{kind}/{n}.png": encoded(noise(n)) for kind in ("dog", "cat") for n in range(2)})
    importing.import_images(tmp_path / "pets.tar", "pets", Wanted(split="train"), str(tmp_path))
    found, info = examples(tmp_path, "pets")
    assert info.features["label"].names == ["cat", "dog"]
    assert [example["label"] for example in found["train"]] == [1, 1, 0, 0]


def write_parquet(path, seeds, labels, **options):
    """As Hugging Face's `datasets` exports images."""
    told = {"image": {"_type": "Image"}, "label": {"names": ["cat", "dog"], "_type": "ClassLabel"}, "text": {"_type": "Value"}}
    schema = pa.schema(
        {"image": pa.struct({"bytes": pa.binary(), "path": pa.string()}), "label": pa.int64(), "text": pa.string()},
        metadata={"huggingface": json.dumps({"info": {"features": told}})},
    )
    rows = [
        {"image": {"bytes": encoded(noise(seed)) if seed >= 0 else None, "path": None}, "label": label, "text": f"no {seed}"}
        for seed, label in zip(seeds, labels, strict=True)
    ]
    parquet.write_table(pa.Table.from_pylist(rows, schema), path, **options)


def test_parquet_files_of_hugging_face(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    write_parquet(tmp_path / "data" / "train-00000-of-00002.parquet", range(5), [0, 1, 1, 0, 1], row_group_size=2)
    write_parquet(tmp_path / "data" / "train-00001-of-00002.parquet", [5, -1], [1, 0])
    write_parquet(tmp_path / "data" / "test-00000-of-00001.parquet", [7], [1])
    (tmp_path / "data" / "train-00002.parquet").write_bytes(b"PAR1 damaged")
    monkeypatch.setattr(chunks, "IMAGES", 1)
    importing.import_images(tmp_path / "data", "photos", data_dir=str(tmp_path))
    found, info = examples(tmp_path)
    assert info.features["label"].names == ["cat", "dog"]
    assert [example["label"] for example in found["train"]] == [0, 1, 1, 0, 1, 1]
    assert [example["caption"] for example in found["train"]] == [f"no {seed}".encode() for seed in range(6)]
    for seed, example in enumerate(found["train"]):
        np.testing.assert_array_equal(example["image"], np.asarray(noise(seed)))
    assert len(found["test"]) == 1
    assert skipped(tmp_path)["data/train-00001-of-00002.parquet/1"[5:]] == "the row holds no bytes of an image"
    assert len(list((tmp_path / "photos" / "1.0.0").glob("*train.array_record*"))) == 4  # a row group each


def test_a_damaged_row_group_is_listed_and_the_rest_is_read(tmp_path):
    write_parquet(tmp_path / "a.parquet", range(6), [0] * 6, row_group_size=3, compression="none", use_dictionary=False)
    with parquet.ParquetFile(tmp_path / "a.parquet") as file:
        place = file.metadata.row_group(0).column(0).data_page_offset
    content = bytearray((tmp_path / "a.parquet").read_bytes())
    content[place : place + 30] = bytes(30)
    (tmp_path / "a.parquet").write_bytes(content)
    importing.import_images(tmp_path / "a.parquet", "photos", Wanted(split="train"), str(tmp_path))
    assert len(examples(tmp_path)[0]["train"]) == 3
    assert len(skipped(tmp_path)) == 3


def test_copies_of_an_image_fall_in_the_same_split(tmp_path):
    files = {f"{n:03d}.png": encoded(noise(n, 4, 4)) for n in range(300)}
    files |= {f"copy {n}.bmp": encoded(noise(n, 4, 4), "BMP") for n in range(300)}
    importing.import_images(write_folder(tmp_path / "in", files), "photos", Wanted(held_out=0.2), str(tmp_path))
    found, _ = examples(tmp_path)
    train, test = ({example["image"].tobytes() for example in found[split]} for split in ("train", "test"))
    assert not train & test
    assert len(found["train"]) == 2 * len(train)
    assert 0.1 < len(test) / 300 < 0.3


INTERRUPTED = """
import pathlib, sys, time
from jaxdiff.data import chunks, decoding, importing
chunks.IMAGES = 8
whole = decoding.kept
if {slowly}:
    decoding.kept = lambda *each: (time.sleep(0.05), whole(*each))[1]
importing.import_images(pathlib.Path({source!r}), "photos", chunks.Wanted((8, 12)), {target!r})
"""


def test_a_killed_import_is_completed_to_the_same_files(tmp_path, monkeypatch):
    source = write_folder(tmp_path / "in", {f"{n % 2}/{n}.png": encoded(noise(n)) for n in range(80)} | {"0/bad.png": "none"})
    code = INTERRUPTED.format(source=str(source), target=str(tmp_path / "killed"), slowly=True)
    child = subprocess.Popen([sys.executable, "-c", code])
    folder, before = tmp_path / "killed" / "photos" / ".1.0.0.draft" / ".chunks", time.monotonic()
    while len(list(folder.glob("*.json"))) < 3:
        assert child.poll() is None
        assert time.monotonic() - before < 60
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    assert not (tmp_path / "killed" / "photos" / "1.0.0").exists()
    kept = {file.name: file.stat().st_mtime_ns for file in folder.glob("0000[012]*")}
    with pytest.raises(
        ConfigError, match=r"has been imported from .* with size \[8, 12\]; rerun the command that began it, or rem"
    ):
        importing.import_images(source, "photos", Wanted((8, 8)), str(tmp_path / "killed"))
    monkeypatch.setattr(chunks, "IMAGES", 8)
    for place in ("killed", "through"):
        importing.import_images(source, "photos", Wanted((8, 12)), str(tmp_path / place))
    files = [
        {file.name: file.read_bytes() for file in (tmp_path / place / "photos" / "1.0.0").iterdir()}
        for place in ("killed", "through")
    ]
    assert files[0] == files[1]
    assert len(files[0]) > 10
    assert kept
    moved = {file.stat().st_mtime_ns for file in (tmp_path / "killed" / "photos" / "1.0.0").iterdir()}
    assert {time for name, time in kept.items() if name.endswith("record")} <= moved  # these were not made again


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1 MB, and a function that makes it larger."""
    place = tmp_path / "disk"
    place.mkdir()
    words = ["mount", "-t", "tmpfs", "-o"]
    if (mounted := subprocess.run([*words, "size=1m", "none", str(place)], capture_output=True, text=True)).returncode:
        pytest.skip(f"only root may mount: {mounted.stderr}")
    yield place, lambda: subprocess.run([*words, "remount,size=8m", "none", str(place)], check=True)
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def test_a_full_disk_leaves_what_the_same_command_completes(small_disk, tmp_path, monkeypatch, capsys):
    disk, enlarge = small_disk
    source = write_folder(tmp_path / "in", {f"{n:03d}.png": encoded(noise(n, 64, 64)) for n in range(150)})  # 1.9 MB
    monkeypatch.setattr(chunks, "IMAGES", 8)
    words = ["data", "import", str(source), "--data-dir", str(disk), "--quiet"]
    assert cli.main(words) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search("No space left on device.*rerun the command", line), line
    assert not (disk / "photos" / "1.0.0").exists()
    before = {file.stat().st_mtime_ns for file in disk.glob("photos/.1.0.0.draft/.chunks/*.array_record")}
    enlarge()
    assert cli.main(words) == 0
    assert "photos: 150 images" in capsys.readouterr().out
    assert before
    assert before <= {file.stat().st_mtime_ns for file in disk.glob("photos/1.0.0/*")}  # not made again


def test_no_space_is_said_in_one_line(mixed, tmp_path, monkeypatch, capsys):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(chunks.files, "write_text", full)
        assert cli.main(["data", "import", str(mixed), "--data-dir", str(tmp_path), "--quiet"]) == 1
    assert "the disk is full" in capsys.readouterr().err
    assert cli.main(["data", "import", str(mixed), "--data-dir", str(tmp_path), "--quiet"]) == 0


def test_a_second_import_does_nothing_and_another_one_is_refused(tmp_path, mixed):
    made = importing.import_images(mixed, "photos", data_dir=str(tmp_path))
    times = {file: file.stat().st_mtime_ns for file in made.directory.iterdir()}
    assert importing.import_images(mixed, "photos", data_dir=str(tmp_path)) == made
    assert times == {file: file.stat().st_mtime_ns for file in made.directory.iterdir()}
    with pytest.raises(ConfigError, match="choose another --name, or remove"):
        importing.import_images(mixed / "dogs", "photos", data_dir=str(tmp_path))


@pytest.mark.parametrize("files", [{}, {"a.txt": "x"}, {"a.png": "no image", "b.png": b""}])
def test_a_source_without_images_is_said(tmp_path, files):
    write_folder(tmp_path, {"in/.hidden": "", **{f"in/{name}": content for name, content in files.items()}})
    with pytest.raises(DataError, match=r"no image in .*in can be imported") as error:
        importing.import_images(tmp_path / "in", "photos", data_dir=str(tmp_path / "data"))
    assert "\n" not in str(error.value)
    assert ("2 skipped, see" in str(error.value)) == (len(files) == 2)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """Data sets without labels: of three images, and of 60; one of classes."""
    directory = tmp_path_factory.mktemp("plain")
    for name, num in (("three", 3), ("photos", 60)):
        source = write_folder(directory / f"in_{name}", {f"{n}.png": encoded(noise(n, 30, 50)) for n in range(num)})
        importing.import_images(source, name, Wanted((24, 40)), str(directory))
    source = write_folder(directory / "in_classes", {f"{n % 3}/{n}.png": encoded(noise(n, 30, 50)) for n in range(60)})
    importing.import_images(source, "classes", data_dir=str(directory))
    return directory


def test_unlabelled_images_are_read_with_zeros(plain):
    images = data.load_split("photos", "train", (24, 40, 3), data_dir=str(plain))
    pixels, labels = images.fetch(np.arange(4))
    assert pixels.shape == (4, 24, 40, 3)
    assert labels.tolist() == [0] * 4
    assert labels.dtype == np.int32
    assert images.num_classes == 0


@pytest.fixture
def run(plain, tmp_path, capsys, monkeypatch, small_unet, one_device):
    """A function that trains `configs/own.py`, tiny, or runs another command; its exit status and what it printed."""
    monkeypatch.setenv("JAXDIFF_CACHE_DIR", str(tmp_path / "cache"))

    def run(command, *words):
        first = ["configs/own.py", *TINY, "--workdir", str(tmp_path / "run")] if command == "train" else [str(tmp_path / "run")]
        where = ["--data-dir", str(plain)] * (command != "sample")
        status = cli.main([command, *first, *words, *where, *["--quiet"] * (command != "train")])
        said = capsys.readouterr()
        return status, said.out + said.err

    return run


SHAPE = ("--data.image-shape", "24", "40", "3")


def test_three_images_train_a_picture_of_another_shape(run, tmp_path):
    """Batches are larger than the data set, whose rows they repeat."""
    assert run("train", "--data.name", "three", *SHAPE)[0] == 0
    with Image.open(tmp_path / "run" / "samples.png") as picture:  # a row of two, twice as large, with gaps
        assert picture.size == (2 * 80 + 3 * 6, 48 + 2 * 6)


def test_every_command_works_without_labels(run, tmp_path):
    assert run("train", *SHAPE)[0] == 0
    assert run("sample", "--num", "3", "--steps", "1", "--out", str(tmp_path / "a.npz"))[0] == 0
    assert np.load(tmp_path / "a.npz")["image"].shape == (3, 24, 40, 3)
    status, said = run("evaluate", "--num", "10")
    assert (status, said.count("\n")) == (1, 1)
    assert "needs labels, which photos has not; those of another network: --features inception --weights FILE.npz" in said
    assert run("evaluate", "--likelihood", "--estimators", "discrete", "--num", "2", "--steps", "2")[0] == 0
    assert run("report", "--num", "2")[0] == 0


def test_images_train_by_class(run):
    assert run("train", "--data.name", "classes", "--model.num-classes", "3", "--data.image-shape", "32", "32", "3")[0] == 0
    status, said = run("train", "--model.num-classes", "3", *SHAPE)
    assert status == 1
    assert "data set photos has no labels; set model.num_classes 0" in said


def test_a_data_set_that_is_not_there_says_how_to_import_it(run):
    status, said = run("train", "--data.name", "holidays")
    assert status == 1
    assert "no data set is named 'holidays'" in said
    assert "jaxdiff data import SOURCE --name holidays" in said


def test_latents_without_labels(plain, tmp_path):
    origin = data.latents.Origin("f", "run", "photos", (24, 40, 3), "pad", 1, False)
    rows = {"mean": np.ones((3, 2, 2, 1), np.float32), "std": np.ones((3, 2, 2, 1), np.float32), "label": np.zeros(3, np.int32)}
    data.latents.write_latents(tmp_path / "out", {"train": [rows]}, 0, origin)
    found = data.latents.load_moments(tmp_path / "out", "train")
    assert found.num_classes == 0
    assert found.rows(np.arange(2))["label"].tolist() == [0, 0]
    assert found.rows(np.arange(2))["label"].dtype == np.int32
