"""The layers of the autoencoder beside their published names: by diffusers, and by CompVis (taming-transformers)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jaxdiff.interop.layouts import MOMENTS, PLAIN, POINTWISE, THREE, Layout
from jaxdiff.interop.unet_names import COMPVIS, DIFFUSERS, Row

CODES = "quantize.embedding.weight"  # of a codebook, by both names
ENDS = (
    ("encoder/conv_in", "encoder.conv_in", "encoder.conv_in"),
    ("encoder/norm_out", "encoder.conv_norm_out", "encoder.norm_out"),
    ("encoder/conv_out", "encoder.conv_out", "encoder.conv_out"),
    ("encoder/quant", "quant_conv", "quant_conv"),
    ("decoder/post_quant", "post_quant_conv", "post_quant_conv"),
    ("decoder/conv_in", "decoder.conv_in", "decoder.conv_in"),
    ("decoder/norm_out", "decoder.conv_norm_out", "decoder.norm_out"),
    ("decoder/conv_out", "decoder.conv_out", "decoder.conv_out"),
)
RESIDUAL = (
    ("Norm_0", "norm1", "norm1"),
    ("Conv_0", "conv1", "conv1"),
    ("Norm_1", "norm2", "norm2"),
    ("Conv_1", "conv2", "conv2"),
    ("skip", "conv_shortcut", "nin_shortcut"),
)
ATTENTION = (
    ("Norm_0", "group_norm", "norm"),
    ("qkv", ("to_q", "to_k", "to_v"), ("q", "k", "v")),
    ("out", "to_out.0", "proj_out"),
)
MIDDLE = (("middle_0", "resnets.0", "block_1"), ("middle_1", "resnets.1", "block_2"))


def table(options: Mapping[str, Any], column: int) -> list[Row]:
    """The rows of encoder and decoder of such options (channels, multipliers, blocks, attention_levels)."""
    levels, blocks, attention = len(options["multipliers"]), options["blocks"], options["attention_levels"]
    pointwise = {"encoder/quant": POINTWISE if options["codebook"] else MOMENTS, "decoder/post_quant": POINTWISE}
    rows = [Row(ours, (name[column - 1],), pointwise.get(ours, PLAIN)) for ours, *name in ENDS]

    def residual(ours: str, published: str) -> None:
        rows.extend(Row(f"{ours}/{each[0]}", (f"{published}.{each[column]}",), _own(each[0], column)) for each in RESIDUAL)

    def attend(ours: str, published: str) -> None:
        for own, *names in ATTENTION:
            name = names[column - 1]
            parts = name if isinstance(name, tuple) else (name,)
            rows.append(Row(f"{ours}/{own}", tuple(f"{published}.{part}" for part in parts), _own(own, column)))

    for half in ("encoder", "decoder"):
        for ours, diffusers, compvis in MIDDLE:
            residual(f"{half}/residual_{ours}", f"{half}." + (f"mid_block.{diffusers}", f"mid.{compvis}")[column - 1])
        attend(f"{half}/attention_middle_0", f"{half}." + ("mid_block.attentions.0", "mid.attn_1")[column - 1])
        direction, number = ("down", blocks) if half == "encoder" else ("up", blocks + 1)
        for level in range(levels):
            there = level if half == "encoder" or column == COMPVIS else levels - 1 - level
            block = f"{half}.{direction}_blocks.{there}" if column == DIFFUSERS else f"{half}.{direction}.{there}"
            each, beside = ("resnets", "attentions") if column == DIFFUSERS else ("block", "attn")
            for index in range(number):
                residual(f"{half}/residual_{level}_{index}", f"{block}.{each}.{index}")
                if level in attention:
                    attend(f"{half}/attention_{level}_{index}", f"{block}.{beside}.{index}")
        for level in range(1, levels):
            rows.append(Row(f"{half}/{direction}_{level}", (_resampling(half, level, levels, column),), PLAIN))
    return rows


def _own(layer: str, column: int) -> Layout:
    """The layout of a layer of a block: CompVis has attention's as convolutions over single pixels."""
    trailing = 2 if layer == "skip" or (column == COMPVIS and layer in ("qkv", "out")) else 0
    return {"qkv": THREE}.get(layer, PLAIN)._replace(trailing=trailing)


def _resampling(half: str, level: int, levels: int, column: int) -> str:
    """The convolution between a level and the finer one."""
    if half == "encoder":
        return (f"encoder.down_blocks.{level - 1}.downsamplers.0.conv", f"encoder.down.{level - 1}.downsample.conv")[column - 1]
    return (f"decoder.up_blocks.{levels - 1 - level}.upsamplers.0.conv", f"decoder.up.{level}.upsample.conv")[column - 1]
