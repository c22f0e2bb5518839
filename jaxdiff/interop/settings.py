"""Whether the values of a config.json are of the kinds that they have in published ones."""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from jaxdiff.io.errors import DataError

MOST_LEVELS, MOST_BLOCKS = 12, 2000  # of all levels, transformer blocks among them; Stable Diffusion XL has 3 and 140


class Rule(NamedTuple):
    """What a setting must be, and in words."""

    holds: Callable[[Any], bool]
    words: str


def _whole(value: Any, least: int = 1, most: int = 1 << 20) -> bool:
    return type(value) is int and least <= value <= most


def _number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 1e9  # NaN is not


def _each(value: Any, holds: Callable[[Any], bool]) -> bool:
    return isinstance(value, list | tuple) and 0 < len(value) <= MOST_LEVELS and all(map(holds, value))


POSITIVE = Rule(_whole, "a positive whole number")
PERHAPS = Rule(lambda value: value is None or _whole(value), "a positive whole number, or null")
WIDTHS = Rule(lambda value: _each(value, _whole), f"1 to {MOST_LEVELS} positive whole numbers")
BLOCKS = Rule(lambda value: _each(value, lambda each: isinstance(each, str)), f"1 to {MOST_LEVELS} names")
TRUTH = Rule(lambda value: type(value) is bool, "true or false")
NUMBER = Rule(_number, "a number")
POSITIVE_NUMBER = Rule(lambda value: _number(value) and value > 0, "a positive number")
OF_LEVELS = Rule(lambda value: value is None or _whole(value) or _each(value, _whole), "a positive whole number, or one a level")
NESTED = Rule(lambda value: _whole(value) or _each(value, lambda each: _whole(each) or _each(each, _whole)), OF_LEVELS.words)
RULES = {
    "block_out_channels": WIDTHS,
    "down_block_types": BLOCKS,
    "up_block_types": BLOCKS,
    "layers_per_block": NESTED,
    "in_channels": POSITIVE,
    "out_channels": POSITIVE,
    "latent_channels": POSITIVE,
    "num_vq_embeddings": POSITIVE,
    "vq_embed_dim": PERHAPS,
    "norm_num_groups": Rule(lambda value: value is None or _whole(value, 0), "a whole number, or null"),
    "attn_norm_num_groups": PERHAPS,
    "num_class_embeds": PERHAPS,
    "cross_attention_dim": NESTED,
    "attention_head_dim": OF_LEVELS,
    "num_attention_heads": OF_LEVELS,
    "transformer_layers_per_block": NESTED,
    "time_embedding_dim": PERHAPS,
    "addition_time_embed_dim": PERHAPS,
    "projection_class_embeddings_input_dim": PERHAPS,
    "norm_eps": POSITIVE_NUMBER,
    "scaling_factor": POSITIVE_NUMBER,
    "shift_factor": Rule(lambda value: value is None or _number(value), "a number, or null"),
    "dropout": Rule(lambda value: _number(value) and 0 <= value < 1, "a number from 0 to below 1"),
    "freq_shift": NUMBER,
    "flip_sin_to_cos": TRUTH,
    "use_linear_projection": TRUTH,
    "num_layers": POSITIVE,
    "patch_size": POSITIVE,
    "num_embeds_ada_norm": POSITIVE,
    "downsample_padding": Rule(lambda value: value is None or _whole(value, 0, 1), "0 or 1"),
}
REQUIRED = ("block_out_channels", "down_block_types", "up_block_types")
TRANSFORMER = ("num_attention_heads", "attention_head_dim", "in_channels", "num_layers", "patch_size", "num_embeds_ada_norm")
LEVELS = ("down_block_types", "up_block_types", "attention_head_dim", "num_attention_heads", "transformer_layers_per_block")


def check(config: Mapping[str, Any], where: str) -> None:
    """Refuses values that no published config has.

    Raises:
        DataError: a setting is missing, or of another type or size.
    """
    if missing := [name for name in REQUIRED if name not in config]:
        raise DataError(f"{where} lacks {missing[0]}; copy or download it again")
    check_values(config, RULES, where)
    levels = len(config["block_out_channels"])
    for name in LEVELS:
        if isinstance(value := config.get(name), list) and len(value) != levels:
            raise DataError(f"{where}: {name} {reprlib.repr(value)} must be as many as block_out_channels, {levels}")
    blocks, depths = config.get("layers_per_block", 2), config.get("transformer_layers_per_block", 1)
    most = [depth for depth in (depths if isinstance(depths, list) else [depths]) if _whole(depth)]
    if _whole(blocks) and levels * (2 * blocks + 1) * max(most, default=1) > MOST_BLOCKS:
        raise DataError(f"{where}: {levels} levels of {blocks} layers_per_block are more than any published network has")
    if config.get("addition_embed_type") == "text_time":
        sizes, width = (config.get(name) or 0 for name in ("addition_time_embed_dim", "projection_class_embeddings_input_dim"))
        if not 0 < 6 * sizes < width:
            what = f"projection_class_embeddings_input_dim {width} must be more than 6 times addition_time_embed_dim {sizes}"
            raise DataError(f"{where}: {what}")


def check_transformer(config: Mapping[str, Any], where: str) -> None:
    """The same of a transformer, of which no number is left out or null.

    Raises:
        DataError: a setting is missing, or of another type or size.
    """
    if missing := [name for name in TRANSFORMER if not isinstance(config.get(name), int)]:
        raise DataError(f"{where}: {missing[0]} must be a positive whole number; copy or download it again")
    check_values(config, RULES, where)
    if config["num_layers"] > MOST_BLOCKS:
        raise DataError(f"{where}: {config['num_layers']} num_layers are more than any published network has")


def check_values(config: Mapping[str, Any], rules: Mapping[str, Rule], where: str) -> None:
    """Refuses settings that are there and break their rule.

    Raises:
        DataError: one does; it is named.
    """
    for name, rule in rules.items():
        if name in config and not rule.holds(config[name]):
            raise DataError(f"{where}: {name} {reprlib.repr(config[name])} must be {rule.words}")
