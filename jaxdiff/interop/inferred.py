"""Options of networks whose files say nothing but names and shapes: OpenAI's and CompVis' checkpoints."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from jaxdiff.interop.autoencoder_names import CODES
from jaxdiff.interop.chains import DDPM, STABLE_DIFFUSION, Chain
from jaxdiff.io.errors import DataError

FAMILIES = (  # names that give a family away, in order
    (r"(?i)lora[_.]", "a LoRA"),
    (r"^model\.diffusion_model\.input_blocks\.", "a checkpoint of CompVis' latent diffusion, Stable Diffusion for one"),
    (r"^input_blocks\.0\.0\.weight", "OpenAI's UNet (ADM, consistency models)"),
    (r"^first_stage_model\.|^encoder\.down\.0\.block\.", "CompVis' autoencoder"),
    (r"^encoder\.down_blocks\.", "diffusers' autoencoder"),
    (r"^controlnet_", "a ControlNet"),
    (r"^down_blocks\.0\.", "diffusers' UNet"),
    (r"^(model\.)?enc\.\d+x\d+_", "EDM's SongUNet, which jaxdiff does not open yet"),
    (r"^(module\.)?all_modules\.", "score_sde's NCSN++, which jaxdiff does not open"),
    (r"^blocks\.0\.adaLN_modulation\.", "a transformer of Peebles & Xie (DiT, SiT)"),
    (r"^transformer_blocks\.0\.norm1\.emb\.", "diffusers' DiT"),
    (r"^double_blocks\.|^joint_blocks\.|transformer_blocks\.0\.|^blocks\.0\.", "a transformer, which jaxdiff does not open yet"),
    (r"text_model\.|^transformer\.resblocks|^embeddings\.token_embedding", "a text encoder"),
)
UNREADABLE = (IndexError, ValueError, ZeroDivisionError)  # of names without the numbers, or shapes without the axes, of a network
HEADS = {768: {"heads": 8, "head_channels": 64}}  # by the width of the context: Stable Diffusion 1; others have heads of 64


def family(names: Iterable[str]) -> str:
    """What a file's names look like, in words; empty if like nothing known."""
    names = list(names)
    found = (words for pattern, words in FAMILIES if any(re.search(pattern, name) for name in names))
    return next(found, "")


def unet(shapes: Mapping[str, tuple[int, ...]], where: str) -> dict[str, Any]:
    """The options of a UNet by OpenAI's names, but for what names and shapes do not say, which is as published most often.

    Heads are those of Stable Diffusion where there is a context of its width, else 64 channels wide. Attention is coarser from 32
    pixels on; queries, keys and values are ordered as consistency models and ADM of 64x64 have them, or else as other ADMs.

    Raises:
        DataError: the names are not those of such a UNet.
    """
    try:
        return _unet(shapes)
    except KeyError as error:
        raise DataError(f"{where} is not OpenAI's or CompVis' UNet: it lacks {error}") from error
    except UNREADABLE as error:
        raise DataError(f"{where} is not OpenAI's or CompVis' UNet: its names and shapes say no sizes") from error


def _unet(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    channels, in_channels = shapes["input_blocks.0.0.weight"][:2]
    ups = {name.split(".")[1] for name in shapes if re.match(r"output_blocks\.\d+\.[12]\.(conv|in_layers\.0)\.", name)}
    levels, outputs = len(ups) + 1, 1 + max(int(name.split(".")[1]) for name in shapes if name.startswith("output_blocks."))
    blocks = outputs // levels - 1
    firsts = [1 + level * (blocks + 1) for level in range(levels)]
    widths = [shapes[f"input_blocks.{first}.0.out_layers.3.weight"][0] for first in firsts]
    attention = tuple(level for level, first in enumerate(firsts) if f"input_blocks.{first}.1.norm.weight" in shapes)
    middle = _depth(shapes, "middle_block.1.")
    depths = [_depth(shapes, f"input_blocks.{first}.1.") or middle for first in firsts]
    context = shapes.get("middle_block.1.transformer_blocks.0.attn2.to_k.weight", (0, 0))[1]
    pooled = shapes.get("label_emb.0.0.weight")
    learned, size = shapes["out.2.weight"][0] == 2 * in_channels, 32 * 2 ** min(attention, default=0)
    axes = max(len(shapes.get("middle_block.1.qkv.weight", ())) - 2, 1)
    return {
        "kind": "unet",
        "in_channels": in_channels,
        "channels": channels,
        "multipliers": tuple(width // channels for width in widths),
        "blocks": blocks,
        "attention_levels": attention,
        "residual_resampling": levels > 1 and not any(name.endswith(".0.op.weight") for name in shapes),
        "scale_shift": shapes["middle_block.0.emb_layers.1.weight"][0] == 2 * widths[-1],
        "num_classes": shapes.get("label_emb.weight", (0,))[0],
        "learned_variance": learned,
        "context_channels": context,
        **({"transformer": middle} if len(set(depths)) == 1 else {"transformer_depths": tuple(depths)}),
        **({"size_features": 256, "pooled_channels": pooled[1] - 6 * 256} if pooled else {}),
        **HEADS.get(context, {"heads": 0, "head_channels": 64}),
        "linear_projection": len(shapes.get("middle_block.1.proj_in.weight", ())) == 2,
        "attention_axes": axes,
        "new_order": axes == 2 or (learned and size == 64),
        "sample_size": {768: 64, 1024: 96, 2048: 128}.get(context, size),
        "told": "step",
        "cosine_first": True,
        "groups": 32,
        "epsilon": 1e-5,
        "transformer_epsilon": 1e-6,
        "padding": (1, 1),
    }


def _depth(shapes: Mapping[str, Any], place: str) -> int:
    """How many transformer blocks are there."""
    return len({name.split(".")[3 + place.count("input")] for name in shapes if name.startswith(f"{place}transformer_blocks.")})


def autoencoder(shapes: Mapping[str, tuple[int, ...]], where: str) -> dict[str, Any]:
    """The options of CompVis' autoencoder.

    Raises:
        DataError: the names are not those of such an autoencoder.
    """
    try:
        channels, in_channels = shapes["encoder.conv_in.weight"][:2]
        levels = 1 + max(int(name.split(".")[2]) for name in shapes if name.startswith("encoder.down."))
        blocks = 1 + max(int(name.split(".")[4]) for name in shapes if re.match(r"encoder\.down\.0\.block\.", name))
        widths = [shapes[f"encoder.down.{level}.block.0.conv1.weight"][0] for level in range(levels)]
        codes = shapes.get(CODES, (0, 0))
        return {
            "kind": "autoencoder",
            "in_channels": in_channels,
            "channels": channels,
            "multipliers": tuple(width // channels for width in widths),
            "blocks": blocks,
            "attention_levels": tuple(n for n in range(levels) if f"encoder.down.{n}.attn.0.norm.weight" in shapes),
            "heads": 1,
            "head_channels": 64,
            "groups": 32,
            "epsilon": 1e-6,
            "latent_channels": shapes["post_quant_conv.weight"][1],
            "codebook": codes[0],
            "scaling_factor": 1.0 if codes[0] else 0.18215,
            "shift_factor": 0.0,
        }
    except KeyError as error:
        raise DataError(f"{where} is not CompVis' autoencoder: it lacks {error}") from error
    except UNREADABLE as error:
        raise DataError(f"{where} is not CompVis' autoencoder: its names and shapes say no sizes") from error


def chain(arrays: Mapping[str, np.ndarray], options: Mapping[str, Any], where: str) -> Chain:
    """The noise schedule of a checkpoint: by its betas if it has any, else that of Stable Diffusion or of ADM.

    Raises:
        DataError: its betas are none.
    """
    if "betas" not in arrays:
        if options.get("context_channels"):
            return STABLE_DIFFUSION
        cosine = options["learned_variance"] and options["sample_size"] == 64  # as ADM of 64x64 alone
        return DDPM._replace(betas={**DDPM.betas, "kind": "cosine"}) if cosine else DDPM
    betas = np.asarray(arrays["betas"], np.float64)
    if betas.ndim != 1 or not betas.size or not np.all((betas > 0) & (betas <= 1)):
        raise DataError(f"{where}: betas {list(betas.shape)} must be a vector of values in (0, 1]; copy or download it again")
    first, last = (float(f"{beta:.6g}") for beta in (betas[0], betas[-1]))
    for kind in ("scaled_linear", "linear") if first < last < 1 else ():
        known = STABLE_DIFFUSION._replace(betas={"kind": kind, "first": first, "last": last, "num": betas.size})
        if np.allclose(known.values(), betas, rtol=1e-4, atol=0):
            return known
    return STABLE_DIFFUSION._replace(betas={"kind": "listed", "listed": tuple(betas.tolist())})
