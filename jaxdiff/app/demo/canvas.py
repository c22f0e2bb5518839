"""What a page shows and gets: pictures of images, and images and masks of what was uploaded and painted."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from jaxdiff.app.demo.programs import FRAMES, Edit
from jaxdiff.io import pictures
from jaxdiff.io.errors import ConfigError

SHOWN = 192  # least height of an image on the page; smaller ones are enlarged by whole factors
LEAST_FRAME, MOST_FRAME, GAP = 64, 144, 8  # heights of a frame of a strip, and what lies between two


def picture(image: np.ndarray) -> np.ndarray:
    """An image `[H, W, C]` in [-1, 1] as RGB pixels."""
    return _enlarged(_rgb(pictures.to_uint8(image)), SHOWN)


def strip(frames: np.ndarray) -> np.ndarray:
    """Frames `[K, H, W, C]` in [-1, 1] as one row of RGBA pixels, with as much room as the most frames take."""
    stride = max(1, -(-frames.shape[1] // MOST_FRAME))
    height, width = (size // stride for size in frames.shape[1:3])
    parts = frames[:, : height * stride, : width * stride].reshape(len(frames), height, stride, width, stride, -1)
    row = [_enlarged(_rgb(pictures.to_uint8(frame)), LEAST_FRAME) for frame in parts.mean((2, 4))]
    height, width, _ = row[0].shape
    pixels = np.zeros((FRAMES, height, width + GAP, 4), np.uint8)
    for place, frame in zip(pixels, row, strict=False):
        place[:, :width] = np.pad(frame, ((0, 0), (0, 0), (0, 1)), constant_values=255)
    return pixels.swapaxes(0, 1).reshape(height, -1, 4)[:, :-GAP]


def _enlarged(pixels: np.ndarray, least: int) -> np.ndarray:
    """Pixels `[H, W, C]` enlarged by a whole factor to at least that height."""
    factor = max(1, -(-least // len(pixels)))
    return pixels.repeat(factor, axis=0).repeat(factor, axis=1)


def edit(painted: Mapping[str, Any] | None, strength: float, shape: Sequence[int]) -> Edit | None:
    """The edit of an image editor's `background` and `layers`, brought to the run's images; None where there is no image.

    Painted pixels are drawn anew, all others kept; without any the whole image is noised.

    Raises:
        ConfigError: there is paint without an image.
    """
    layers = [layer for layer in (painted or {}).get("layers") or () if layer is not None]
    paint = [layer[..., 3] for layer in layers if layer[..., 3].any()]
    background = (painted or {}).get("background")
    if background is None or not background[..., 3].any():
        if paint:
            raise ConfigError("a mask is painted, but there is no image under it; choose an image first")
        return None
    image = _fitted(Image.fromarray(background).convert("L" if shape[-1] == 1 else "RGB"), shape)
    keep = None
    if paint:
        cover = Image.fromarray(np.max(paint, axis=0))
        keep = _fitted(cover, shape)[..., 0] < 128
    return Edit(image.astype(np.float32) / 127.5 - 1, strength, keep)


def _fitted(image: Image.Image, shape: Sequence[int]) -> np.ndarray:
    """Pixels `[H, W, C]` of the middle of an image in the proportions of `shape`, averaged over squares where they are more."""
    height, width = shape[:2]
    larger = min(image.height / height, image.width / width) >= 1
    fitted = ImageOps.fit(image, (width, height), Image.Resampling.BOX if larger else Image.Resampling.BICUBIC)
    return np.asarray(fitted).reshape(height, width, -1)


def _rgb(pixels: np.ndarray) -> np.ndarray:
    return pixels[..., :3] if pixels.shape[-1] >= 3 else pixels[..., :1].repeat(3, axis=-1)
