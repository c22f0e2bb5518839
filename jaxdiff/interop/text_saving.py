"""Our text encoders and their tokenizers as folders that transformers opens."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from jaxdiff.interop import params, text_names
from jaxdiff.interop.tensors import save_tensors
from jaxdiff.interop.tokens import Tokenizer
from jaxdiff.io import files
from jaxdiff.io.errors import DataError
from jaxdiff.io.lazy import Lazy

WEIGHTS = "model.safetensors"
ADDED = ("content", "lstrip", "normalized", "rstrip", "single_word", "special")  # what transformers keeps of a special token


class TextNetwork(NamedTuple):
    """A text encoder to write: our params, its options (see `text_configs.options`), and its tokenizer."""

    params: Any
    options: Mapping[str, Any]
    tokenizer: Tokenizer


def check(options: Mapping[str, Any], penultimate: bool) -> None:
    """Checks that a pipeline of diffusers can have the states of a text encoder: `penultimate` ones are Stable Diffusion XL's.

    Raises:
        DataError: it cannot.
    """
    if penultimate and (options["skip"] != 1 or options["final_norm"]):
        raise DataError("Stable Diffusion XL takes states before the last layer and without its norm; set skip 1, final_norm False")
    if not penultimate and not options["final_norm"]:
        raise DataError("Stable Diffusion takes states of a text encoder after its final norm; set final_norm True")


def save_text_encoder(folder: pathlib.Path, network: TextNetwork, dtype: np.dtype, penultimate: bool = False) -> str:
    """Writes config.json and one safetensors file into a folder; returns the class in transformers.

    Layers that the states leave out are not written, nor is the projection then, unless the pipeline takes `penultimate` states.

    Raises:
        DataError: a pipeline cannot have its states.
    """
    check(network.options, penultimate)
    options = dict(network.options)
    if options["skip"] and not penultimate:
        options |= {"layers": options["layers"] - options["skip"], "projection": 0}
    config = config_of(options, network.tokenizer)
    last = {f"layer_{number}" for number in range(options["layers"], network.options["layers"])}
    left_out = last if options["projection"] else {*last, "projection"}
    tree = {name: value for name, value in network.params.items() if name not in left_out}
    stored = params.store(text_names.table(options, text_names.TRANSFORMERS), tree)
    arrays = {text_names.published(name): Lazy(each.shape, dtype, partial(each.astype, dtype)) for name, each in stored}
    save_tensors(folder / WEIGHTS, arrays, {"format": "pt"})
    _write(folder / "config.json", config)
    return config["architectures"][0]


def config_of(options: Mapping[str, Any], tokens: Tokenizer) -> dict[str, Any]:
    """The config.json of transformers of a text encoder of ours."""
    projection = options["projection"]
    return {
        "architectures": ["CLIPTextModelWithProjection" if projection else "CLIPTextModel"],
        "bos_token_id": tokens.begin,
        "eos_token_id": options["end"],
        "hidden_act": options["activation"],
        "hidden_size": options["width"],
        "intermediate_size": options["feed"] or 4 * options["width"],
        "layer_norm_eps": options["epsilon"],
        "max_position_embeddings": options["positions"],
        "model_type": "clip_text_model",
        "num_attention_heads": options["heads"],
        "num_hidden_layers": options["layers"],
        "pad_token_id": tokens.pad,
        "projection_dim": projection or options["width"],
        "vocab_size": options["vocabulary"],
    }


def save_tokenizer(folder: pathlib.Path, tokens: Tokenizer) -> str:
    """Writes a tokenizer into a folder, with what older versions of transformers read; returns its class there."""
    tokens.save(folder)
    backend = tokens.backend
    model = json.loads(backend.to_str())["model"]
    pairs = model["type"] == "BPE"
    kind = "CLIPTokenizer" if pairs else "PreTrainedTokenizerFast"
    added = {number: {name: getattr(token, name) for name in ADDED} for number, token in backend.get_added_tokens_decoder().items()}
    named = {"bos_token": tokens.begin, "eos_token": tokens.end, "pad_token": tokens.pad}
    special = {name: backend.id_to_token(number) for name, number in named.items()} | {"unk_token": model.get("unk_token")}
    config = {"added_tokens_decoder": added, "model_max_length": tokens.length, "tokenizer_class": kind, **special}
    _write(folder / "tokenizer_config.json", config)
    _write(folder / "special_tokens_map.json", special)
    if pairs:
        merges = (each if isinstance(each, str) else " ".join(each) for each in model["merges"])
        files.write_text(folder / "vocab.json", json.dumps(model["vocab"], ensure_ascii=False) + "\n")
        files.write_text(folder / "merges.txt", "\n".join(["#version: 0.2", *merges, ""]))
    return kind


def _write(path: pathlib.Path, values: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_text(path, json.dumps(values, indent=2, ensure_ascii=False) + "\n")
