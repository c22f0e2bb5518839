"""Prompts and captions of a run as the tokens of its text encoders."""

import pathlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np

from jaxdiff import data, interop
from jaxdiff.app import build
from jaxdiff.app.config import DENOISERS, Experiment, Text
from jaxdiff.app.runs import sources, storage
from jaxdiff.data.latents import Rows
from jaxdiff.io import files, paths
from jaxdiff.io.errors import ConfigError
from jaxdiff.training import distributed

TOKENIZER = "tokenizer.json"  # in the directory of a run that has a text encoder


def tokenizer(config: Experiment, workdir: pathlib.Path) -> Callable[[Sequence[str]], Rows]:
    """The function from texts to tokens int32 `[N, T]`, by the names of the config's encoders.

    Raises:
        ConfigError: a tokenizer is not there, or is of another vocabulary than its encoder.
    """
    places = ("text",) if config.text.layers else build.TEXTS
    folders = {"text": workdir} if config.text.layers else storage.source_directories(config, workdir, places)
    encoders = {name: config.text if config.text.layers else storage.read_config(folder).text for name, folder in folders.items()}
    found = {name: _read(paths.path(folders[name]) / TOKENIZER, text) for name, text in encoders.items()}
    return lambda texts: {name: each(list(texts)) for name, each in found.items()}


def make_tokenizer(config: Experiment, workdir: pathlib.Path, data_dir: str | None) -> None:
    """Writes the tokenizer of a run that trains a text encoder and has none yet.

    That of the run whose params it starts from, or whose student it is; else one of the words of its captions.
    """
    path, t, c = paths.path(workdir) / TOKENIZER, config.text, config.data
    if not t.layers or config.objective == "text" or path.is_file() or not distributed.is_first():
        return
    storage.check_config(workdir, config)
    start = next(iter(storage.source_directories(config, workdir, ("init", "teacher")).values()), None)
    if start is not None:
        made = _read(paths.path(start) / TOKENIZER, t)
    else:
        read, num = data.captions(c.name, c.split, data_dir), data.num_images(c.name, c.split, data_dir)
        made = interop.word_tokenizer(read(np.arange(num)), t.vocabulary, t.length)
    with files.writing_to(workdir, "--workdir"):
        made.save(workdir)


def prompted(config: Experiment, workdir: pathlib.Path, prompts: Sequence[str], negative: str = "") -> dict[str, Any]:
    """What `image_sampler` is given for prompts, one an image, and for what they are guided away from."""
    tokens, each = tokenizer(config, workdir), list(dict.fromkeys(prompts))
    rows = [each.index(prompt) for prompt in prompts]
    given, null = tokens(each), tokens([negative])
    return {name: values[rows] for name, values in given.items()} | {
        "null": {name: np.repeat(values, len(rows), axis=0) for name, values in null.items()}
    }


def held_out_captions(config: Experiment, data_dir: str | None) -> Callable[[np.ndarray], list[str]] | None:
    """The function from numbers of held-out images to their captions; None where the config's network is given no text."""
    c, reads = config.data, build.has_text(config) and config.objective in DENOISERS
    return data.captions(c.name, c.held_out, data_dir) if reads else None


def nulls(config: Experiment, workdir: pathlib.Path, num: int) -> dict[str, Any]:
    """The tokens of as many empty prompts, under `null`; of a config without text nothing."""
    if not build.has_text(config):
        return {}
    folders = storage.source_directories(config, workdir, build.TEXTS)
    configs = {place: storage.read_config(folder) for place, folder in folders.items()}
    return {"null": jax.tree.map(lambda row: np.repeat(row, num, axis=0), build.nulls(config, configs))}


def encoders(config: Experiment, workdir: pathlib.Path) -> tuple[dict[str, Experiment], dict[str, Any]]:
    """The configs and the params of a run's frozen text encoders, by place."""
    return sources.source_configs(config, workdir, build.TEXTS), sources.source_params(config, workdir, build.TEXTS)


def fingerprints(config: Experiment, workdir: pathlib.Path) -> tuple[str, ...]:
    """Those of the params of a run's frozen text encoders."""
    folders = storage.source_directories(config, workdir, build.TEXTS)
    return tuple(storage.fingerprint(folders[place]) for place in build.TEXTS if place in folders)


def null_states(config: Experiment, workdir: pathlib.Path) -> dict[str, np.ndarray]:
    """What frozen encoders make of an empty prompt, `[1, ...]` by name, where captions were encoded before training."""
    configs, params = encoders(config, workdir)
    null = jax.jit(partial(build.null_states, config, configs))(params, build.nulls(config, configs))
    return jax.device_get(null)


def _read(path: pathlib.Path, text: Text) -> interop.Tokenizer:
    if not path.is_file():
        raise ConfigError(f"there is no {path}, the tokenizer of this run; import the weights again, or train it anew")
    found = interop.tokenizer(path)
    for name in ("length", "begin", "end", "pad"):
        if getattr(found, name) != getattr(text, name):
            raise ConfigError(
                f"{path} has {name} {getattr(found, name)}, its encoder has {getattr(text, name)}; bring the right one"
            )
    found.check(text.vocabulary, text.length, "its encoder")
    return found
