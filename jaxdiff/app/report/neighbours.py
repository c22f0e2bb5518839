"""The nearest training images of samples, and of held-out images: does a model memorise?"""

import math
from typing import NamedTuple

import numpy as np

from jaxdiff.data import Images, normalize
from jaxdiff.io import count, progress

MOST = 100_000  # training images that are compared; of a larger split every n-th
CHUNK = 2**24  # values of training images held at once
NEAR = 1 / 3  # of the median distance of held-out images, within which an image counts as a copy


class Neighbours(NamedTuple):
    """Samples and their nearest training images. A distance is the root of the mean squared difference of pixels in [-1, 1]."""

    samples: np.ndarray
    distance: np.ndarray  # [N, k] from each sample to its nearest training images
    images: np.ndarray  # [M, k, H, W, C], those of the first M samples
    held_out: np.ndarray  # [N], the distance of each held-out image from its nearest
    num_train: int

    @property
    def copies(self) -> tuple[int, float]:
        """How many samples are within NEAR of the held-out images' median distance, and the share of held-out images that are."""
        near = NEAR * float(np.median(self.held_out))
        return int(np.sum(self.distance[:, 0] <= near)), float(np.mean(self.held_out <= near))

    @property
    def memorises(self) -> bool:
        """Whether more samples are copies than held-out images by chance: by three standard deviations and one sample."""
        (copies, share), num = self.copies, len(self.distance)
        return copies > num * share + 3 * math.sqrt(num * share * (1 - share)) + 1

    @property
    def quantiles(self) -> dict[str, list[float]]:
        """Minimum, 5%, median and 95% of the distances from the nearest training image."""
        distances = {"samples": self.distance[:, 0], "held-out images": self.held_out}
        return {name: np.quantile(values, [0, 0.05, 0.5, 0.95]).tolist() for name, values in distances.items()}

    def __str__(self) -> str:
        """One sentence that reads the numbers."""
        (copies, share), num = self.copies, len(self.distance)
        mine, others = np.median(self.distance[:, 0]), np.median(self.held_out)
        medians = f"{mine:.3f} from a sample and {others:.3f} from a held-out image"
        ratio = f"medians, ratio {mine / others if others else math.inf:.2f}"
        are = f"of {count(num, 'sample')} {'is' if copies == 1 else 'are'} within a third of the latter"
        near = f"{copies} {are}, as are {share:.1%} of held-out images"
        verdict = "samples are copied from training images" if self.memorises else "nothing here is copied from training images"
        return f"The nearest of {count(self.num_train, 'training image', ',')} is {medians} ({ratio}); {near}: {verdict}."


def compare(samples: np.ndarray, train: Images, test: Images, flip: bool, k: int = 5, most: int = 8) -> Neighbours:
    """Samples `[N, H, W, C]` beside at most 500 held-out images; with `flip` mirrored training images count too."""
    samples = np.clip(samples, -1, 1)
    whole = train.num_examples * (2 if flip else 1)
    indices = np.unique(np.linspace(0, whole - 1, min(MOST, whole)).round().astype(np.int64))
    held_out = normalize(test.fetch(np.arange(min(500, test.num_examples)))[0])
    distance, index = nearest(np.concatenate([samples, held_out]), train, indices, k)
    num, some = len(samples), index[: min(most, len(samples))]
    images = normalize(train.rows(some.ravel())["image"]).reshape(*some.shape, *samples.shape[1:])
    return Neighbours(samples, distance[:num], images, distance[num:, 0], len(indices))


def nearest(queries: np.ndarray, source: Images, indices: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Distances and indices, each `[Q, k]`, of the k images nearest to queries `[Q, H, W, C]` among `indices`, nearest first."""
    flat = queries.reshape(len(queries), -1).astype(np.float32)
    size, k = max(1, CHUNK // flat.shape[1]), min(k, len(indices))
    best, where = np.zeros((len(flat), 0), np.float32), np.zeros((len(flat), 0), np.int64)
    for start in progress.track(range(0, len(indices), size), "nearest images", "part"):
        part = indices[start : start + size]
        images = normalize(source.rows(part)["image"]).reshape(len(part), -1)
        squared = np.sum(images**2, axis=1)[None] - 2 * flat @ images.T  # and |query|^2, which is the same for all
        best = np.concatenate([best, squared], axis=1)
        where = np.concatenate([where, np.broadcast_to(part, squared.shape)], axis=1)
        kept = np.argpartition(best, min(k, best.shape[1]) - 1, axis=1)[:, :k]
        best, where = np.take_along_axis(best, kept, axis=1), np.take_along_axis(where, kept, axis=1)
    near = (
        normalize(source.rows(row)["image"]).astype(np.float64) for row in where
    )  # the expanded square loses the digits of small ones
    exact = np.stack([np.sqrt(np.mean((each - query) ** 2, axis=(1, 2, 3))) for query, each in zip(queries, near, strict=True)])
    order = np.argsort(exact, axis=1, kind="stable")
    return np.take_along_axis(exact, order, axis=1), np.take_along_axis(where, order, axis=1)
