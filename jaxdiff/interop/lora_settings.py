"""How strong a LoRA is: the alphas of its file, and the settings of peft."""

from __future__ import annotations

import json
import math
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxdiff.interop import lora_names
from jaxdiff.interop.tensors import Tensors
from jaxdiff.io.errors import DataError


def read(arrays: Tensors, path: pathlib.Path, network: str) -> dict[str, Any]:
    """Settings of peft by their names there: of the file's header, where `network` is before them, or of adapter_config.json.

    Raises:
        DataError: they cannot be read, or say that the file is no plain LoRA.
    """
    beside = (path if path.is_dir() else path.parent) / "adapter_config.json"
    where, text = f"{path}: lora_adapter_metadata", arrays.metadata.get("lora_adapter_metadata")
    if text is None and beside.is_file() and any("lora_A" in name for name in arrays):
        where, text = str(beside), beside.read_text(errors="replace")
    try:
        settings = json.loads(text or "{}")
        unprefixed = {name.removeprefix(network): value for name, value in settings.items()}
        alphas = [unprefixed.get("lora_alpha") or 1, *(unprefixed.get("alpha_pattern") or {}).values()]
        if not all(isinstance(alpha, int | float) and math.isfinite(alpha) for alpha in alphas):
            raise ValueError("alphas must be numbers")
        for pattern in unprefixed.get("alpha_pattern") or {}:
            re.compile(pattern)
    except (ValueError, AttributeError, re.error) as error:
        raise DataError(f"{where} cannot be read ({error}); copy or download it again") from error
    if unprefixed.get("use_dora"):
        raise DataError(f"{where}: it is DoRA, and jaxdiff opens plain LoRA; merge it into its base, or save it as LoRA")
    return unprefixed


def strength(arrays: Tensors, names: Mapping[str, str], layer: str, settings: Mapping[str, Any], path: Any) -> float:
    """`alpha / rank` of a layer, or `alpha / sqrt(rank)` (rsLoRA, Kalajdzievski 2023).

    Raises:
        DataError: an alpha is no number.
    """
    rank, alpha = arrays.arrays[names["down"]].shape[0], settings.get("lora_alpha")
    if "alpha" in names:
        stored = np.asarray(arrays[names["alpha"]], np.float64)
        if stored.size != 1 or not np.isfinite(stored).all():
            raise DataError(f"{path}: {names['alpha']} must be one number, and is {list(stored.shape)}; copy or download it again")
        alpha = float(stored.reshape(()))
    else:
        patterns = (settings.get("alpha_pattern") or {}).items()
        alpha = next((value for pattern, value in patterns if re.fullmatch(rf"(.*\.)?({pattern})", lora_names.bare(layer))), alpha)
    if alpha is None:
        return 1.0
    return alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank)
