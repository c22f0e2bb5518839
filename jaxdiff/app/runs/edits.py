"""What a user changes of a run for one drawing: the size of its images, the image that it starts from, LoRA."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from jaxdiff import interop
from jaxdiff.app import build
from jaxdiff.app.config import Experiment, validated
from jaxdiff.app.runs import experiments
from jaxdiff.io.errors import ConfigError, first_line
from jaxdiff.models import lora


def sized(config: Experiment, sources: build.Sources, size: tuple[int, int] | None) -> Experiment:
    """The config of a run for images of another size (height, width), with attention at the same levels.

    Raises:
        ConfigError: the networks cannot halve such images; the nearest size that fits is said.
    """
    if size is None:
        return config
    factor = build.codec(sources["autoencoder"]).factor if "autoencoder" in sources else 1
    transformer = config.model.network == "dit"
    multiple = factor * (config.dit.patch if transformer else 2 ** (len(config.model.multipliers) - 1))
    if any(length % multiple for length in size):
        nearest = "x".join(str(max(round(length / multiple), 1) * multiple) for length in size)
        raise ConfigError(f"--size {size[0]}x{size[1]}: this run draws multiples of {multiple}, write {nearest}")
    if config.sources.base:
        raise ConfigError("--size: a cascade draws one size alone, leave it out")
    levels = experiments.options(config, sources)["attention_levels"]
    published = dataclasses.replace(config.published, attention_levels=levels)
    image = dataclasses.replace(config.data, image_shape=(*size, config.data.image_shape[-1]))
    model = dataclasses.replace(config.model, attention=() if levels else config.model.attention)
    return validated(dataclasses.replace(config, data=image, model=model, published=published), where=f"--size {size[0]}x{size[1]}")


def starting_image(config: Experiment, image: pathlib.Path | None, mask: pathlib.Path | None, num: int) -> dict[str, Any]:
    """What `image_sampler` is given to start from an image file: `image` and maybe `mask`, both `[num, ...]`.

    The image's middle is resized to the size of the config's; white of the mask is painted anew.

    Raises:
        ConfigError: a file is no image, or the mask is of another size than the image.
    """
    if image is None:
        if mask is not None:
            raise ConfigError(f"--mask {mask}: say which image it is of, --init IMAGE")
        return {}
    if config.sources.base or config.objective == "vae":
        raise ConfigError("--init: a cascade or a vae does not start from an image, leave it out")
    height, width, channels = config.data.image_shape
    picture = _opened(image, "--init").convert("L" if channels == 1 else "RGB")
    pixels = np.asarray(ImageOps.fit(picture, (width, height), Image.Resampling.BICUBIC), np.float32)
    given = {"image": pixels.reshape(height, width, channels) / 127.5 - 1}
    if mask is not None:
        where = _opened(mask, "--mask").convert("L")
        if where.size != picture.size:
            (w, h), (wide, high) = where.size, picture.size
            raise ConfigError(f"--mask {mask} is {h}x{w}, the image {image} is {high}x{wide}; draw it at that size")
        grey = np.asarray(ImageOps.fit(where, (width, height), Image.Resampling.NEAREST), np.float32)
        given["mask"] = (grey[..., None] > 127).astype(np.float32)
    return {name: np.broadcast_to(each, (num, *each.shape)) for name, each in given.items()}


def with_lora(
    config: Experiment, sources: build.Sources, params: Any, frozen: Mapping[str, Any], lora_files: str
) -> tuple[Any, dict[str, Any]]:
    """The params of a run, and those of its sources, with LoRA files merged in: `style.safetensors:0.8,detail.safetensors`.

    What a file adapts of text encoders is merged into these.

    Raises:
        ConfigError: a file is not there, or its scale is no number.
        DataError: a file is damaged, or adapts another network.
    """
    for name in filter(None, (part.strip() for part in lora_files.split(","))):
        path, _, scale = name.rpartition(":") if not pathlib.Path(name).exists() and ":" in name else (name, "", "1")
        try:
            factor = float(scale)
        except ValueError as error:
            raise ConfigError(f"--lora {name}: write FILE or FILE:SCALE, such as style.safetensors:0.8") from error
        places = [place for place in build.TEXTS if place in sources]
        texts = [experiments.text_options(sources[place].text) for place in places]
        adapters = interop.load_lora(path, experiments.options(config, sources), texts)
        whole = {"network": adapters.params} if config.text.layers else adapters.params
        params = lora.merged(params, whole, factor)
        for place, each in zip(places, adapters.texts, strict=True):
            frozen = {**frozen, place: lora.merged(frozen[place], each, factor)}
    return params, dict(frozen)


def _opened(path: pathlib.Path, flag: str) -> Image.Image:
    try:
        with Image.open(path) as image:
            return ImageOps.exif_transpose(image)
    except Exception as error:  # of many kinds: no such file, no image, damaged, a bomb
        raise ConfigError(f"{flag} {path} must be an image file ({first_line(error)})") from error
