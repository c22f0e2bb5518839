"""Our networks as folders that diffusers opens: config.json, safetensors, a scheduler, and what ties them together."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from jaxdiff.interop import autoencoder_names, chains, params, unet_names
from jaxdiff.interop.autoencoder_names import CODES
from jaxdiff.interop.chains import Chain
from jaxdiff.interop.tensors import save_tensors
from jaxdiff.interop.text_saving import TextNetwork, save_text_encoder, save_tokenizer
from jaxdiff.interop.text_saving import check as check_text
from jaxdiff.interop.unet_names import DIFFUSERS, Row
from jaxdiff.io import files
from jaxdiff.io.errors import ConfigError, DataError
from jaxdiff.io.lazy import Lazy
from jaxdiff.objectives import codebook

DTYPES = {"float32": np.dtype("float32"), "float16": np.dtype("float16"), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
WEIGHTS = "diffusion_pytorch_model.safetensors"


class Network(NamedTuple):
    """A network to write: our params, its options (see `configs.options`), and height and width of what it sees."""

    params: Any
    options: Mapping[str, Any]
    size: tuple[int, int]


def save_pipeline(
    folder: pathlib.Path,
    unet: Network,
    chain: Chain,
    autoencoder: Network | None,
    dtype: str = "float32",
    texts: Sequence[TextNetwork] = (),
) -> None:
    """Writes a UNet with its noise schedule, and maybe an autoencoder and text encoders, into a new folder, as diffusers has them.

    Without its text encoders diffusers opens the parts of a latent pipeline one by one.

    Raises:
        ConfigError: there is something in the folder already.
        DataError: a network has an option that diffusers lacks.
    """
    unet_config = config_of(unet.options, unet.size)  # before anything is written
    parts: dict[str, Any] = {"unet": ["diffusers", unet_config["_class_name"]]}
    if autoencoder is not None:
        config = config_of(autoencoder.options, autoencoder.size)
        parts["vqvae" if autoencoder.options["codebook"] else "vae"] = ["diffusers", config["_class_name"]]
    scheduler = chains.config_of(chain)
    parts["scheduler"] = ["diffusers", scheduler["_class_name"]]
    large = bool(unet.options.get("pooled_channels"))
    for each in texts:
        check_text(each.options, large)
    check_new(folder)
    save_network(folder / "unet", unet, dtype)
    if autoencoder is not None:
        save_network(folder / ("vqvae" if autoencoder.options["codebook"] else "vae"), autoencoder, dtype)
    _write_json(folder / "scheduler" / "scheduler_config.json", scheduler)
    kind = "ConsistencyModelPipeline" if chain.consistency else "DDIMPipeline" if autoencoder is None else "LDMPipeline"
    if unet.options.get("context_channels"):
        kind = "StableDiffusionXLPipeline" if large else "StableDiffusionPipeline"
        parts |= _save_texts(folder, texts, large, dtype)
    _write_json(folder / "model_index.json", {"_class_name": kind, **parts})


def _save_texts(folder: pathlib.Path, texts: Sequence[TextNetwork], large: bool, dtype: str) -> dict[str, Any]:
    """Writes text encoders and their tokenizers beside a UNet; what model_index.json says of them."""
    parts: dict[str, Any] = {}
    for number, network in enumerate(texts):
        ending = f"_{number + 1}" if number else ""
        kind = save_text_encoder(folder / f"text_encoder{ending}", network, DTYPES[dtype], large)
        parts[f"text_encoder{ending}"] = ["transformers", kind]
        parts[f"tokenizer{ending}"] = ["transformers", save_tokenizer(folder / f"tokenizer{ending}", network.tokenizer)]
    if not texts:
        return {}
    if large:
        return parts | {"force_zeros_for_empty_prompt": True}
    return parts | {"safety_checker": [None, None], "feature_extractor": [None, None], "requires_safety_checker": False}


def save_network(folder: pathlib.Path, network: Network, dtype: str = "float32") -> None:
    """Writes a network into a folder: config.json and one safetensors file.

    Raises:
        DataError: it has an option that diffusers lacks.
    """
    config, tree, rows = config_of(network.options, network.size), network.params, _rows(network.options)
    arrays = {name: _lazy(array, DTYPES[dtype]) for name, array in params.store(rows, tree)}
    if network.options["kind"] == "unet" and network.options["num_classes"]:
        config["num_class_embeds"] = arrays["class_embedding.weight"].shape[0]
    if network.options.get("codebook"):
        arrays[CODES] = _lazy(np.asarray(codebook.codes(tree["codebook"])), DTYPES[dtype])
    save_tensors(folder / WEIGHTS, arrays, {"format": "pt"})
    _write_json(folder / "config.json", config)


def config_of(found: Mapping[str, Any], sample_size: int | tuple[int, int]) -> dict[str, Any]:
    """The config.json of diffusers of a network of ours.

    Raises:
        DataError: the network has an option that diffusers lacks.
    """
    if found["kind"] == "dit":
        raise DataError("a transformer (model.network dit) is not exported; write its params by jaxdiff.interop.save_tensors")
    refused = list(_refused(found))
    if refused:
        raise DataError(f"diffusers has no network with {refused[0]}; configs/cifar10_diffusers.py trains one that it has")
    size = sample_size if isinstance(sample_size, int) or sample_size[0] != sample_size[1] else sample_size[0]
    widths = [found["channels"] * multiplier for multiplier in found["multipliers"]]
    shared = {
        "_diffusers_version": "0.30.0",
        "act_fn": "silu",
        "block_out_channels": widths,
        "in_channels": found["in_channels"],
        "layers_per_block": found["blocks"],
        "norm_num_groups": found["groups"],
        "out_channels": found["in_channels"],
        "sample_size": size,
    }
    return (_autoencoder_config if found["kind"] == "autoencoder" else _unet_config)(found) | shared


def _refused(found: Mapping[str, Any]) -> Iterator[str]:
    """The options of a network that diffusers lacks, with the setting that would do."""
    if not found["groups"]:
        yield "published.groups 0 (set 32)"
    if found["kind"] == "autoencoder":
        if found["epsilon"] != 1e-6:
            yield f"published.epsilon {found['epsilon']:g} in an autoencoder (set 1e-6)"
        if found["heads"] != 1:
            yield f"model.heads {found['heads']} in an autoencoder (set 1)"
        return
    if found["told"] == "logsnr":
        yield "published.told logsnr (set step)"
    scale = {"step": 1.0, "log_sigma": 250.0}.get(found["told"], 1.0)
    if found.get("told_scale", scale) != scale:
        yield f"published.told_scale {found['told_scale']:g} (set {scale:g})"
    if found["shift"] != int(found["shift"]):
        yield f"published.shift {found['shift']:g} (set a whole number)"
    if found.get("fourier"):
        yield "model.fourier"
    if found.get("base", 1e4) != 1e4 or found.get("features"):
        yield "published.base or published.features of its own"
    if found.get("learned_variance"):
        yield "published.learned_variance"
    if found["context_channels"] and (found["residual_resampling"] or found["transformer_epsilon"] != 1e-6):
        yield "context and model.residual_resampling, or published.transformer_epsilon other than 1e-6"
    if not found["context_channels"] and (found.get("transformer") or found.get("transformer_depths")):
        yield "transformers without a context (set model.transformer 0)"
    if not found["context_channels"] and found["heads"] > 1:
        yield f"model.heads {found['heads']} without a context (set model.head_channels)"


def _unet_config(found: Mapping[str, Any]) -> dict[str, Any]:
    attends = [level in found["attention_levels"] for level in range(len(found["multipliers"]))]
    conditional, resampling = bool(found["context_channels"]), found["residual_resampling"]
    plain = "ResnetDownsampleBlock2D" if resampling else "DownBlock2D"
    down = [("CrossAttnDownBlock2D" if conditional else "AttnDownBlock2D") if attend else plain for attend in attends]
    config: dict[str, Any] = {
        "_class_name": "UNet2DConditionModel" if conditional else "UNet2DModel",
        "down_block_types": down,
        "up_block_types": [kind.replace("Downsample", "Upsample").replace("DownBlock", "UpBlock") for kind in reversed(down)],
        "downsample_padding": 1 if found["padding"] == (1, 1) else 0,
        "dropout": found["dropout"],
        "flip_sin_to_cos": found["cosine_first"],
        "freq_shift": int(found["shift"]),
        "norm_eps": found["epsilon"],
        "resnet_time_scale_shift": "scale_shift" if found["scale_shift"] else "default",
        "num_class_embeds": found["num_classes"] or None,
    }
    if not conditional:
        kind = "resnet" if resampling else "conv"
        heads = None if found["heads"] == 1 else found["head_channels"]
        config |= {"attn_norm_num_groups": found["groups"]}
        return config | {"downsample_type": kind, "upsample_type": kind, "attention_head_dim": heads}
    depths = found.get("transformer_depths") or found["transformer"]
    widths = [found["channels"] * multiplier for multiplier in found["multipliers"]]
    config |= {
        "attention_head_dim": found["heads"] or [max(width // found["head_channels"], 1) for width in widths],
        "cross_attention_dim": found["context_channels"],
        "transformer_layers_per_block": depths if isinstance(depths, int) else list(depths),
        "use_linear_projection": found.get("linear_projection", True),
    }
    if found.get("pooled_channels"):
        sizes = found["size_features"]
        config |= {"addition_embed_type": "text_time", "addition_time_embed_dim": sizes}
        config |= {"projection_class_embeddings_input_dim": found["pooled_channels"] + 6 * sizes}
    return config


def _autoencoder_config(found: Mapping[str, Any]) -> dict[str, Any]:
    levels = range(len(found["multipliers"]))
    down = ["AttnDownEncoderBlock2D" if level in found["attention_levels"] else "DownEncoderBlock2D" for level in levels]
    config: dict[str, Any] = {
        "_class_name": "VQModel" if found["codebook"] else "AutoencoderKL",
        "down_block_types": down,
        "up_block_types": [kind.replace("DownEncoder", "UpDecoder") for kind in reversed(down)],
        "latent_channels": found["latent_channels"],
        "scaling_factor": found["scaling_factor"],
    }
    if found["codebook"]:
        return config | {"num_vq_embeddings": found["codebook"], "vq_embed_dim": found["latent_channels"]}
    return config | {"shift_factor": found["shift_factor"]}


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
