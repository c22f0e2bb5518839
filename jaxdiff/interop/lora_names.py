"""What tensors of LoRA files are called: by peft, by diffusers since its first versions, and by kohya's scripts."""

from __future__ import annotations

import pathlib
import re

from jaxdiff.interop import inferred
from jaxdiff.interop.tensors import Tensors
from jaxdiff.io.errors import DataError

TEXT = re.compile(r"(base_model\.model\.)?(text_encoder_?|lora_te|te)(?P<number>\d?)[._](text_model[._])?")
MATRIX = re.compile(r"(?P<layer>.+?)[._]lora(_linear_layer)?[._](?P<kind>A|B|down|up)(\.\w+)?\.weight")
ALPHA = re.compile(r"(?P<layer>.+?)([._]lora)?\.alpha")
PREFIX = re.compile(r"(base_model\.model\.|unet\.|lora_unet_|model\.diffusion_model\.|diffusion_model\.)+")
KINDS = {"A": "down", "B": "up"}
REFUSED = (  # what else adapts a network, by what its tensors are called
    (r"dora_scale|lora_magnitude_vector", "DoRA"),
    (r"hada_\w+", "LoHa"),
    (r"lokr_\w+", "LoKr"),
    (r"lora_mid|lora_core", "a LoRA by Tucker decomposition"),
    (r"b?oft_\w+", "OFT"),
    (r"ia3_\w+|\.on_input", "IA3"),
    (r"\.diff(_b)?", "differences of whole weights"),
    (r"lora_(B|up|A|down)(\.\w+)?\.bias", "a LoRA with biases"),
)


def text_number(name: str) -> int:
    """Of which text encoder a tensor is: 0, or 1 of the second; -1 if of none."""
    found = TEXT.match(name)
    return max(int(found["number"] or 1) - 1, 0) if found else -1


def layers(arrays: Tensors, path: pathlib.Path | str, skipped: tuple[str, ...]) -> dict[str, dict[str, str]]:
    """The names of the tensors `down`, `up` and maybe `alpha` of each layer, by its name in the file."""
    found: dict[str, dict[str, str]] = {}
    for name in arrays:
        if name in skipped:
            continue
        matrix, alpha = MATRIX.fullmatch(name), ALPHA.fullmatch(name)
        if other := next((words for pattern, words in REFUSED if re.search(rf"({pattern})(\.|$)", name)), ""):
            raise DataError(f"{path} is {other} ({name}), and jaxdiff opens plain LoRA; merge it into its base, or save it as LoRA")
        if not (matrix or alpha):
            known = inferred.family(arrays)
            looks = f"looks like {known}" if known and known != "a LoRA" else f"holds {name}, which is no part of a LoRA"
            raise DataError(f"{path} {looks}; give a LoRA by the names of diffusers, peft or kohya")
        kind = KINDS.get(matrix["kind"], matrix["kind"]) if matrix else "alpha"
        own = found.setdefault((matrix or alpha or {})["layer"], {})
        if kind in own:
            raise DataError(f"{path} has {own[kind]} and {name}, of two LoRAs; save one alone")
        own[kind] = name
    for layer, names in found.items():
        if not {"down", "up"} <= names.keys():
            raise DataError(f"{path} has {', '.join(names.values())}, and {layer} needs down and up; copy or download it again")
    if not found:
        raise DataError(f"{path} is a LoRA of text encoders alone ({skipped[0]}), which jaxdiff does not adapt; give one of a UNet")
    return found


def bare(layer: str) -> str:
    """A layer's name without what stands before a network."""
    found = TEXT.match(layer) or PREFIX.match(layer)
    return layer[found.end() :] if found else layer


def flattened(layer: str) -> str:
    """The bare name by today's words, with underscores for dots, as kohya's scripts write it."""
    name = bare(layer)
    if ".processor." in name:  # before diffusers 0.22
        name = re.sub(r"\.to_out$", ".to_out.0", name.replace(".processor.", "."))
    return name.replace(".", "_")
