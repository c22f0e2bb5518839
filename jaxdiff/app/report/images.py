"""Pictures as data URIs."""

from __future__ import annotations

import base64
import io
import pathlib

import numpy as np
from PIL import Image

from jaxdiff.io import pictures


def grid_file(path: pathlib.Path) -> str:
    """A PNG file as it is."""
    return _uri(path.read_bytes())


def pixels(picture: np.ndarray) -> str:
    """A uint8 picture `[H, W, C]`."""
    buffer = io.BytesIO()
    Image.fromarray(picture.squeeze(-1) if picture.shape[-1] == 1 else picture).save(buffer, format="PNG", optimize=True)
    return _uri(buffer.getvalue())


def whole_image(image: np.ndarray) -> str:
    """An image `[H, W, C]` in [-1, 1], pixel for pixel; the page enlarges it."""
    return pixels(pictures.to_uint8(image))


def _uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()
