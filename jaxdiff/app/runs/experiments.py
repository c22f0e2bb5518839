"""Configs of the runs of published weights, and the options of their networks, by which files are opened and written."""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jaxdiff import interop
from jaxdiff.app import build
from jaxdiff.app.config import (
    Autoencoder,
    Betas,
    Data,
    Diffusion,
    Distillation,
    Dit,
    Evaluation,
    Experiment,
    Model,
    Published,
    Sampling,
    Sources,
    Text,
    validated,
)
from jaxdiff.interop.chains import Chain
from jaxdiff.interop.parts import Part
from jaxdiff.models.attention import head_count

PIXELS_PER_LATENT = 8  # where no autoencoder says it


class Wanted(NamedTuple):
    """What a user says of weights: what their files do not say, and how the run begins."""

    size: tuple[int, int] | None = None
    data: str = ""
    options: Mapping[str, Any] = {}  # of the network, such as head_channels
    chain: Mapping[str, Any] = {}  # prediction, kind of betas
    tokenizers: Sequence[pathlib.Path] = ()  # of text encoders, in their order
    dtype: str = "float32"  # in which the networks compute


def unet_experiment(part: Part, chain: Chain, wanted: Wanted, sources: Sources, factor: int) -> Experiment:
    """The config of a UNet's run; in latents those of its autoencoder, which makes images `factor` times smaller."""
    o, context, latents = part.options, part.options.get("context_channels", 0), sources.autoencoder
    factor = factor if latents or not context else PIXELS_PER_LATENT
    shape = (*image_size(part, wanted, factor), o["in_channels"])
    pixels = (*shape[:2], 3) if latents else (shape[0] // factor, shape[1] // factor, shape[2])
    prediction: Any = chain.prediction
    spacing: Any = chain.spacing
    latent, consistency = bool(latents or context), chain.consistency > 0
    sampling = Sampling(
        sampler="consistency" if consistency else "ddim",
        steps=1 if consistency else 50,
        spacing=spacing,
        steps_offset=chain.steps_offset,
        guidance=(5.0 if o.get("pooled_channels") else 7.5) if sources.text else 1.0,  # as the pipelines' own
        clip=chain.clip and not latent,
        num=16,
        batch_size=4 if latent else 32,
    )
    zero_null = bool(sources.text and o.get("pooled_channels"))  # as Stable Diffusion XL's pipeline does
    listed = Distillation(target="data", steps=40, spacing="karras", clip=chain.clip)  # Song et al. (2023) train on 40 levels
    return validated(
        Experiment(
            objective="consistency" if consistency else "diffusion",
            data=Data(name=wanted.data, image_shape=pixels, fit="crop"),
            model=_fields(Model, {"attention": (), "num_classes": 0, **o, "network": o["kind"], "dtype": wanted.dtype}),
            published=_fields(Published, {**o, **chain.told, "boundary": chain.consistency, "zero_null": zero_null}),
            dit=_fields(Dit, o if o["kind"] == "dit" else {}),
            betas=Betas() if consistency else Betas(**chain.betas),
            diffusion=Diffusion(
                schedule="karras" if consistency else "rectified_flow" if chain.straight else "betas",
                prediction=prediction,
                weight=prediction,
                label_dropout=0.1 if context or o["kind"] == "dit" else 0.0,
            ),
            sources=sources,
            ema={"ema": 0.9999},
            steps=1,
            sampling=sampling,
            evaluation=Evaluation(batch_size=sampling.batch_size),
            distillation=listed if consistency else Distillation(),
        ),
        where=part.where,
    )


def autoencoder_experiment(part: Part, wanted: Wanted) -> Experiment:
    """The config of an autoencoder's run."""
    o = part.options
    height, width = wanted.size or (o.get("sample_size") or 256,) * 2
    return validated(
        Experiment(
            objective="autoencoder",
            data=Data(name=wanted.data, image_shape=(height, width, o["in_channels"]), fit="crop"),
            model=_fields(Model, {"attention": (), "num_classes": 0, **o, "dtype": wanted.dtype}),
            published=_fields(Published, o),
            autoencoder=Autoencoder(latent_channels=o["latent_channels"], codebook=o["codebook"]),
            ema={"ema": 0.9999},
            steps=1,
        ),
        where=part.where,
    )


def text_experiment(part: Part, tokens: interop.Tokenizer) -> Experiment:
    """The config of a text encoder's run."""
    o, special = part.options, {name: getattr(tokens, name) for name in ("begin", "end", "pad", "length")}
    text = _fields(Text, {**o, **special})
    return validated(Experiment(objective="text", text=text, ema={"ema": 0.9999}, steps=1), where=part.where)


def text_options(text: Text) -> dict[str, Any]:
    """The options of a text encoder, as published files are opened and written by them."""
    return {**vars(text), "kind": "text", "positions": text.length}


def options(config: Experiment, sources: build.Sources = build.NONE) -> dict[str, Any]:
    """The options of a run's network, as published files are opened and written by them; `sources` holds its autoencoder."""
    height, _, channels = build.space(config, sources)
    levels = range(len(config.model.multipliers))
    by_size = tuple(level for level in levels if height >> level in config.model.attention)
    network = {**vars(config.published), **vars(config.model), "in_channels": channels}
    network |= {"attention": (), "attention_levels": config.published.attention_levels or by_size}
    if config.objective != "autoencoder" and config.model.network == "dit":
        return network | {**vars(config.dit), "kind": "dit", "attention_levels": (), "sample_size": height}
    if config.objective != "autoencoder":
        return network | {"kind": "unet"}
    codes = {"latent_channels": config.autoencoder.latent_channels, "codebook": config.autoencoder.codebook}
    return network | codes | {"kind": "autoencoder", "heads": _heads(config)}


def _heads(config: Experiment) -> int:
    """Of the autoencoder's attention, which is in its coarsest level: as diffusers has it, 1."""
    width = config.model.channels * config.model.multipliers[-1]
    return head_count(width, config.model.head_channels, config.model.heads)


def image_size(part: Part, wanted: Wanted, factor: int) -> tuple[int, int]:
    """Height and width of the images of a UNet, whose latents are `factor` times smaller."""
    if wanted.size:
        return wanted.size
    size = part.options.get("sample_size")
    if isinstance(size, int) or size is None:
        size = (size or 64,) * 2
    return size[0] * factor, size[1] * factor


def factor(part: Part) -> int:
    """How many times smaller an autoencoder makes images, in height and width."""
    return 2 ** (len(part.options["multipliers"]) - 1)


def _fields(kind: Any, values: Mapping[str, Any]) -> Any:
    """The dataclass with those of the values that are its fields."""
    return kind(**{field.name: values[field.name] for field in dataclasses.fields(kind) if field.name in values})
