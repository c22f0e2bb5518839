"""Text in a config's run: its encoders, and what a network is given of tokens.

Tokens have the names of the encoders' places, `text` and `text_2`, and under `null` stand those of the negative prompt.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxdiff.app.config import Experiment, Text
from jaxdiff.interop.texts import text_module
from jaxdiff.io.errors import ConfigError
from jaxdiff.models.text import TextEncoder

TEXTS = ("text", "text_2")  # the places of frozen encoders among a config's sources
Given = Mapping[str, Any]


def text_encoder(text: Text, dtype: str = "float32") -> TextEncoder:
    """The module of a text encoder."""
    return text_module({**vars(text), "positions": text.length}, jnp.dtype(dtype))


def empty_prompt(text: Text) -> np.ndarray:
    """The tokens `[T]` of a prompt without words."""
    return np.array([text.begin, text.end, *[text.pad] * text.length][: text.length], np.int32)


def has_text(config: Experiment) -> bool:
    """Whether the config's network is given text."""
    return bool(config.text.layers or config.sources.text)


def text_configs(config: Experiment, sources: Mapping[str, Experiment]) -> dict[str, Text]:
    """The text encoders of a config by the names of their tokens: frozen ones of its sources, or its own."""
    if config.text.layers:
        return {"text": config.text}
    return {place: sources[place].text for place in TEXTS if place in sources}


def nulls(config: Experiment, sources: Mapping[str, Experiment]) -> dict[str, np.ndarray]:
    """The tokens `[1, T]` of an empty prompt, by name."""
    return {name: empty_prompt(text)[None] for name, text in text_configs(config, sources).items()}


def encoded(config: Experiment, sources: Mapping[str, Experiment], frozen: Given, given: Given) -> dict[str, Any]:
    """What is given, with the states of frozen encoders in place of tokens `[B, T]`: `context` and, if it is read, `pooled`.

    The same of its `null`. Where the config wants zeros for an empty prompt, they are zeros there.
    """
    if config.text.layers or not has_text(config):
        return dict(given)
    if "context" in given:  # of captions that were encoded before training
        return {**given, "null": frozen["null"]}
    rest = {name: each for name, each in given.items() if name not in TEXTS}
    return {**rest, **states(config, sources, frozen, given), "null": null_states(config, sources, frozen, given["null"])}


def states(config: Experiment, sources: Mapping[str, Experiment], frozen: Given, tokens: Given) -> dict[str, Any]:
    """The states of frozen encoders side by side, `context` `[B, T, D]`, and `pooled` of the last, if the network reads it."""
    found = text_configs(config, sources)
    parts = [text_encoder(text, config.model.dtype).apply({"params": frozen[name]}, tokens[name]) for name, text in found.items()]
    named: dict[str, Any] = {"context": jnp.concatenate([each for each, _ in parts], axis=-1)}
    return named | ({"pooled": parts[-1][1]} if config.published.pooled_channels else {})


def null_states(config: Experiment, sources: Mapping[str, Experiment], frozen: Given, tokens: Given) -> dict[str, Any]:
    """Those of negative prompts, zeros where one is empty and the config wants zeros."""
    null = states(config, sources, frozen, tokens)
    if not config.published.zero_null:
        return null
    alike = [jnp.all(tokens[name] == none, axis=1) for name, none in nulls(config, sources).items()]
    said = ~jnp.all(jnp.stack(alike), axis=0)
    return {name: jnp.where(said.reshape(-1, *(1 for _ in each.shape[1:])), each, 0) for name, each in null.items()}


def own_context(config: Experiment, params: Any, given: Given) -> dict[str, Any]:
    """What is given, with the states of the encoder that is trained with the network in place of tokens; without `null`."""
    rest = {name: each for name, each in given.items() if name not in ("text", "null")}
    if not config.text.layers or "text" not in given:
        return rest
    context, _ = text_encoder(config.text, config.model.dtype).apply({"params": params["text"]}, given["text"])
    return {**rest, "context": context}


def check_texts(config: Experiment, sources: Mapping[str, Experiment]) -> None:
    """Raises a ConfigError unless the frozen encoders' states are as wide as the network's context, and pooled as its pooled."""
    found = text_configs(config, sources)
    if config.text.layers or len(found) < bool(config.sources.text) + bool(config.sources.text_2) or not found:
        return
    width = sum(text.width for text in found.values())
    if width != config.model.context_channels:
        raise ConfigError(f"sources.text: its states are {width} wide, model.context_channels is {config.model.context_channels}")
    last = list(found.values())[-1]
    if config.published.pooled_channels not in (0, pooled := last.projection or last.width):
        known = config.published.pooled_channels
        raise ConfigError(f"sources.text_2: its pooled vector is {pooled} wide, published.pooled_channels is {known}")
