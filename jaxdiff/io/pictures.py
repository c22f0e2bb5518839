"""Pictures of samples, as PNG files."""

from __future__ import annotations

import pathlib

import numpy as np
from PIL import Image

from jaxdiff.io import files

GAP = 0.125  # between two images of a grid, relative to their size
PAPER = 235  # grey level of the gaps, so that black images keep their edges


def grid(images: np.ndarray, columns: int, min_size: int = 48) -> np.ndarray:
    """Images `[N, H, W, C]` in [-1, 1] as one uint8 picture, row by row, in at most so many columns.

    Small ones are enlarged by whole factors.
    """
    pixels, columns = to_uint8(images), min(columns, len(images))
    factor = max(1, -(-min_size // pixels.shape[1]))
    pixels = pixels.repeat(factor, axis=1).repeat(factor, axis=2)
    _, height, width, channels = pixels.shape
    gap = max(1, round(GAP * height))
    rows = -(-len(pixels) // columns)
    paper = np.full((rows * (height + gap) + gap, columns * (width + gap) + gap, channels), PAPER, np.uint8)
    for number, image in enumerate(pixels):
        top, left = gap + number // columns * (height + gap), gap + number % columns * (width + gap)
        paper[top : top + height, left : left + width] = image
    return paper


def save_grid(path: pathlib.Path, images: np.ndarray, columns: int) -> None:
    """Writes `grid` as a PNG file, whole or not at all."""
    picture = grid(images, columns)
    with files.atomic_write(path) as draft:
        Image.fromarray(picture.squeeze(-1) if picture.shape[-1] == 1 else picture).save(draft, format="PNG")


def save_npz(path: pathlib.Path, images: np.ndarray, labels: np.ndarray) -> None:
    """Writes `image` uint8 `[N, H, W, C]` and `label` `[N]` as a .npz file, whole or not at all."""
    with files.atomic_write(path) as draft, draft.open("wb") as file:
        np.savez_compressed(file, image=to_uint8(images), label=labels)


def to_uint8(images: np.ndarray) -> np.ndarray:
    """Images in [-1, 1] as uint8, rounded, clipped where they are outside."""
    return np.round((np.clip(images, -1, 1) + 1) * 127.5).astype(np.uint8)
