"""The layers of the UNet beside their published names: by diffusers, and by OpenAI and CompVis.

Tables list names of ours, of diffusers, and of OpenAI's guided-diffusion with what latent diffusion made of it. `table` puts them
together for a network; import and export read the same table.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from jaxdiff.interop.layouts import CLASSES, PLAIN, POINTWISE, THREE, Layout, by_heads
from jaxdiff.models.attention import head_count

DIFFUSERS, COMPVIS = 1, 2  # columns

NETWORK = (
    ("Conv_0", "conv_in", "input_blocks.0.0"),
    ("Dense_0", "time_embedding.linear_1", "time_embed.0"),
    ("Dense_1", "time_embedding.linear_2", "time_embed.2"),
    ("pooled_in", "add_embedding.linear_1", "label_emb.0.0"),
    ("pooled_out", "add_embedding.linear_2", "label_emb.0.2"),
    ("Embed_0", "class_embedding", "label_emb"),
    ("Norm_0", "conv_norm_out", "out.0"),
    ("Conv_{last}", "conv_out", "out.2"),
)
RESIDUAL = (
    ("Norm_0", "norm1", "in_layers.0"),
    ("Conv_0", "conv1", "in_layers.2"),
    ("Dense_0", "time_emb_proj", "emb_layers.1"),
    ("Norm_1", "norm2", "out_layers.0"),
    ("Conv_1", "conv2", "out_layers.3"),
    ("skip", "conv_shortcut", "skip_connection"),
)
ATTENTION = (
    ("Norm_0", "group_norm", "norm"),
    ("qkv", ("to_q", "to_k", "to_v"), "qkv"),
    ("out", "to_out.0", "proj_out"),
)
TRANSFORMER = (
    ("Norm_0", "norm", "norm"),
    ("in", "proj_in", "proj_in"),
    ("out", "proj_out", "proj_out"),
)
BLOCK = (
    ("norm_self", "norm1", "norm1"),
    ("self/q", "attn1.to_q", "attn1.to_q"),
    ("self/k", "attn1.to_k", "attn1.to_k"),
    ("self/v", "attn1.to_v", "attn1.to_v"),
    ("self/out", "attn1.to_out.0", "attn1.to_out.0"),
    ("norm_cross", "norm2", "norm2"),
    ("cross/q", "attn2.to_q", "attn2.to_q"),
    ("cross/k", "attn2.to_k", "attn2.to_k"),
    ("cross/v", "attn2.to_v", "attn2.to_v"),
    ("cross/out", "attn2.to_out.0", "attn2.to_out.0"),
    ("norm_feed", "norm3", "norm3"),
    ("feed/in", "ff.net.0.proj", "ff.net.0.proj"),
    ("feed/out", "ff.net.2", "ff.net.2"),
)
OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}  # names before diffusers 0.15


class Row(NamedTuple):
    """A layer of ours, such as `residual_0/Conv_0`, its names in a file, and how its arrays lie there."""

    ours: str
    names: tuple[str, ...]
    layout: Layout


class _Place(NamedTuple):
    """Where a block is: the names of its residual block, and of attention beside it."""

    number: int
    level: int
    attends: bool
    names: tuple[str, str, str]  # of the residual block; the first is ours
    beside: tuple[str, str]  # of attention or a transformer, by diffusers and CompVis


def table(options: Mapping[str, Any], column: int, linear: bool = True, new_order: bool = False) -> list[Row]:
    """The rows of the UNet of such options (`models.unet.unet`), by the names of a column.

    `linear` says whether transformers project by dense layers, else by convolutions; `new_order` that queries, keys and values
    come one after another for all heads (`use_new_attention_order` of guided-diffusion).
    """
    places, convolutions = _places(options)
    last = 2 * (len(options["multipliers"]) - 1) + 1 if not options.get("residual_resampling") else 1
    rows = [Row(ours.format(last=last), (name[column - 1],), CLASSES if ours == "Embed_0" else PLAIN) for ours, *name in NETWORK]
    rows += [Row(ours, (names[column - 1],), PLAIN) for ours, *names in convolutions]
    for place in places:
        rows += _rows(RESIDUAL, column, place.names[0], place.names[column], {"skip": POINTWISE})
        if not place.attends:
            continue
        beside, depth = place.beside[column - 1], _depth(options, place.level)
        if not depth:
            axes = options.get("attention_axes", 1)
            qkv = THREE if column == DIFFUSERS else _fused(options, place.level, new_order)._replace(trailing=axes)
            own = {"qkv": qkv, "out": Layout(trailing=0 if column == DIFFUSERS else axes)}
            rows += _rows(ATTENTION, column, f"attention_{place.number}", beside, own)
            continue
        projection = PLAIN if linear else POINTWISE
        ours = f"transformer_{place.number}"
        rows += _rows(TRANSFORMER, column, ours, beside, {"in": projection, "out": projection})
        for number in range(depth):
            rows += _rows(BLOCK, column, f"{ours}/block_{number}", f"{beside}.transformer_blocks.{number}", {})
    return rows


def _rows(names: Any, column: int, ours: str, published: str, layouts: Mapping[str, Layout]) -> Iterator[Row]:
    for each in names:
        theirs = each[column] if isinstance(each[column], tuple) else (each[column],)
        yield Row(f"{ours}/{each[0]}", tuple(f"{published}.{name}" for name in theirs), layouts.get(each[0], PLAIN))


def _depth(options: Mapping[str, Any], level: int) -> int:
    depths = options.get("transformer_depths")
    return depths[level] if depths else options.get("transformer", 0)


def _fused(options: Mapping[str, Any], level: int, new_order: bool) -> Layout:
    width = options["channels"] * options["multipliers"][level]
    heads = head_count(width, options["head_channels"], options.get("heads", 0))
    return PLAIN if new_order else by_heads(heads)


def _places(options: Mapping[str, Any]) -> tuple[list[_Place], list[tuple[str, str, str]]]:
    """The blocks in the order in which our network numbers them, and the convolutions between levels."""
    levels, blocks, resampling = len(options["multipliers"]), options["blocks"], options.get("residual_resampling", False)
    numbers, inputs, convs = itertools.count(), itertools.count(1), itertools.count(1)
    places: list[_Place] = []
    convolutions: list[tuple[str, str, str]] = []

    def add(level: int, attends: bool, diffusers: str, compvis: str, beside: tuple[str, str]) -> None:
        number = next(numbers)
        places.append(_Place(number, level, attends, (f"residual_{number}", diffusers, compvis), beside))

    def resample(level: int, diffusers: str, compvis: str, ending: str) -> None:
        if resampling:
            add(level, False, diffusers, compvis, ("", ""))
        else:
            convolutions.append((f"Conv_{next(convs)}", f"{diffusers}.conv", f"{compvis}.{ending}"))

    for level in range(levels):
        attends = level in options["attention_levels"]
        if level:
            resample(level, f"down_blocks.{level - 1}.downsamplers.0", f"input_blocks.{next(inputs)}.0", "op")
        for block in range(blocks):
            there, number = f"down_blocks.{level}", next(inputs)
            beside = f"{there}.attentions.{block}", f"input_blocks.{number}.1"
            add(level, attends, f"{there}.resnets.{block}", f"input_blocks.{number}.0", beside)
    add(levels - 1, True, "mid_block.resnets.0", "middle_block.0", ("mid_block.attentions.0", "middle_block.1"))
    add(levels - 1, False, "mid_block.resnets.1", "middle_block.2", ("", ""))
    outputs = itertools.count()
    for level in reversed(range(levels)):
        attends, there, number = level in options["attention_levels"], f"up_blocks.{levels - 1 - level}", 0
        for block in range(blocks + 1):
            number = next(outputs)
            beside = f"{there}.attentions.{block}", f"output_blocks.{number}.1"
            add(level, attends, f"{there}.resnets.{block}", f"output_blocks.{number}.0", beside)
        if level:
            resample(level, f"{there}.upsamplers.0", f"output_blocks.{number}.{1 + attends}", "conv")
    return places, convolutions
