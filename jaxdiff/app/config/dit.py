"""The fields of the diffusion transformer, and what they must be."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import NonNegativeInt, PositiveFloat

from jaxdiff.app.config.field_types import DENOISERS, PositiveInt

OF_UNETS = {  # groups and their fields that a transformer does not read
    "model": ("multipliers", "blocks", "attention", "transformer", "scale_shift", "dropout", "fourier", "residual_resampling"),
    "published": ("groups", "transformer_epsilon", "padding", "attention_levels", "transformer_depths", "pooled_channels"),
}


@dataclass(frozen=True)
class Dit:
    """The diffusion transformer of model.network dit, of width model.channels (see jaxdiff.models.dit).

    S, B, L and XL have depth 12, 12, 24, 28, channels 384, 768, 1024, 1152, and heads 6, 12, 16, 16.
    """

    depth: PositiveInt = 12
    """Its blocks."""
    patch: PositiveInt = 2
    """Height and width of the patches that images are cut into."""
    mlp_ratio: PositiveFloat = 4.0
    """Width of the feed-forward layers, relative to model.channels."""
    qk_norm: bool = False
    """Normalise queries and keys by their root mean square."""
    swiglu: bool = False
    """Gate the feed-forward layers."""
    rotary: bool = False
    """Turn queries and keys by their place too."""
    registers: NonNegativeInt = 0
    """Learned tokens beside those of the image."""
    context_blocks: Literal["cross", "joint"] = "cross"
    """How blocks attend to context: after self-attention, or in one attention with the image, as Stable Diffusion 3."""


def dit_rules(c: Any) -> Iterator[tuple[str, str, object]]:
    """What a transformer, and a run without one, allow: rules of a config."""
    m, d = c.model, c.dit
    height, width, _ = c.data.image_shape
    if m.network != "dit":
        yield "dit", "left as it is: model.network unet does not read it", d == type(d)()
        return
    yield "model.network", "unet for all but denoisers", c.objective in DENOISERS
    for group, names in OF_UNETS.items():
        values = getattr(c, group)
        for name in names:
            untouched = getattr(values, name) == getattr(type(values)(), name)
            yield f"{group}.{name}", "left as it is: model.network dit does not read it", untouched
    yield "cascade.factor", "1 with model.network dit, which sees no second image", c.cascade.factor == 1
    cut = bool(c.sources.autoencoder) or height % d.patch == width % d.patch == 0
    yield "data.image_shape", f"divisible by dit.patch, {d.patch}", cut
    heads = m.heads or max(m.channels // m.head_channels, 1)
    yield (
        "model.heads" if m.heads else "model.head_channels",
        f"such that the heads divide model.channels, {m.channels}",
        not m.channels % heads,
    )
    unit = 4 * heads if d.rotary else 4
    yield "model.channels", f"divisible by {unit}, by the sines and cosines of places", not m.channels % unit
    yield "dit.context_blocks", "cross without model.context_channels", m.context_channels or d.context_blocks == "cross"
