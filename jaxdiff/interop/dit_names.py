"""The layers of diffusion transformers beside their published names: by diffusers, and by Peebles & Xie, whose SiT has too."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxdiff.interop.layouts import PLAIN, Layout
from jaxdiff.interop.params import Renamed
from jaxdiff.interop.unet_names import DIFFUSERS, Row
from jaxdiff.io.errors import DataError
from jaxdiff.models.dit import SIZES

PUBLISHED = 2  # the column of Peebles & Xie
FIRST = "transformer_blocks.0.norm1.emb."  # diffusers keeps the embedding of condition and label in every block
NETWORK = (
    ("patches", "pos_embed.proj", "x_embedder.proj"),
    ("condition/in", f"{FIRST}timestep_embedder.linear_1", "t_embedder.mlp.0"),
    ("condition/out", f"{FIRST}timestep_embedder.linear_2", "t_embedder.mlp.2"),
    ("label", f"{FIRST}class_embedder.embedding_table", "y_embedder.embedding_table"),
    ("modulation", "proj_out_1", "final_layer.adaLN_modulation.1"),
    ("out", "proj_out_2", "final_layer.linear"),
)
BLOCK = (
    ("modulation", "norm1.linear", "adaLN_modulation.1"),
    ("self_attention/q", "attn1.to_q", "attn.qkv"),
    ("self_attention/k", "attn1.to_k", "attn.qkv"),
    ("self_attention/v", "attn1.to_v", "attn.qkv"),
    ("self_attention_out/out", "attn1.to_out.0", "attn.proj"),
    ("self_mlp/in", "ff.net.0.proj", "mlp.fc1"),
    ("self_mlp/out", "ff.net.2", "mlp.fc2"),
)
BLOCKS = {DIFFUSERS: "transformer_blocks", PUBLISHED: "blocks"}
NEGATIVE = Layout(lambda parts: -parts[0], lambda whole: [-whole])  # SiT predicts data - noise, ours noise - data


def table(options: Mapping[str, Any], column: int) -> list[Row]:
    """The rows of the transformer of such options, by the names of a column."""
    own = {"patches": patches(options["patch"], options["in_channels"])}
    own |= {"out": NEGATIVE} if options.get("negative") else {}
    rows = [Row(ours, (names[column - 1],), own.get(ours, PLAIN)) for ours, *names in NETWORK]
    thirds = {f"self_attention/{name}": third(n) for n, name in enumerate("qkv")} if column == PUBLISHED else {}
    for number in range(options["depth"]):
        place = f"{BLOCKS[column]}.{number}"
        rows += [
            Row(f"block_{number}/{ours}", (f"{place}.{names[column - 1]}",), thirds.get(ours, PLAIN)) for ours, *names in BLOCK
        ]
    return rows


def patches(patch: int, channels: int) -> Layout:
    """Of the convolution over patches, which is a dense layer of ours."""

    def join(parts: Any) -> np.ndarray:
        array = np.asarray(parts[0])
        if array.ndim == 1 or array.shape[1:] == (channels,):  # a bias, or pixels one by one
            return array
        return np.moveaxis(array, 1, -1).reshape(len(array), -1)

    def split(whole: np.ndarray) -> list[np.ndarray]:
        if whole.ndim == 1:
            return [whole]
        return [np.moveaxis(whole.reshape(len(whole), patch, patch, channels), -1, 1)]

    return Layout(join, split)


def third(number: int) -> Layout:
    """Of queries, keys or values, which are one layer in the file; back, three alike, for their shapes alone."""
    return Layout(lambda parts: np.split(parts[0], 3)[number], lambda whole: [np.concatenate([whole] * 3)])


def named(arrays: Mapping[str, np.ndarray], where: str) -> Mapping[str, np.ndarray]:
    """The arrays without positions, which are constants, and without the copies of the first block's embedding in diffusers.

    Raises:
        DataError: a block has another embedding than the first one.
    """
    kept = {}
    for name in arrays:
        first = re.sub(r"^transformer_blocks\.\d+\.norm1\.emb\.", FIRST, name)
        if first != name and not np.array_equal(arrays[name], arrays[first]):
            raise DataError(f"{where}: {name} is not {first}; jaxdiff's transformers embed condition and label once for all blocks")
        if first == name and name not in ("pos_embed", "pos_embed.pos_embed"):
            kept[name] = name
    return Renamed(arrays, kept)


def inferred(shapes: Mapping[str, tuple[int, ...]], where: str, velocity: bool) -> dict[str, Any]:
    """The options of a transformer by the names of Peebles & Xie; with `velocity` it is SiT's, which are the same.

    Heads are those of the published size of its width, else 64 channels wide.

    Raises:
        DataError: the names are not those of such a transformer.
    """
    try:
        channels, in_channels, patch = shapes["x_embedder.proj.weight"][:3]
        outputs, places = shapes["final_layer.linear.weight"][0], shapes["pos_embed"][1]
        heads = {width: heads for _, width, heads in SIZES.values()}
        return {
            "kind": "dit",
            "in_channels": in_channels,
            "channels": channels,
            "depth": 1 + max(int(name.split(".")[1]) for name in shapes if name.startswith("blocks.")),
            "heads": heads.get(channels, 0),
            "head_channels": 64,
            "patch": patch,
            "mlp_ratio": shapes["blocks.0.mlp.fc1.weight"][0] / channels,
            "num_classes": shapes["y_embedder.embedding_table.weight"][0] - 1,
            "learned_variance": outputs == 2 * patch**2 * in_channels,
            "sample_size": round(places**0.5) * patch,
            "told": "step",
            "cosine_first": True,
            "shift": 0.0,
            "epsilon": 1e-6,
            "negative": velocity,
        }
    except (KeyError, IndexError, ValueError) as error:
        raise DataError(f"{where} is not a transformer of Peebles & Xie: its names and shapes say no sizes ({error})") from error
