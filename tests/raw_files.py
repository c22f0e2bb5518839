"""Small raw files in the formats of MNIST and CIFAR-10, with random pixels."""

import gzip
import io
import tarfile

import numpy as np

from jaxdiff.data import raw


def idx(array):
    return gzip.compress(bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.tobytes())


def write_mnist(folder, rng, num=20):
    images = {split: rng.integers(0, 256, (num, 28, 28), dtype=np.uint8) for split in raw.MNIST_FILES}
    for split, (image_file, label_file) in raw.MNIST_FILES.items():
        (folder / image_file).write_bytes(idx(images[split]))
        (folder / label_file).write_bytes(idx(np.arange(num, dtype=np.uint8) % 10))
    return images


def write_cifar10(folder, rng, num=4):
    rows = {}
    with tarfile.open(folder / "cifar-10-binary.tar.gz", "w:gz") as archive:
        for name in (name for names in raw.CIFAR10_FILES.values() for name in names):
            rows[name] = rng.integers(0, 10, (num, 3073), dtype=np.uint8)
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            member.size = rows[name].size
            archive.addfile(member, io.BytesIO(rows[name].tobytes()))
    return rows
