"""Published networks in small: names and shapes as published, weights drawn from the names, files as the world publishes them.

`data/published/NAME.json` and `NAME.npz` were recorded by `make_published.py`; `documents` and `tensors` below are keyed by file.
"""

import json
import pathlib
import re
import shutil
import zlib
from typing import NamedTuple

import numpy as np

RECORDED = pathlib.Path(__file__).parent / "data" / "published"
TEXTS = RECORDED.parent / "texts"  # a tokenizer cut to the merges of some texts, these, and their tokens (`make_texts.py`)
EMBEDDINGS = ("class_embedding.weight", "label_emb.weight", "quantize.embedding.weight", "token_embedding.weight")
# What is added to a residual stream is small, so that the epsilons of norms are seen; what carries it on, and attention, is not.
SMALL = tuple(f"{layer}.weight" for layer in ("proj_in", "proj_out", "to_out.0", "proj_attn", "time_emb_proj", "emb_layers.1"))
LARGE = tuple(
    f"{layer}.weight" for layer in ("shortcut", "skip_connection", ".conv", ".op", "quant_conv", ".q", ".k", ".v", ".qkv")
)
UPWARD = ("lora_B.weight", "lora_up.weight", "lora.up.weight")  # small, as in a LoRA that was trained


class Family(NamedTuple):
    config: dict  # of the network: its config.json, or the arguments of the published code's constructor
    inputs: dict[str, np.ndarray]  # float32 NCHW; times as the published code is fed with
    outputs: dict[str, np.ndarray]
    documents: dict[str, dict]  # path -> contents of the JSON files published beside the weights
    tensors: dict[str, dict[str, list[int]]]  # path -> name -> shape, in the order of the state dict
    metadata: dict[str, dict[str, str]]  # path -> metadata in a safetensors file's header
    notes: dict  # what else was recorded: `unmoved` are the tensors that do not move any output


def draw(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """float32, exact in float16: a tensor that depends on its name and shape alone, such that activations keep their scale."""
    name = re.sub(r"^transformer_blocks\.\d+\.norm1\.emb\.", "transformer_blocks.0.norm1.emb.", name)  # DiT's are copies
    if name == "betas":  # which are no weights: Stable Diffusion's
        return np.linspace(0.00085**0.5, 0.012**0.5, *shape, dtype=np.float32) ** 2
    values = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
    if name.endswith(".alpha"):  # of a LoRA, whose ranks are 4; of attention it is one, since diffusers 0.42.1 mixes these up
        values = 8.0 if "_resnets_" in name or "_ff_net_" in name else 2.0
    elif name.endswith(UPWARD):
        values = values / 4 / np.sqrt(np.prod(shape[1:]))
    elif name.endswith(EMBEDDINGS):
        values = values / 2
    elif len(shape) > 1:
        small = name.endswith(SMALL) or (len(shape) == 4 and not name.endswith(LARGE))
        values = values / np.sqrt(np.prod(shape[1:])) / (4 if small else 1)
    elif name.endswith("weight"):
        values = 1 + values / 10
    else:
        values = values / 10
    return np.asarray(values, np.float16).astype(np.float32)


def family(name: str) -> Family:
    """What was recorded of `data/published/NAME`."""
    recorded = json.loads((RECORDED / f"{name}.json").read_text())
    with np.load(RECORDED / f"{name}.npz") as arrays:
        inputs, outputs = ({k.split(" ", 1)[1]: arrays[k] for k in arrays if k.startswith(side)} for side in ("input ", "output "))
    return Family(inputs=inputs, outputs=outputs, **recorded)


def write(folder: pathlib.Path, name: str, dtype: str = "float32") -> pathlib.Path:
    """Writes the family's files below `folder`, as published, and returns `folder`; several families may share one."""
    recorded = family(name)
    for path, document in recorded.documents.items():
        file = folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(document, indent=2) + "\n")
    for path, shapes in recorded.tensors.items():
        write_tensors(folder / path, shapes, dtype, recorded.metadata.get(path))
    return folder


def write_clip(folder: pathlib.Path, dtype: str = "float32") -> pathlib.Path:
    """Writes a whole CLIP with the tokenizer of data/texts, and returns its folder."""
    write(folder, "clip_score", dtype)
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(TEXTS / name, folder)
    return folder


def write_tensors(path: pathlib.Path, shapes: dict, dtype: str = "float32", metadata: dict[str, str] | None = None) -> None:
    """Writes drawn tensors as one safetensors file."""
    from safetensors.numpy import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({k: draw(k, tuple(shape)).astype(dtype) for k, shape in shapes.items()}, path, {"format": "pt", **(metadata or {})})


def special_tokens(padding: str) -> dict[str, dict]:
    """The files that say special tokens beside a tokenizer, as Stable Diffusion 1, 2 and XL (its second) have them."""
    begin, end = (
        {"content": f"<|{word}oftext|>", "lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
        for word in ("start", "end")
    )
    named = {"bos_token": begin, "eos_token": end, "unk_token": end}
    typed = {name: {"__type": "AddedToken", **token} for name, token in named.items()}
    config = {
        "add_prefix_space": False,
        "do_lower_case": True,
        "errors": "replace",
        "model_max_length": 77,
        "tokenizer_class": "CLIPTokenizer",
    }
    if padding != "sdxl":
        pad = "!" if padding == "sd2" else "<|endoftext|>"
        return {
            "tokenizer_config.json": config | typed | {"pad_token": "<|endoftext|>"},
            "special_tokens_map.json": named | {"pad_token": pad},
        }
    added = {"0": {**begin, "content": "!", "normalized": False}, "49406": begin, "49407": end}
    texts = {name: token["content"] for name, token in named.items()} | {"pad_token": "!"}
    decoder = {"added_tokens_decoder": {number: {**token, "special": True} for number, token in added.items()}}
    return {"tokenizer_config.json": config | texts | decoder, "special_tokens_map.json": named | {"pad_token": "!"}}


def write_tokenizer(folder: pathlib.Path, padding: str, **more: object) -> pathlib.Path:
    """The tokenizer of the 1,000 texts, with the files beside it of such a Stable Diffusion."""
    shutil.copytree(TEXTS, folder, ignore=shutil.ignore_patterns("t*"))
    for name, values in special_tokens(padding).items():
        (folder / name).write_text(json.dumps({**values, **more}))
    return folder
