"""tfds's own `mnist` and `cifar10`, prepared from their raw files without TensorFlow.

tfds's builders give name, version, features and download manager; only the parsing of the raw files is ours.
"""

from __future__ import annotations

import gzip
import pathlib
import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlparse

import numpy as np
import requests
import tensorflow_datasets as tfds

from jaxdiff.data.digits import png
from jaxdiff.data.latents import INFO
from jaxdiff.data.read import directory
from jaxdiff.io import files, paths
from jaxdiff.io.errors import DataError, first_line

MNIST_URL = "https://storage.googleapis.com/cvdf-datasets/mnist/"
CIFAR10_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
MNIST_FILES = {"train": ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"),
               "test": ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz")}  # fmt: skip
CIFAR10_FILES = {"train": tuple(f"data_batch_{i}.bin" for i in range(1, 6)), "test": ("test_batch.bin",)}

Examples = Iterator[tuple[Any, dict[str, Any]]]


def prepare(name: str, data_dir: str | None = None, raw_dir: pathlib.Path | None = None) -> tfds.core.DatasetBuilder:
    """Downloads and prepares `mnist` or `cifar10` as tfds would, in array_record; what is prepared already stays.

    Args:
        name: `mnist` or `cifar10`.
        data_dir: tfds's data directory, on a disk or in a bucket; TFDS_DATA_DIR or its own default where None.
        raw_dir: a folder with the raw files, for a machine without network.

    Raises:
        DataError: another name, no network, or raw files that are missing or damaged.
    """
    if name not in RAW:
        raise DataError(f"data: {name!r} has no preparation here; write one of {', '.join(RAW)}")
    data_dir = directory(data_dir)
    if data_dir is not None and paths.in_bucket(place := paths.path(data_dir)):
        return _prepare_in_bucket(name, place, raw_dir)
    builder: Any = tfds.builder(name, data_dir=data_dir, file_format="array_record")
    if raw_dir is None and not builder.info.splits:
        _check_network(name)
    urls, parse = RAW[name]

    def split_generators(dl_manager: Any, **_: Any) -> dict[str, Examples]:
        paths = _raw_paths(raw_dir, urls) if raw_dir else [pathlib.Path(p) for p in dl_manager.download(urls)]
        return {split: parse(split, dict(zip(map(_file_name, urls), paths, strict=True))) for split in ("train", "test")}

    builder._split_generators = split_generators
    try:
        builder.download_and_prepare()
    except Exception as error:  # of gzip, tar, the parser, the download, the disk
        raise DataError(f"data: {name} could not be prepared: {first_line(error)}") from error
    return builder


def _prepare_in_bucket(name: str, place: pathlib.Path, raw_dir: pathlib.Path | None) -> tfds.core.DatasetBuilder:
    with tempfile.TemporaryDirectory(prefix="jaxdiff_data_") as local:
        made = pathlib.Path(tfds.builder(name, data_dir=local).data_dir)
        target = place / str(made.relative_to(local))
        if not (target / INFO).exists():
            prepare(name, local, raw_dir)
            with files.atomic_folder(target, last=INFO) as draft:
                for file in made.iterdir():
                    shutil.move(file, draft / file.name)
    return tfds.builder_from_directory(str(target))


def _mnist(split: str, paths: dict[str, pathlib.Path]) -> Examples:
    images, labels = (_idx(paths[name]) for name in MNIST_FILES[split])
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        yield number, {"image": png(image), "label": int(label)}


def _idx(path: pathlib.Path) -> np.ndarray:
    """An array in the IDX format: two zero bytes, the type (8 is uint8), the rank, the shape as big-endian uint32."""
    content = gzip.decompress(path.read_bytes())
    if content[:3] != b"\x00\x00\x08":
        raise ValueError(f"{path} is no IDX file of bytes")
    shape = np.frombuffer(content, ">u4", count=content[3], offset=4)
    values = np.frombuffer(content, np.uint8, offset=4 + 4 * content[3])
    if values.size != np.prod(shape):
        raise ValueError(f"{path} is cut short: {values.size} values for the shape {shape.tolist()}")
    return values.reshape(shape)


def _cifar10(split: str, paths: dict[str, pathlib.Path]) -> Examples:
    number = 0
    with tarfile.open(paths[_file_name(CIFAR10_URL)]) as archive:
        for name in CIFAR10_FILES[split]:
            member = archive.extractfile(f"cifar-10-batches-bin/{name}")
            if member is None:
                raise ValueError(f"{name} in {_file_name(CIFAR10_URL)} is no file")
            rows = np.frombuffer(member.read(), np.uint8).reshape(-1, 1 + 3 * 32 * 32)
            for row in rows:
                key = f"{split}_{number:05d}"
                yield key, {"id": key, "image": png(row[1:].reshape(3, 32, 32).transpose(1, 2, 0)), "label": int(row[0])}
                number += 1


RAW = {
    "mnist": ([MNIST_URL + name for names in MNIST_FILES.values() for name in names], _mnist),
    "cifar10": ([CIFAR10_URL], _cifar10),
}


def _file_name(url: str) -> str:
    return pathlib.PurePosixPath(urlparse(url).path).name


def _raw_paths(raw_dir: pathlib.Path, urls: list[str]) -> list[pathlib.Path]:
    paths = [pathlib.Path(raw_dir) / _file_name(url) for url in urls]
    for path in paths:
        if not path.is_file():
            raise FileNotFoundError(f"no file {path}; --raw-dir must hold {', '.join(map(_file_name, urls))}")
    return paths


def _check_network(name: str, timeout: float = 5.0) -> None:
    """Checks the network once, since tfds's download manager retries silently for minutes without it."""
    url = RAW[name][0][0]
    try:
        requests.head(url, timeout=timeout)
    except requests.RequestException as error:
        raise DataError(
            f"data: {urlparse(url).hostname} cannot be reached; connect, or give the raw files: jaxdiff data {name} --raw-dir DIR"
        ) from error
