"""What diffusers writes in config.json, as options of our networks.

Options are plain values by the names of `models.unet.UNet` and of a run's config. A setting that our networks lack is refused by
its name.
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from typing import Any

from jaxdiff.interop import settings, text_configs
from jaxdiff.io.errors import DataError

Options = dict[str, Any]
Config = Mapping[str, Any]

NETWORKS = {"UNet2DConditionModel": "unet", "UNet2DModel": "unet", "AutoencoderKL": "autoencoder", "VQModel": "autoencoder"}
NETWORKS |= {"DiTTransformer2DModel": "dit", "Transformer2DModel": "dit"}  # the latter before diffusers 0.29
ATTENTION = {"CrossAttnDownBlock2D": True, "AttnDownBlock2D": True, "AttnDownEncoderBlock2D": True}
PLAIN = {"DownBlock2D": False, "ResnetDownsampleBlock2D": False, "DownEncoderBlock2D": False}
RESNET = "ResnetDownsampleBlock2D"
DEFAULTS = {  # of settings that must have this value; others would need what our networks lack
    "unet": {
        "act_fn": ("silu", "swish"),
        "addition_embed_type": (None, "text_time"),
        "center_input_sample": (False,),
        "class_embed_type": (None,),
        "class_embeddings_concat": (False,),
        "conv_in_kernel": (3,),
        "conv_out_kernel": (3,),
        "cross_attention_norm": (None,),
        "dual_cross_attention": (False,),
        "encoder_hid_dim": (None,),
        "mid_block_only_cross_attention": (None, False),
        "mid_block_scale_factor": (1,),
        "mid_block_type": ("UNetMidBlock2D", "UNetMidBlock2DCrossAttn"),
        "only_cross_attention": (False,),
        "resnet_out_scale_factor": (1.0,),
        "resnet_skip_time_act": (False,),
        "reverse_transformer_layers_per_block": (None,),
        "time_cond_proj_dim": (None,),
        "time_embedding_act_fn": (None,),
        "time_embedding_type": ("positional",),
        "timestep_post_act": (None,),
        "add_attention": (True,),
        "attention_type": ("default",),
    },
    "dit": {
        "activation_fn": ("gelu-approximate",),
        "attention_bias": (True,),
        "cross_attention_dim": (None,),
        "norm_type": ("ada_norm_zero",),
        "norm_elementwise_affine": (False,),
    },
    "autoencoder": {
        "act_fn": ("silu",),
        "norm_type": ("group",),
        "mid_block_add_attention": (True,),
        "use_quant_conv": (True,),
        "use_post_quant_conv": (True,),
        "lookup_from_codebook": (False, None),
        "force_upcast": (True, False),
        "latents_mean": (None,),
        "latents_std": (None,),
    },
}


def options(config: Config, where: str) -> Options:
    """The options of the network that a config.json of diffusers describes, with `kind`, `in_channels` and `linear_projection`.

    Raises:
        DataError: it is of another network, or has a setting that ours lack.
    """
    name = config.get("_class_name", config.get("architectures"))  # the latter in those of transformers
    if not isinstance(name, str) or name not in NETWORKS:
        raise DataError(f"{where} is of {reprlib.repr(name)}; jaxdiff opens {', '.join((*NETWORKS, *text_configs.KINDS))}")
    kind = NETWORKS[name]
    for setting, allowed in DEFAULTS[kind].items():
        if config.get(setting, allowed[0]) not in allowed:
            raise DataError(f"{where}: {setting} {reprlib.repr(config[setting])} is not among what jaxdiff's networks can do")
    (settings.check_transformer if kind == "dit" else settings.check)(config, where)
    return {"autoencoder": _autoencoder, "dit": _dit, "unet": _unet}[kind](config, where) | {"kind": kind}


def _unet(config: Config, where: str) -> Options:
    conditional = config["_class_name"] == "UNet2DConditionModel"
    found = _levels(config, where) | {
        "in_channels": config.get("in_channels", 3),
        "attention_levels": tuple(level for level, kind in enumerate(_kinds(config, where)) if ATTENTION.get(kind)),
        "residual_resampling": _resampling(config, where),
        "scale_shift": config.get("resnet_time_scale_shift", "default") == "scale_shift",
        "num_classes": config.get("num_class_embeds") or 0,
        "dropout": config.get("dropout", 0.0),
        "sample_size": _square(config.get("sample_size")),
        "told": "step",
        "cosine_first": config.get("flip_sin_to_cos", True),
        "shift": float(config.get("freq_shift", 0)),
        "epsilon": config.get("norm_eps", 1e-5),
        "padding": (1, 1) if config.get("downsample_padding", 1) else (0, 1),
        **_heads(config, where, conditional),
    }
    if config.get("attn_norm_num_groups") not in (None, found["groups"]):
        raise DataError(f"{where}: attn_norm_num_groups {config['attn_norm_num_groups']} is not norm_num_groups {found['groups']}")
    if found["in_channels"] != config.get("out_channels", found["in_channels"]):
        seen = f"in_channels {found['in_channels']} and out_channels {config['out_channels']}"
        raise DataError(f"{where}: {seen}; a network that sees more than the noisy image, or learns a variance, is not opened")
    if config.get("time_embedding_dim") not in (None, 4 * found["channels"]):
        raise DataError(f"{where}: time_embedding_dim {config['time_embedding_dim']} is not four times the first width")
    return found | (_conditions(config, where, found) if conditional else {"linear_projection": True, "context_channels": 0})


def _square(size: Any) -> Any:
    return tuple(size) if isinstance(size, list) else size


def _levels(config: Config, where: str) -> Options:
    """Widths, blocks and norms."""
    widths, blocks = config["block_out_channels"], config.get("layers_per_block", 2)
    if any(width % widths[0] for width in widths) or not isinstance(blocks, int):
        what = f"block_out_channels {list(widths)} and layers_per_block {blocks}"
        raise DataError(f"{where}: {what}; widths must be multiples of the first one, and levels have the same number of blocks")
    multipliers = tuple(width // widths[0] for width in widths)
    return {"channels": widths[0], "multipliers": multipliers, "blocks": blocks, "groups": config.get("norm_num_groups", 32) or 32}


def _kinds(config: Config, where: str) -> list[str]:
    """The kinds of blocks on the way down, of which those on the way up must be the mirror image."""
    down, up = config["down_block_types"], config["up_block_types"]
    if unknown := [kind for kind in down if kind not in ATTENTION | PLAIN]:
        raise DataError(f"{where}: down_block_types has {unknown[0]}, which jaxdiff's networks lack")
    mirrored = [kind.replace("Down", "Up").replace("downsample", "upsample").replace("Encoder", "Decoder") for kind in down]
    if [kind.replace("UpsampleUp", "Upsample") for kind in reversed(mirrored)] != list(up):
        raise DataError(f"{where}: up_block_types {list(up)} are not down_block_types {list(down)} backwards")
    return list(down)


def _resampling(config: Config, where: str) -> bool:
    """Whether sizes change inside residual blocks, which must hold for all levels but the last."""
    down, by_blocks = config["down_block_types"][:-1], config.get("downsample_type", "conv") == "resnet"
    each = [kind == RESNET or (by_blocks and kind == "AttnDownBlock2D") for kind in down]
    if len(set(each)) > 1:
        raise DataError(f"{where}: down_block_types {list(down)} change sizes inside blocks and by convolutions")
    return any(each)


def _heads(config: Config, where: str, conditional: bool) -> Options:
    """How many attention heads, or how wide: diffusers calls their number attention_head_dim where there is a context."""
    given = config.get("attention_head_dim", 8)
    if not conditional:
        return {"heads": 1, "head_channels": 64} if given is None else {"heads": 0, "head_channels": given}
    number = config.get("num_attention_heads") or given
    if number is None:
        raise DataError(f"{where}: attention_head_dim null must be a positive whole number, or one a level")
    if isinstance(number, int):
        return {"heads": number, "head_channels": 64}
    wide = [width // heads for width, heads in zip(config["block_out_channels"], number, strict=True)]
    if len(set(wide)) > 1:
        raise DataError(f"{where}: heads differ in width, {wide}, by attention_head_dim {list(number)}")
    return {"heads": 0, "head_channels": wide[0]}


def _conditions(config: Config, where: str, found: Options) -> Options:
    """Context, transformers, pooled text."""
    depth, widths = config.get("transformer_layers_per_block", 1), config["block_out_channels"]
    depths = (depth,) * len(widths) if isinstance(depth, int) else tuple(depth)
    width = config.get("cross_attention_dim", 1280)
    if not isinstance(width, int) or any(not isinstance(each, int) for each in depths):
        raise DataError(f"{where}: cross_attention_dim or transformer_layers_per_block differ within levels, which ours do not")
    more = {"context_channels": width, "transformer_epsilon": 1e-6, "linear_projection": config.get("use_linear_projection", False)}
    more |= {"transformer": depths[0]} if len(set(depths)) == 1 else {"transformer_depths": depths}
    if config.get("addition_embed_type") == "text_time":
        if width == 1280:
            raise DataError(f"{where} is of Stable Diffusion XL's refiner, which is told other sizes; jaxdiff opens the base model")
        sizes = config["addition_time_embed_dim"]
        more |= {"size_features": sizes, "pooled_channels": config["projection_class_embeddings_input_dim"] - 6 * sizes}
    return more


def _dit(config: Config, where: str) -> Options:
    heads, wide, seen = config["num_attention_heads"], config["attention_head_dim"], config["in_channels"]
    outputs = config.get("out_channels") or seen
    if outputs not in (seen, 2 * seen):
        raise DataError(f"{where}: in_channels {seen} and out_channels {outputs} are neither equal, nor the latter twice the first")
    return {
        "in_channels": seen,
        "channels": heads * wide,
        "depth": config["num_layers"],
        "heads": heads,
        "head_channels": wide,
        "patch": config["patch_size"],
        "num_classes": config["num_embeds_ada_norm"],
        "learned_variance": outputs != seen,
        "sample_size": config.get("sample_size", 32),
        "told": "step",
        "cosine_first": True,
        "shift": 1.0,  # of diffusers, but not of Peebles & Xie
        "epsilon": config.get("norm_eps", 1e-5),
    }


def _autoencoder(config: Config, where: str) -> Options:
    vector_quantised = config["_class_name"] == "VQModel"
    channels, scale = config.get("latent_channels", 4), config.get("scaling_factor", 0.18215)
    width = config.get("vq_embed_dim") or channels
    if width != channels:
        raise DataError(f"{where}: vq_embed_dim {width} is not latent_channels {channels}")
    return _levels(config, where) | {
        "in_channels": config.get("in_channels", 3),
        "attention_levels": tuple(level for level, kind in enumerate(_kinds(config, where)) if ATTENTION.get(kind)),
        "heads": 1,
        "head_channels": 64,
        "epsilon": 1e-6,
        "latent_channels": channels,
        "codebook": config.get("num_vq_embeddings", 256) if vector_quantised else 0,
        "scaling_factor": scale,
        "shift_factor": config.get("shift_factor") or 0.0,
        "sample_size": config.get("sample_size"),
    }
