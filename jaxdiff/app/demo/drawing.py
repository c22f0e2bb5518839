"""What a page asks for, and the images that answer it, by one run or by two from the same noise."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from jaxdiff.app.demo import programs, settings
from jaxdiff.app.demo.programs import Edit, Opened
from jaxdiff.app.demo.settings import Setting
from jaxdiff.io.errors import ConfigError

EACH, NONE = "all", "none"
MOST = 32  # images at once


class Asked(NamedTuple):
    """What is to be drawn: by each run in its own setting, from the same noise."""

    settings: Sequence[Setting]
    label: str = EACH
    prompt: str = ""
    negative: str = ""
    seed: int = 0
    num: int = 1
    edit: Edit | None = None


class Pictures(NamedTuple):
    """What a run has drawn so far: images `[H, W, C]`, and the frames `[K, H, W, C]` on the way to the first."""

    images: list[np.ndarray]
    frames: np.ndarray


def check_together(runs: Sequence[Opened]) -> None:
    """Raises a ConfigError unless the runs can start from the same noise, and be given the same labels."""
    one = runs[0]
    for other in runs[1:]:
        for what, first, second in (
            ("x of shape", _shape(one), _shape(other)),
            ("images of shape", one.config.data.image_shape, other.config.data.image_shape),
            ("model.num_classes", one.config.model.num_classes, other.config.model.num_classes),
            ("model.context_channels", one.config.model.context_channels, other.config.model.context_channels),
        ):
            if first != second:
                raise ConfigError(f"--versus: {other.name} has {what} {second}, {one.name} {first}; choose two runs that share it")


def _shape(run: Opened) -> tuple[int, ...]:
    sampler, steps, _ = settings.of_config(run.config)
    return run.walk(sampler, steps).shape


def labels(runs: Sequence[Opened]) -> list[str]:
    """What a label may be: a class, each class in turn, or none where all runs know the null label; empty without classes."""
    num = runs[0].config.model.num_classes
    unconditional = all(run.config.diffusion.label_dropout for run in runs)
    return [EACH, *map(str, range(num)), *[NONE] * unconditional] if num else []


def draw(runs: Sequence[Opened], asked: Asked) -> Iterator[list[Pictures]]:
    """What each run has drawn, after each image.

    Raises:
        ConfigError: a seed, number, label or setting that there is not.
        NonFiniteError: an image holds NaN or infinite values.
    """
    _check(runs, asked)
    drawn: list[Pictures] = []
    texts = [run.tokens([asked.prompt], asked.negative) if run.tokens else {} for run in runs]
    for index in range(asked.num):
        for number, (run, setting) in enumerate(zip(runs, asked.settings, strict=True)):
            given = {**_label(run, asked, index), **texts[number]}
            image, frames = programs.draw(run, setting, given, asked.seed, index, asked.edit)
            if index == 0:
                drawn.append(Pictures([], frames()))
            drawn[number].images.append(image)
        yield drawn


def _check(runs: Sequence[Opened], asked: Asked) -> None:
    if not 0 <= asked.seed < 2**32:
        raise ConfigError(f"the seed must be at least 0 and below 2^32, got {asked.seed}")
    if not 1 <= asked.num <= MOST:
        raise ConfigError(f"the number of images must be between 1 and {MOST}, got {asked.num}")
    if (known := labels(runs)) and asked.label not in known:
        raise ConfigError(f"there is no label {asked.label!r}; write one of {', '.join(known)}")


def _label(run: Opened, asked: Asked, index: int) -> dict[str, np.ndarray]:
    """The label `[1]` of image `index`; of a run without classes the null label."""
    num = run.config.model.num_classes
    label = {EACH: index % num, NONE: num}.get(asked.label) if num else 0
    return {"label": np.array([int(asked.label) if label is None else label], np.int32)}


def first(runs: Sequence[Opened]) -> list[Pictures]:
    """What each run draws first, as its config samples: by then its programs are compiled."""
    *_, drawn = draw(runs, Asked([settings.of_config(run.config) for run in runs]))
    return drawn
