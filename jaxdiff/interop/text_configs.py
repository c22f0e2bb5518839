"""What transformers writes in config.json of CLIP's encoders, or what names and shapes say, as options of ours."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Mapping
from typing import Any

from jaxdiff.interop import settings
from jaxdiff.interop.settings import POSITIVE, POSITIVE_NUMBER, Rule
from jaxdiff.interop.text_names import LAYERS, OPENCLIP
from jaxdiff.io.errors import DataError
from jaxdiff.models import text

Options = dict[str, Any]
Config = Mapping[str, Any]

TEXTS = ("CLIPTextModel", "CLIPTextModelWithProjection", "CLIPModel")
KINDS = (*TEXTS, "CLIPVisionModelWithProjection")
ACTIVATIONS = {"quick_gelu": text.quick_gelu, "gelu": text.gelu}
MOST_LAYERS, HEAD = 256, 64  # HEAD: channels of an attention head, of all published ones
LEGACY_END = 2  # in configs from before transformers 4.31, which read the pooled vector at the largest token
LAYER_COUNT = Rule(lambda value: type(value) is int and 0 < value <= MOST_LAYERS, f"a whole number from 1 to {MOST_LAYERS}")
ACTIVATION = Rule(lambda value: isinstance(value, str) and value in ACTIVATIONS, " or ".join(ACTIVATIONS))
TOKEN = Rule(lambda value: value is None or (type(value) is int and 0 <= value < 1 << 31), "a token, or null")
DEFAULTS: dict[str, Options] = {  # of what old configs leave out, as transformers has them
    "text": {"vocab_size": 49_408, "hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8}
    | {"max_position_embeddings": 77, "eos_token_id": 49_407},
    "image": {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "image_size": 224, "patch_size": 32},
}
SHARED = {"projection_dim": 512, "num_hidden_layers": 12, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}
RULES = dict.fromkeys((*DEFAULTS["text"], *DEFAULTS["image"], "projection_dim"), POSITIVE)
RULES |= {"num_hidden_layers": LAYER_COUNT, "hidden_act": ACTIVATION, "layer_norm_eps": POSITIVE_NUMBER, "eos_token_id": TOKEN}


def architecture(config: Config) -> str:
    """What a config.json of transformers is of; empty if it does not say."""
    named = config.get("architectures")
    return named[0] if isinstance(named, list) and len(named) == 1 and isinstance(named[0], str) else ""


def options(config: Config, where: str) -> list[Options]:
    """The options of the encoders of a config.json: of a text or an image encoder, or of both of a CLIPModel.

    Raises:
        DataError: a setting is of another type or size, or one that ours lack.
    """
    name = architecture(config)
    if name != "CLIPModel":
        return [_text(config, where, projected=name in TEXTS[1:]) if name in TEXTS else _image(config, where)]
    halves = [config.get(half) for half in ("text_config", "vision_config")]
    if not all(isinstance(half, dict) for half in halves):
        raise DataError(f"{where} lacks text_config or vision_config; copy or download it again")
    own = {"projection_dim": config.get("projection_dim", SHARED["projection_dim"])}
    first, second = ({**half, **own} for half in halves if isinstance(half, dict))
    return [_text(first, where, projected=True), _image(second, where)]


def _text(config: Config, where: str, projected: bool) -> Options:
    found = _checked(config, "text", where)
    end, vocabulary = found["eos_token_id"], found["vocab_size"]
    return _transformer(found) | {
        "kind": "text",
        "vocabulary": vocabulary,
        "positions": found["max_position_embeddings"],
        "skip": 0,
        "final_norm": True,
        "projection": found["projection_dim"] if projected else 0,
        "end": vocabulary - 1 if end in (None, LEGACY_END) else end,
    }


def _image(config: Config, where: str) -> Options:
    found = _checked(config, "image", where)
    if config.get("num_channels", 3) != 3:
        raise DataError(f"{where}: num_channels {reprlib.repr(config['num_channels'])} must be 3")
    sizes = {"size": found["image_size"], "patch": found["patch_size"], "projection": found["projection_dim"]}
    return _transformer(found) | {"kind": "image", **sizes}


def _checked(config: Config, kind: str, where: str) -> Options:
    found = {**SHARED, **DEFAULTS[kind], **config}
    settings.check_values(found, RULES, where)
    width, heads = found["hidden_size"], found["num_attention_heads"]
    if width % heads:
        raise DataError(f"{where}: hidden_size {width} cannot be shared by num_attention_heads {heads}")
    return found


def _transformer(found: Options) -> Options:
    return {
        "width": found["hidden_size"],
        "layers": found["num_hidden_layers"],
        "heads": found["num_attention_heads"],
        "feed": found["intermediate_size"],
        "activation": found["hidden_act"],
        "epsilon": found["layer_norm_eps"],
    }


def penultimate(found: Options) -> Options:
    """The options where states are those before the last layer, without a norm, as Stable Diffusion XL has them."""
    return found | {"skip": 1, "final_norm": False}


def inferred(shapes: Mapping[str, tuple[int, ...]], column: int) -> Options | None:
    """The options of a text encoder by names that `text_names.named` gives, but for what they do not say; None of other names.

    Heads are 64 channels wide. OpenCLIP's have GELU, and states of the last layer but one with the final norm, as in Stable
    Diffusion 2 (Stability AI, published code), unless they lack the projection: then the last layer is not in the file.
    """
    first, openclip = f"{LAYERS[column]}.0", column == OPENCLIP
    names = ("token_embedding.weight", "positional_embedding.weight") if openclip else ()
    names = names or ("embeddings.token_embedding.weight", "embeddings.position_embedding.weight")
    names = (*names, f"{first}.mlp.c_fc.weight" if openclip else f"{first}.mlp.fc1.weight")
    if any(len(shapes.get(name, ())) != 2 for name in names):
        return None
    (vocabulary, width), (positions, _), (feed, _) = (shapes[name] for name in names)
    numbers = [re.match(rf"{re.escape(LAYERS[column])}\.(\d+)\.", name) for name in shapes]
    projection = (shapes.get("text_projection.weight") or (0, 0))[-1] if openclip else 0
    return {
        "kind": "text",
        "vocabulary": vocabulary,
        "positions": positions,
        "width": width,
        "layers": 1 + max(int(number[1]) for number in numbers if number),
        "heads": max(width // HEAD, 1),
        "feed": feed,
        "activation": "gelu" if openclip else "quick_gelu",
        "epsilon": 1e-5,
        "skip": 1 if projection else 0,
        "final_norm": True,
        "projection": projection,
        "end": vocabulary - 1,
    }
