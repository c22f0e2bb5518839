"""Our networks as folders that diffusers opens: config.json, safetensors, a scheduler, and what ties them together."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from jaxdiff.interop import autoencoder_names, chains, configs, params, unet_names
from jaxdiff.interop.chains import Chain
from jaxdiff.interop.tensors import save_tensors
from jaxdiff.interop.unet_names import DIFFUSERS, Row
from jaxdiff.io import files
from jaxdiff.io.errors import ConfigError
from jaxdiff.io.lazy import Lazy

DTYPES = {"float32": np.dtype("float32"), "float16": np.dtype("float16"), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
WEIGHTS = "diffusion_pytorch_model.safetensors"


class Network(NamedTuple):
    """A network to write: our params, its options (see `configs.options`), and height and width of what it sees."""

    params: Any
    options: Mapping[str, Any]
    size: tuple[int, int]


def save_pipeline(folder: pathlib.Path, unet: Network, chain: Chain, autoencoder: Network | None, dtype: str = "float32") -> None:
    """Writes a UNet with its noise schedule, and maybe an autoencoder, into a new folder, as diffusers has them.

    Stable Diffusion's text encoder is not among our networks: diffusers opens the parts of a latent pipeline one by one.

    Raises:
        ConfigError: there is something in the folder already.
        DataError: a network has an option that diffusers lacks.
    """
    unet_config = configs.config_of(unet.options, unet.size)  # before anything is written
    parts: dict[str, Any] = {"unet": ["diffusers", unet_config["_class_name"]]}
    if autoencoder is not None:
        config = configs.config_of(autoencoder.options, autoencoder.size)
        parts["vqvae" if autoencoder.options["codebook"] else "vae"] = ["diffusers", config["_class_name"]]
    scheduler = chains.config_of(chain)
    parts["scheduler"] = ["diffusers", scheduler["_class_name"]]
    check_new(folder)
    save_network(folder / "unet", unet, dtype)
    if autoencoder is not None:
        save_network(folder / ("vqvae" if autoencoder.options["codebook"] else "vae"), autoencoder, dtype)
    _write_json(folder / "scheduler" / "scheduler_config.json", scheduler)
    kind = "ConsistencyModelPipeline" if chain.consistency else "DDIMPipeline" if autoencoder is None else "LDMPipeline"
    context = bool(unet.options.get("context_channels"))
    _write_json(folder / "model_index.json", {"_class_name": "StableDiffusionPipeline" if context else kind, **parts})


def save_network(folder: pathlib.Path, network: Network, dtype: str = "float32") -> None:
    """Writes a network into a folder: config.json and one safetensors file.

    Raises:
        DataError: it has an option that diffusers lacks.
    """
    config, tree, rows = configs.config_of(network.options, network.size), network.params, _rows(network.options)
    arrays = {name: _lazy(array, DTYPES[dtype]) for name, array in params.store(rows, tree)}
    if network.options["kind"] == "unet" and network.options["num_classes"]:
        config["num_class_embeds"] = arrays["class_embedding.weight"].shape[0]
    if network.options.get("codebook"):
        book = tree["codebook"]
        codes = np.asarray(book["sum"]) / np.maximum(np.asarray(book["share"]), 1e-12)[:, None]
        arrays["quantize.embedding.weight"] = _lazy(codes, DTYPES[dtype])
    save_tensors(folder / WEIGHTS, arrays, {"format": "pt"})
    _write_json(folder / "config.json", config)


def check_new(folder: pathlib.Path) -> None:
    """Raises a ConfigError where there is something in the folder."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} is not empty, and is left as it is; choose another --out")


def _rows(options: Mapping[str, Any]) -> list[Row]:
    if options["kind"] == "autoencoder":
        return autoencoder_names.table(options, DIFFUSERS)
    return unet_names.table(options, DIFFUSERS, options.get("linear_projection", True))


def _lazy(array: np.ndarray, dtype: np.dtype) -> Lazy:
    return Lazy(array.shape, dtype, partial(array.astype, dtype))


def _write_json(path: pathlib.Path, values: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_text(path, json.dumps(values, indent=2, sort_keys=True) + "\n")
