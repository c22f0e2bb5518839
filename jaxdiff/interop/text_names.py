"""The layers of CLIP's text and image encoders beside their published names: by transformers, and by OpenCLIP."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxdiff.interop.layouts import PLAIN, THREE, Layout
from jaxdiff.interop.params import Renamed
from jaxdiff.interop.unet_names import Row

TRANSFORMERS, OPENCLIP = 1, 2  # columns

TEXT = (
    ("token", "embeddings.token_embedding", "token_embedding"),
    ("position", "embeddings.position_embedding", "positional_embedding"),
    ("norm", "final_layer_norm", "ln_final"),
    ("projection", "text_projection", "text_projection"),
)
IMAGE = (
    ("class", "embeddings.class_embedding", "class_embedding"),
    ("patches", "embeddings.patch_embedding", "conv1"),
    ("position", "embeddings.position_embedding", "positional_embedding"),
    ("norm_in", "pre_layrnorm", "ln_pre"),
    ("norm", "post_layernorm", "ln_post"),
    ("projection", "visual_projection", "proj"),
)
LAYER = (
    ("norm_self", "layer_norm1", "ln_1"),
    ("qkv", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), "attn.in_proj"),
    ("out", "self_attn.out_proj", "attn.out_proj"),
    ("norm_feed", "layer_norm2", "ln_2"),
    ("feed/in", "mlp.fc1", "mlp.c_fc"),
    ("feed/out", "mlp.fc2", "mlp.c_proj"),
)
LAYERS = {TRANSFORMERS: "encoder.layers", OPENCLIP: "transformer.resblocks"}
PREFIXES = {"text": "text_model.", "image": "vision_model."}  # by transformers, of all but the projection
NO_PARAMS = re.compile(r"(.+\.)?(position_ids|attn_mask|logit_scale|logit_bias)")
BARE = re.compile(r"(.+\.)?(class_embedding|positional_embedding|text_projection|proj)")  # names without .weight
ROW = Layout(lambda parts: parts[0][None], lambda whole: [whole[0]])
INPUTS_FIRST = Layout(lambda parts: parts[0].T, lambda whole: [whole.T])


def table(options: Mapping[str, Any], column: int) -> list[Row]:
    """The rows of the encoder of such options (`text_configs.options`), by the names of a column that `named` gives."""
    layouts = {"class": ROW}
    if column == OPENCLIP:
        layouts |= {"projection": INPUTS_FIRST}
    else:
        layouts |= {"qkv": THREE}
    ends = TEXT if options["kind"] == "text" else IMAGE
    rows = [Row(ours, (name[column - 1],), layouts.get(ours, PLAIN)) for ours, *name in ends]
    for number in range(options["layers"]):
        for ours, *name in LAYER:
            names = name[column - 1] if isinstance(name[column - 1], tuple) else (name[column - 1],)
            published = tuple(f"{LAYERS[column]}.{number}.{each}" for each in names)
            rows.append(Row(f"layer_{number}/{ours}", published, layouts.get(ours, PLAIN)))
    return rows


def named(arrays: Mapping[str, np.ndarray], kind: str) -> Renamed:
    """The arrays of an encoder (`text` or `image`), all by names that end in weight or bias, without `text_model.` before them.

    Those that are no params of it are left out.
    """
    other = ("vision_model.", "visual") if kind == "text" else ("text_model.", "text_projection")
    kept = [name for name in arrays if not NO_PARAMS.fullmatch(name) and not name.startswith(other)]
    return Renamed(arrays, {_with_leaf(name.removeprefix(PREFIXES[kind])): name for name in kept})


def _with_leaf(name: str) -> str:
    return f"{name}.weight" if BARE.fullmatch(name) else re.sub(r"\bin_proj_(weight|bias)$", r"in_proj.\1", name)


def published(name: str) -> str:
    """The name by transformers of one that `named` gave, of a text encoder."""
    return name if name.startswith("text_projection") else PREFIXES["text"] + name
