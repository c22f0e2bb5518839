"""Small pipelines as diffusers writes them, with text encoders and tokenizers, and what is drawn with them."""

import json
import pathlib
import shutil
from typing import NamedTuple

import published_weights
from published_weights import write_tensors

TOKENIZER = pathlib.Path(__file__).parent / "data" / "texts"  # of CLIP, cut to some words
PROMPTS = ("a photo of a cat", "two dogs on the beach, 1990")
LORA = "pytorch_lora_weights.safetensors"
SCHEDULERS = {
    "ddim": "DDIMScheduler",
    "dpmpp_2m": "DPMSolverMultistepScheduler",
    "euler": "EulerDiscreteScheduler",
    "unipc": "UniPCMultistepScheduler",
    "lcm": "LCMScheduler",
}


class Case(NamedTuple):
    """What is drawn: of which pipeline, by which scheduler, and how."""

    family: str
    scheduler: str
    negative: str | None = None
    guidance: float = 5.0
    steps: int = 6
    lora: float = 0.0


CASES = {
    "ddim": Case("sd", "ddim"),
    "negative": Case("sd", "ddim", "a dark blurry photo"),
    "dpmpp_2m": Case("sd", "dpmpp_2m"),
    "euler": Case("sd", "euler"),
    "unipc": Case("sd", "unipc"),
    "lcm": Case("sd", "lcm", guidance=1.0, steps=4),
    "lora": Case("sd", "ddim", lora=0.8),
    "xl_ddim": Case("xl", "ddim"),
    "xl_negative": Case("xl", "euler", "a dark blurry photo"),
    "xl_dpmpp_2m": Case("xl", "dpmpp_2m"),
}
ENCODERS = {  # of Stable Diffusion, and the two of XL: width, projection, activation
    "sd": {"text_encoder": (12, 0, "quick_gelu")},
    "xl": {"text_encoder": (4, 0, "quick_gelu"), "text_encoder_2": (8, 16, "gelu")},
}
INDEX = {
    "sd": {"_class_name": "StableDiffusionPipeline", "safety_checker": [None, None], "feature_extractor": [None, None]},
    "xl": {"_class_name": "StableDiffusionXLPipeline", "force_zeros_for_empty_prompt": True},
}


def write(folder: pathlib.Path, family: str) -> pathlib.Path:
    """Writes the folder of a pipeline."""
    published_weights.write(folder, {"sd": "sd1", "xl": "sdxl"}[family])
    published_weights.write(folder, "kl")
    index = INDEX[family] | {"_diffusers_version": "0.42.1", "vae": ["diffusers", "AutoencoderKL"]}
    index |= {"unet": ["diffusers", "UNet2DConditionModel"], "scheduler": ["diffusers", "DDIMScheduler"]}
    for name, (width, projection, activation) in ENCODERS[family].items():
        kind = "CLIPTextModelWithProjection" if projection else "CLIPTextModel"
        tokenizer = name.replace("text_encoder", "tokenizer")
        index |= {name: ["transformers", kind], tokenizer: ["transformers", "CLIPTokenizer"]}
        _write_encoder(folder / name, kind, width, projection, activation)
        _write_tokenizer(folder / tokenizer, "!" if projection else "<|endoftext|>")
    _json(folder / "model_index.json", index)
    return folder


def write_lora(folder: pathlib.Path) -> pathlib.Path:
    """Writes a LoRA of attention and of convolutions of `sd`."""
    return published_weights.write(folder, "lora_peft")


def _write_encoder(folder: pathlib.Path, kind: str, width: int, projection: int, activation: str) -> None:
    vocabulary = 1 + max(json.loads((TOKENIZER / "vocab.json").read_text()).values())
    config = {
        "architectures": [kind],
        "model_type": "clip_text_model",
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "projection_dim": projection or width,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "max_position_embeddings": 77,
        "hidden_act": activation,
        "layer_norm_eps": 1e-5,
        "bos_token_id": vocabulary - 2,
        "eos_token_id": vocabulary - 1,
        "pad_token_id": vocabulary - 1,
    }
    _json(folder / "config.json", config)
    model = "text_model"
    shapes = {f"{model}.embeddings.token_embedding.weight": [vocabulary, width]}
    shapes[f"{model}.embeddings.position_embedding.weight"] = [77, width]
    for number in range(3):
        layer = f"{model}.encoder.layers.{number}"
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            shapes |= {f"{layer}.self_attn.{part}.weight": [width, width], f"{layer}.self_attn.{part}.bias": [width]}
        shapes |= {f"{layer}.mlp.fc1.weight": [2 * width, width], f"{layer}.mlp.fc1.bias": [2 * width]}
        shapes |= {f"{layer}.mlp.fc2.weight": [width, 2 * width], f"{layer}.mlp.fc2.bias": [width]}
        for norm in ("layer_norm1", "layer_norm2"):
            shapes |= {f"{layer}.{norm}.weight": [width], f"{layer}.{norm}.bias": [width]}
    shapes |= {f"{model}.final_layer_norm.{name}": [width] for name in ("weight", "bias")}
    shapes |= {"text_projection.weight": [projection, width]} if projection else {}
    write_tensors(folder / "model.safetensors", shapes)


def _write_tokenizer(folder: pathlib.Path, pad: str) -> None:
    folder.mkdir(parents=True)
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(TOKENIZER / name, folder)
    special = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>", "pad_token": pad}
    _json(folder / "special_tokens_map.json", special)
    _json(folder / "tokenizer_config.json", {"model_max_length": 77, "tokenizer_class": "CLIPTokenizer", **special})


def _json(path: pathlib.Path, document: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=2) + "\n")
