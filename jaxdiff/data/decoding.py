"""Image files as pixels: those of a data set, and, to import them, files of any kind as 8-bit RGB, upright."""

from __future__ import annotations

import contextlib
import hashlib
import io
import zlib
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import Image, ImageChops, ImageOps

UPRIGHT = {  # from EXIF's orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}  # of Pillow, by channels
PNG_DEPTH = 24  # the byte of a PNG file that says how many bits a channel has


class Kept(NamedTuple):
    """An image as a data set keeps it: a JPEG or PNG file, and a hash of its pixels."""

    content: bytes
    digest: bytes


def kept(file: BinaryIO, size: tuple[int, int] | None = None) -> Kept:
    """The image of a file as 8-bit RGB, upright, the first one of an animation; with a size (height, width) its middle, resized.

    Transparent pixels are laid over white; 16 bits are scaled to 8. JPEG and PNG files whose pixels are those already are kept as
    they are, others become PNG: nothing is lost but by resizing (bicubic, antialiased).

    Raises:
        Exception: of many kinds, where the file is no image, is damaged or cut short, or has pixels without an agreed range.
    """
    with Image.open(file) as image:
        if size is not None:
            _draft(image, (size[1], size[0]) if _orientation(image) >= 5 else size)
        image.load()
        turned = _orientation(image)  # loading has turned a TIFF already
        pixels = _rgb(image)
        if turned in UPRIGHT:
            pixels = pixels.transpose(UPRIGHT[turned])
        if size is not None:
            pixels = ImageOps.fit(pixels, (size[1], size[0]), Image.Resampling.BICUBIC)
        digest = hashlib.blake2b(repr(pixels.size).encode() + pixels.tobytes(), digest_size=16).digest()
        if size is None and turned not in UPRIGHT and _is_plain(image, file):
            file.seek(0)
            return Kept(file.read(), digest)
    png = io.BytesIO()
    pixels.save(png, "PNG", compress_type=zlib.Z_RLE)  # made for PNG: as small for photographs, in less than half the time
    return Kept(png.getvalue(), digest)


def decode_image(content: bytes, channels: int, size: tuple[int, int] | None = None) -> np.ndarray:
    """The uint8 image `[h, w, C]` in the bytes of a data set's file; with a size (height, width) one to be resized to that.

    A JPEG file is then decoded to the least of 1, 1/2, 1/4 or 1/8 of its size that is at least twice as high and wide.
    """
    image = Image.open(io.BytesIO(content))
    if size is not None:
        _draft(image, size)
    image = image if image.mode == MODES[channels] else image.convert(MODES[channels])
    return np.asarray(image).reshape(image.height, image.width, channels)


def _draft(image: Image.Image, size: tuple[int, int]) -> None:
    """Lets libjpeg decode a half, a quarter or an eighth, for speed; nothing where the image is no JPEG file."""
    image.draft(None, (2 * size[1], 2 * size[0]))


def _orientation(image: Image.Image) -> int:
    """EXIF's orientation, 1 where it is upright already; from 5 on height and width are exchanged."""
    with contextlib.suppress(Exception):  # damaged EXIF says nothing of the pixels
        return int(image.getexif().get(0x0112, 1))
    return 1


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):  # 16 bits, or scaled to them
        values = np.asarray(image).astype(np.uint32)
        return Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise ValueError("its pixels are numbers of 32 bits, whose range is not known")
    if image.mode == "CMYK" and image.format == "JPEG" and "adobe" not in image.info:
        return ImageChops.invert(image).convert("RGB")  # Pillow inverts all, but only Adobe's are stored inverted
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return image.convert("RGB")


def _is_plain(image: Image.Image, file: BinaryIO) -> bool:
    """Whether any reader finds the same pixels in the file: 8-bit RGB, JPEG or PNG, of one image, without transparency."""
    single = getattr(image, "n_frames", 1) == 1 and not image.has_transparency_data
    if image.format == "PNG":
        file.seek(PNG_DEPTH)
        single &= file.read(1) == b"\x08"
    return single and image.mode == "RGB" and image.format in ("JPEG", "PNG")
