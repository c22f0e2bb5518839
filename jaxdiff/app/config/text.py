"""The fields of a text encoder, and what they must be."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import NonNegativeInt, PositiveFloat

from jaxdiff.app.config.field_types import DENOISERS, PositiveInt


@dataclass(frozen=True)
class Text:
    """A text encoder, CLIP's transformer (see jaxdiff.models.text): of objective text, or trained with a diffusion network."""

    layers: NonNegativeInt = 0
    """0: no text encoder."""
    width: PositiveInt = 64
    """Of the states, which a network attends to."""
    heads: PositiveInt = 4
    feed: NonNegativeInt = 0
    """Width of the feed-forward layers; 0: four times width."""
    length: PositiveInt = 77
    """Tokens of a prompt, with begin and end: shorter ones are padded, longer ones are cut."""
    vocabulary: PositiveInt = 49408
    """Number of tokens; of an encoder that is trained, those beyond the words of the captions are unused."""
    activation: Literal["quick_gelu", "gelu"] = "quick_gelu"
    skip: NonNegativeInt = 0
    """Layers at the end that the states leave out: 1 in Stable Diffusion XL."""
    final_norm: bool = True
    """Of the states; those of Stable Diffusion XL have none."""
    projection: NonNegativeInt = 0
    """Width of the one vector of the whole text; 0: width, without a projection."""
    epsilon: PositiveFloat = 1e-5
    """Of the norms."""
    begin: NonNegativeInt = 49406
    """The token before a prompt."""
    end: NonNegativeInt = 49407
    """The token after it."""
    pad: NonNegativeInt = 49407
    """The tokens after that: end, or 0."""


def text_rules(c: Any, this: str) -> Iterator[tuple[str, str, object]]:
    """What a text encoder, of a run's own or frozen, allows: rules of a config, `this` is its objective with an article."""
    t, s = c.text, c.sources
    encoder, denoises, has_text = c.objective == "text", c.objective in DENOISERS, bool(c.text.layers or c.sources.text)
    yield "text.layers", "at least 1 for a text run", t.layers or not encoder
    yield "text.layers", f"0 for {this}, which reads no text", not t.layers or encoder or denoises
    untouched = t.layers or t == type(t)()
    yield "text.layers", "at least 1 where text describes an encoder", untouched
    yield "text.width", f"divisible by text.heads, {t.heads}", t.width % t.heads == 0
    yield "text.skip", f"below text.layers, {t.layers}", t.skip < max(t.layers, 1)
    for name in ("begin", "end", "pad"):
        yield f"text.{name}", f"below text.vocabulary, {t.vocabulary}", getattr(t, name) < t.vocabulary
    yield "sources.text", f"empty for {this}, which reads no text", denoises or not s.text
    yield "sources.text", "empty with text.layers: one encoder is frozen, or trained", not (s.text and t.layers)
    yield "sources.text_2", "empty without sources.text", s.text or not s.text_2
    may_have = has_text or s.init or s.teacher  # whose encoders it shares
    yield "sampling.prompts", "empty without a text encoder (text.layers or sources.text)", may_have or not c.sampling.prompts
    wide = not (has_text and denoises) or c.model.context_channels
    yield "model.context_channels", "the width of the text's states, with a text encoder", wide
    same = not (t.layers and denoises) or c.model.context_channels == t.width
    yield "model.context_channels", f"text.width, {t.width}", same
    plain = not (has_text and denoises) or (c.cascade.factor == 1 and c.diffusion.schedule != "learned")
    yield "text.layers", "0 in a cascade and with a learned schedule", plain
