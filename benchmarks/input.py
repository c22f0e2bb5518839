"""Prints how many JPEG files of ImageNet's size a second are read, decoded, resized and mirrored, by jaxdiff and by PyTorch.

Both make batches of 64x64 pixels of the same files: photographs of scikit-learn, cut at random to 500x375 pixels. PyTorch's side is
a DataLoader with torchvision's transforms; jaxdiff's is the data set that `jaxdiff data import` makes of the folder, by threads
alone and by worker processes. The sides take turns, each in a process of its own; the figures are medians of the rounds.
Without PyTorch only jaxdiff's are printed. Exit status 1: jaxdiff's faster way is less than 1.2 times as fast as PyTorch.

Run: python benchmarks/input.py [--workers 2] [--peer-python PATH_OF_A_PYTHON_WITH_TORCHVISION]
"""

from __future__ import annotations

import argparse
import itertools
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

SIZE, BATCH = 64, 64


def write_photographs(folder: pathlib.Path, num: int) -> None:
    """JPEG files, half of each of two classes."""
    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_sample_images

    photographs = [Image.fromarray(each) for each in load_sample_images().images]
    rng = np.random.default_rng(0)
    for number in range(num):
        left, top = rng.integers(0, 140), rng.integers(0, 52)
        path = folder / f"class_{number % 2}" / f"{number:05d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        photographs[number % 2].crop((left, top, left + 500, top + 375)).save(path, quality=95)


def jaxdiff(folder: pathlib.Path, workers: int) -> Iterator[Any]:
    """Batches of the imported data set."""
    from jaxdiff import data
    from jaxdiff.data import chunks, importing

    name, place = "photographs", str(folder.parent / "tfds")
    importing.import_images(folder, name, chunks.Wanted(None, "train", 0.0), place)
    data.read.IN_MEMORY = 0  # or so few images would be decoded once
    source = data.load_split(name, "train", (SIZE, SIZE, 3), "crop", place)
    return data.batches(source, BATCH, flip=True, workers=workers)


def torch(folder: pathlib.Path, workers: int) -> Iterator[Any]:
    """The same by torchvision, as its examples do it; pixels stay bytes here too."""
    from torch.utils.data import DataLoader
    from torchvision import datasets, transforms

    steps = (transforms.Resize(SIZE), transforms.CenterCrop(SIZE), transforms.RandomHorizontalFlip(), transforms.PILToTensor())
    images = datasets.ImageFolder(str(folder), transforms.Compose(steps))
    loader = DataLoader(images, BATCH, shuffle=True, num_workers=workers, drop_last=True, persistent_workers=True)
    return itertools.chain.from_iterable(itertools.repeat(loader))


SIDES: dict[str, Callable[[pathlib.Path, int], Iterator[Any]]] = {"jaxdiff": jaxdiff, "torch": torch}


def rate(batches: Iterator[Any], seconds: float) -> float:
    """Images a second, after those that workers had ready."""
    for _ in range(20):
        next(batches)
    start, num = time.perf_counter(), 0
    while time.perf_counter() < start + seconds:
        next(batches)
        num += BATCH
    return num / (time.perf_counter() - start)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes of either side")
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=10.0, help="of a round")
    parser.add_argument("--peer-python", default=sys.executable, help="the interpreter that has torch and torchvision")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=pathlib.Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        print(rate(SIDES[args.side](args.folder, args.workers), args.seconds), flush=True)
        os._exit(0)  # whatever workers still do
    ways = {
        "jaxdiff, threads": (sys.executable, "jaxdiff", 0),
        f"jaxdiff, {args.workers} workers": (sys.executable, "jaxdiff", args.workers),
        f"torch, {args.workers} workers": (args.peer_python, "torch", args.workers),
    }
    if subprocess.run([args.peer_python, "-c", "import torchvision"], capture_output=True).returncode:
        print("torchvision is not installed: jaxdiff alone")
        ways.popitem()
    rates: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary) / "photographs"
        write_photographs(folder, args.images)
        for way, (python, side, workers) in [*ways.items()] * args.rounds:
            flags = ("--side", side, "--folder", str(folder), "--workers", str(workers), "--seconds", str(args.seconds))
            done = subprocess.run([python, __file__, *flags], stdout=subprocess.PIPE, text=True, check=True)
            rates.setdefault(way, []).append(float(done.stdout.split()[-1]))
    medians = {way: statistics.median(values) for way, values in rates.items()}
    for way, value in medians.items():
        print(f"{way}: {value:,.0f} images/s, {value / (os.cpu_count() or 1):,.0f} a core")
    *ours, theirs = medians.values()
    if len(ways) == 2:
        return 0
    print(f"ratio: {max(ours) / theirs:.2f}")
    return int(max(ours) < 1.2 * theirs)


if __name__ == "__main__":
    sys.exit(main())
