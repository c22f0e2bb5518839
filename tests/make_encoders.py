"""Writes data/published/clip*: what CLIP's encoders compute with the weights that `published_weights.draw` gives.

python -m venv peer && peer/bin/pip install torch==2.14.1 transformers==5.24.0 open-clip-torch==3.3.0
peer/bin/python tests/make_encoders.py

As `make_published.py` does it, which says what the notes mean: transformers' modules, and OpenCLIP's as Stability AI's code goes
through them. States are kept at some places of a text.
"""

import numpy as np
import open_clip
import torch
import transformers
from published_recording import drawn, record, shapes_of
from published_weights import TEXTS
from safetensors.torch import load_file
from torch import nn

LENGTH, PLACES = 77, (0, 1, 2, 8, 9, 40, 76)
ROWS = [5, 40, 200, 400, 600, 800, 999]  # of data/texts, whose cosines are kept
SMALL = {"intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 2, "max_position_embeddings": LENGTH}
FIRST, SECOND = "conditioner.embedders.0.transformer.", "conditioner.embedders.1.model."


def main():
    torch.set_num_threads(1)
    for make in (sd1, sd2, sdxl, projection, clip, score):
        make()


def family(name, config, file, shapes, inputs, load, run):
    """One whose config, if any, is `config`, and whose file of weights has these tensors."""
    documents = {"config.json": config} if config else {}
    record(name, documents, {file: shapes}, config, inputs, lambda folder: load(folder / file), run)


def tokens_of(end, name):
    """Of a text of eight tokens, padded by end; of an empty one, padded by 0; and of a full one."""
    ids = np.random.RandomState(len(name)).randint(1, end - 1, (3, LENGTH))
    ids[:, 0] = end - 1
    ids[0, 9:], ids[1, 1], ids[1, 2:], ids[2, -1] = end, end, 0, end
    return {"tokens": ids}


def text_model(module, tokens):
    found = module(tokens, output_hidden_states=True)
    pooled = {"projected": found.text_embeds} if hasattr(found, "text_embeds") else {"pooled": found.pooler_output}
    return {"states": found.last_hidden_state[:, PLACES], "penultimate": found.hidden_states[-2][:, PLACES], **pooled}


def loaded(module, prefix, file):
    """The module with the tensors of a file whose names begin so; of text encoders, transformers leaves `text_model.` out."""
    own = {name.removeprefix(prefix): value for name, value in load_file(file).items() if name.startswith(prefix)}
    module.load_state_dict({name.removeprefix("text_model."): value for name, value in own.items()})
    return module


def prefixed(prefix, module):
    return {f"{prefix}{name}": shape for name, shape in shapes_of(module).items()}


def sd1():
    """As in Stable Diffusion 1: OpenAI's ViT-L, whose config says a wrong end; by its names in CompVis' checkpoint."""
    config = {**SMALL, "vocab_size": 49408, "hidden_size": 128, "eos_token_id": 2, "hidden_act": "quick_gelu"}
    module, prefix = transformers.CLIPTextModel(transformers.CLIPTextConfig(**config)), "cond_stage_model.transformer."
    config |= {"architectures": ["CLIPTextModel"], "model_type": "clip_text_model", "projection_dim": 768}
    names, inputs = prefixed(f"{prefix}text_model.", module), tokens_of(49407, "sd1")
    family("clip_sd1", config, "clip.safetensors", names, inputs, lambda file: loaded(module, prefix, file), text_model)


def openclip(layers):
    """OpenCLIP's module, of which Stable Diffusion has the text half."""
    vision = {"layers": 1, "width": 64, "head_width": 32, "image_size": 8, "patch_size": 4}
    words = {"context_length": LENGTH, "vocab_size": 100, "width": 128, "heads": 2, "layers": layers}
    module = open_clip.model.CLIP(24, vision, words)
    del module.visual
    return module


def openclip_text(module, tokens):
    """As Stability AI's FrozenOpenCLIPEmbedder and FrozenOpenCLIPEmbedder2 go through the module."""
    before = x = module.token_embedding(tokens) + module.positional_embedding
    for block in module.transformer.resblocks:
        before, x = x, block(x, attn_mask=module.attn_mask.to(x.dtype))
    pooled = module.ln_final(x)[torch.arange(len(tokens)), tokens.argmax(-1)] @ module.text_projection
    return {"penultimate": before[:, PLACES], "normed": module.ln_final(before)[:, PLACES], "projected": pooled}


def sd2():
    """As in Stable Diffusion 2: OpenCLIP's ViT-H."""
    module, prefix = openclip(3), "cond_stage_model.model."
    names, inputs = prefixed(prefix, module), tokens_of(99, "sd2")
    family("clip_sd2", {}, "clip.safetensors", names, inputs, lambda file: loaded(module, prefix, file), openclip_text)


def sdxl():
    """As in Stable Diffusion XL: OpenAI's ViT-L and OpenCLIP's ViT-bigG."""
    config = transformers.CLIPTextConfig(**SMALL | {"num_attention_heads": 1}, vocab_size=100, hidden_size=64, eos_token_id=99)
    both = nn.ModuleDict({"first": transformers.CLIPTextModel(config), "second": openclip(2)})
    names = prefixed(f"{FIRST}text_model.", both["first"]) | prefixed(SECOND, both["second"])

    def load(file):
        for key, prefix in (("first", FIRST), ("second", SECOND)):
            loaded(both[key], prefix, file)
        return both

    def run(module, tokens):
        first, second = text_model(module["first"], tokens), openclip_text(module["second"], tokens)
        return {"context": torch.cat([first["penultimate"], second["penultimate"]], -1), "pooled": second["projected"]}

    family("clip_sdxl", {}, "clip.safetensors", names, tokens_of(99, "sdxl"), load, run)


def projection():
    """As text_encoder_2 of Stable Diffusion XL, by transformers' names; of a larger epsilon, which is seen."""
    config = {**SMALL, "vocab_size": 49408, "hidden_size": 32, "projection_dim": 24, "layer_norm_eps": 1e-3}
    config |= {"hidden_act": "gelu", "bos_token_id": 49406, "eos_token_id": 49407}
    kind, inputs = transformers.CLIPTextModelWithProjection, tokens_of(49407, "projection")
    names = shapes_of(kind(transformers.CLIPTextConfig(**config)))
    config |= {"architectures": ["CLIPTextModelWithProjection"], "model_type": "clip_text_model"}
    family(
        "clip_projection", config, "model.safetensors", names, inputs, lambda file: kind.from_pretrained(file.parent), text_model
    )


def clip():
    """A whole CLIP by transformers' names: texts and images."""
    words = {**SMALL, "vocab_size": 100, "hidden_size": 32, "bos_token_id": 98, "eos_token_id": 99}
    vision = {"hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2, "num_attention_heads": 3}
    vision |= {"image_size": 12, "patch_size": 4}
    names = shapes_of(transformers.CLIPModel(transformers.CLIPConfig(text_config=words, vision_config=vision, projection_dim=20)))
    config = {
        "projection_dim": 20,
        "text_config": words,
        "vision_config": vision,
        "architectures": ["CLIPModel"],
        "model_type": "clip",
    }
    inputs = tokens_of(99, "clip") | drawn("clip", images=(2, 3, 12, 12))

    def run(module, tokens, images):
        text, image = module.text_model(tokens), module.vision_model(images)
        projected = {"text": module.text_projection(text.pooler_output), "image": module.visual_projection(image.pooler_output)}
        return {"states": text.last_hidden_state[:, PLACES], **projected}

    def load(file):
        return transformers.CLIPModel.from_pretrained(file.parent)

    family("clip", config, "model.safetensors", names, inputs, load, run)


def score():
    """The cosines of six pictures and some of data/texts by a whole CLIP with the real vocabulary."""
    words = {**SMALL, "vocab_size": 49408, "hidden_size": 32, "bos_token_id": 49406, "eos_token_id": 49407}
    vision = {"hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2, "num_attention_heads": 3}
    config = {"text_config": words, "vision_config": vision | {"image_size": 12, "patch_size": 4}, "projection_dim": 24}
    names = shapes_of(transformers.CLIPModel(transformers.CLIPConfig(**config)))
    config |= {"architectures": ["CLIPModel"], "model_type": "clip"}
    processor = transformers.CLIPImageProcessorPil(size={"shortest_edge": 12}, crop_size={"height": 12, "width": 12})
    with np.load(TEXTS / "tokens.npz") as recorded:
        inputs = {"tokens": recorded["sd1"][ROWS].astype(np.int64), "rows": np.array(ROWS)}
    inputs["pixels"] = np.random.RandomState(0).randint(0, 256, (6, 12, 12, 3)).astype(np.uint8)

    def run(module, tokens, rows, pixels):
        images = processor(list(pixels.numpy()), return_tensors="pt")["pixel_values"].to(module.logit_scale.dtype)
        return {"cosines": module(input_ids=tokens, pixel_values=images).logits_per_image / module.logit_scale.exp()}

    def load(file):
        return transformers.CLIPModel.from_pretrained(file.parent)

    family("clip_score", config, "model.safetensors", names, inputs, load, run)


if __name__ == "__main__":
    main()
