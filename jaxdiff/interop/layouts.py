"""How an array lies in published files and in our params: a layout for each kind of layer, in both directions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

LEAVES = {"kernel": "weight", "scale": "weight", "embedding": "weight", "bias": "bias"}  # ours: published


class Layout(NamedTuple):
    """From the arrays of a layer in a file, whose first axis is that of its outputs, to one, and back.

    `trailing` is how many axes of length 1 the published kernel of a dense layer has, where it is stored as a convolution.
    """

    join: Callable[[Sequence[np.ndarray]], np.ndarray] = lambda parts: parts[0]
    split: Callable[[np.ndarray], list[np.ndarray]] = lambda whole: [whole]
    trailing: int = 0

    def load(self, parts: Sequence[np.ndarray], leaf: str) -> np.ndarray:
        """Our array of that leaf (kernel, bias, scale, embedding), maybe a view."""
        whole = self.join([part.reshape(part.shape[:2]) if _is_pointwise(part) else part for part in parts])
        if leaf != "kernel":
            return whole
        return whole.T if whole.ndim == 2 else np.moveaxis(whole, (0, 1), (-1, -2))

    def store(self, array: np.ndarray, leaf: str) -> list[np.ndarray]:
        """The published arrays of ours."""
        if leaf != "kernel":
            return self.split(array)
        if array.ndim == 2:
            return self.split(array.T.reshape(*array.shape[::-1], *(1,) * self.trailing))
        return self.split(np.moveaxis(array, (-1, -2), (0, 1)))


def _is_pointwise(part: np.ndarray) -> bool:
    """Whether it is the kernel of a convolution over single pixels, which our networks have as a dense layer."""
    return part.ndim > 2 and part.shape[2:] == (1,) * (part.ndim - 2)


PLAIN = Layout()
POINTWISE = Layout(trailing=2)
THREE = Layout(np.concatenate, lambda whole: np.split(whole, 3))  # queries, keys and values, each of all heads


def by_heads(heads: int) -> Layout:
    """Queries, keys and values in one convolution over single pixels, head by head, as OpenAI's networks have them by default."""

    def turned(array: np.ndarray, first: int, second: int) -> np.ndarray:
        parts = array.reshape(first, second, -1, *array.shape[1:])
        return np.swapaxes(parts, 0, 1).reshape(array.shape)

    return Layout(lambda parts: turned(parts[0], heads, 3), lambda whole: [turned(whole, 3, heads)])


def _with_null_row(parts: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate([parts[0], np.zeros_like(parts[0][:1])])


def _scaled(whole: np.ndarray, factor: float) -> np.ndarray:
    """The array, the second half of its outputs multiplied by a power of 2: exact, also of float16, as it is in float32."""
    scale = np.repeat(np.array([1, factor], np.float32), len(whole) // 2)
    return whole * scale.reshape(-1, *(1,) * (whole.ndim - 1))


CLASSES = Layout(_with_null_row, lambda table: [table if table[-1].any() else table[:-1]])  # the null label's row is ours alone
MOMENTS = Layout(lambda parts: _scaled(parts[0], 0.5), lambda whole: [_scaled(whole, 2)], trailing=2)  # log variance: our log std
