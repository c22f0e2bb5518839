"""Writes data/published: what published code computes with small networks whose weights `published_weights.draw` gives.

python -m venv peer && peer/bin/pip install torch==2.14.1 diffusers==0.42.1 peft==0.21.2 transformers==5.24.0 einops torchvision
peer/bin/python tests/make_published.py stable-diffusion stablediffusion guided-diffusion consistency_models DiT SiT

The arguments are folders with clones of CompVis/stable-diffusion at commit 21f890f, Stability-AI/stablediffusion at cf1d67a,
openai/guided-diffusion at 22e0df8, openai/consistency_models at e32b69e, facebookresearch/DiT at ed81ce2 and willisma/SiT at
947f95b; `--only NAME ...` records these families alone.

Every family is written to files, opened from these by the published code, and run in float32 on the CPU. Then each parameter is
changed by 1%, in float64: `unmoved` in the notes lists those that change no output by more than 1e-6, and `rounding` is the largest
difference between float32 and float64, both relative to the largest value of an output.
"""

import argparse
import contextlib
import importlib
import json
import pathlib
import sys
import tempfile
from unittest import mock

import numpy as np
import published_configs as configs
import torch
from published_recording import compact, drawn, record, shapes_of
from published_weights import RECORDED, write
from torch import nn

STUBS = ("pytorch_lightning", "taming.modules.vqvae.quantize", "piq", "blobfile", "mpi4py", "flash_attn.flash_attention")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("compvis", "stability", "guided", "consistency", "dit", "sit"):
        parser.add_argument(name, type=pathlib.Path)
    parser.add_argument("--only", nargs="*")
    clones = parser.parse_args()
    torch.set_num_threads(1)  # sums in one order
    for name, make in FAMILIES.items():
        if clones.only is None or name in clones.only:
            make(name, clones)


# diffusers


def written(configurable):
    """The JSON that diffusers writes for a model or scheduler."""
    return json.loads(configurable.to_json_string())


def diffusers_family(name, folder, network, config, inputs, run, scheduler=None, pipeline=None, rename=None):
    """A network of diffusers in `folder` of a pipeline; `config` is written in full, or as it is where it says `_class_name`."""
    import diffusers

    cls = getattr(diffusers, network)
    module = cls.from_config(config)
    if "_class_name" not in config:
        config = written(module)
        config.pop("_name_or_path", None)
    documents = {f"{folder}config.json": config}
    if scheduler:
        documents[("scheduler/" if folder else "") + "scheduler_config.json"] = scheduler
        documents["model_index.json"] = pipeline
    names = shapes_of(module)
    for new, old in (rename or {}).items():
        names = {key.replace(new, old): shape for key, shape in names.items()}
    record(
        name,
        documents,
        {f"{folder}diffusion_pytorch_model.safetensors": names},
        config,
        inputs,
        lambda path: cls.from_pretrained(path / folder, low_cpu_mem_usage=False),
        run,
    )


OLD_ATTENTION = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
TIMESTEPS = np.array([3, 871])


def conditional(module, x, timesteps, context, wide=None, **added):
    added = {"added_cond_kwargs": added} if added else {}
    return {"sample": module(x, timesteps, context, **added).sample} | (
        {} if wide is None else {"wide": module(wide, timesteps, context).sample}
    )


def sd1(name, clones):
    inputs = drawn(name, x=(2, 4, 8, 8), wide=(2, 4, 8, 16), context=(2, 7, 12)) | {"timesteps": TIMESTEPS}
    diffusers_family(
        name, "unet/", "UNet2DConditionModel", configs.SD1, inputs, conditional, configs.PNDM, configs.STABLE_DIFFUSION
    )


def sd2(name, clones):
    inputs = drawn(name, x=(2, 4, 8, 8), context=(2, 7, 12)) | {"timesteps": TIMESTEPS}
    pipeline = configs.STABLE_DIFFUSION | {"scheduler": ["diffusers", "DDIMScheduler"]}
    diffusers_family(name, "unet/", "UNet2DConditionModel", configs.SD2, inputs, conditional, configs.DDIM_V, pipeline)


def sdxl(name, clones):
    inputs = drawn(name, x=(2, 4, 8, 8), context=(2, 7, 12), text_embeds=(2, 16)) | {"timesteps": TIMESTEPS}
    inputs["time_ids"] = np.array([[64, 48, 0, 3, 64, 64], [1024, 768, 17, 0, 512, 1024]], np.float32)
    pipeline = configs.STABLE_DIFFUSION | {
        "_class_name": "StableDiffusionXLPipeline",
        "scheduler": ["diffusers", "EulerDiscreteScheduler"],
        "text_encoder_2": [None, None],
        "tokenizer_2": [None, None],
        "force_zeros_for_empty_prompt": True,
    }
    diffusers_family(name, "unet/", "UNet2DConditionModel", configs.SDXL, inputs, conditional, configs.EULER, pipeline)


def kl(name, clones):
    def run(module, x, latents):
        return {"moments": module.encode(x).latent_dist.parameters, "decoded": module.decode(latents).sample}

    inputs = drawn(name, x=(2, 3, 16, 16), latents=(2, 4, 4, 4))
    config, rename = (configs.KL_OLD, OLD_ATTENTION) if name == "kl_old" else (configs.KL, None)
    diffusers_family(name, "vae/", "AutoencoderKL", config, inputs, run, rename=rename)


def vq(name, clones):
    def run(module, x, latents):
        encoded, decoded = module.encode(x).latents, module.decode(latents).sample
        indices = module.quantize(latents)[2][2].reshape(len(latents), *latents.shape[2:])
        return {
            "latents": encoded,
            "decoded": decoded,
            "decoded_unquantized": module.decode(latents, force_not_quantize=True).sample,
            "indices": indices,
        }

    diffusers_family(name, "vqvae/", "VQModel", configs.VQ, drawn(name, x=(2, 3, 16, 16), latents=(2, 3, 4, 4)), run)


def ddpm(name, clones):
    """The old one has all its files in one folder, as google/ddpm-cifar10-32; the new one is as diffusers writes it today."""
    old = name == "ddpm_old"
    config = {key: value for key, value in configs.DDPM.items() if old or not key.startswith("_")}
    diffusers_family(
        name,
        "" if old else "unet/",
        "UNet2DModel",
        config,
        drawn(name, x=(2, 3, 16, 16)) | {"timesteps": TIMESTEPS},
        lambda module, x, timesteps: {"sample": module(x, timesteps).sample},
        configs.DDPM_SCHEDULER,
        configs.DDPM_PIPELINE,
        OLD_ATTENTION if old else None,
    )


def consistency_diffusers(name, clones):
    """The network alone: its times are `250 log(sigma + 1e-44)`, its input is `x / sqrt(sigma^2 + sigma_data^2)`."""
    inputs = drawn(name, x=(2, 3, 16, 16))
    inputs |= {"timesteps": np.array([-1553.6521, 1095.5066], np.float32), "labels": np.array([3, 8])}
    pipeline = {
        "_class_name": "ConsistencyModelPipeline",
        "_diffusers_version": "0.18.0.dev0",
        "scheduler": ["diffusers", "CMStochasticIterativeScheduler"],
        "unet": ["diffusers", "UNet2DModel"],
    }
    diffusers_family(
        name,
        "unet/",
        "UNet2DModel",
        configs.CONSISTENCY_DIFFUSERS,
        inputs,
        lambda module, x, timesteps, labels: {"sample": module(x, timesteps, labels).sample},
        configs.CONSISTENCY_SCHEDULER,
        pipeline,
    )


def dit(name, clones):
    inputs = drawn(name, x=(2, 4, 8, 8)) | {"timesteps": TIMESTEPS, "labels": np.array([3, 10])}

    def run(module, x, timesteps, labels):
        return {"sample": module(x, timesteps, labels).sample}

    config, scheduler = configs.DIT, configs.DIT_SCHEDULER
    diffusers_family(name, "transformer/", "DiTTransformer2DModel", config, inputs, run, scheduler, configs.DIT_PIPELINE)


def joint(name, clones):
    """The blocks of Stable Diffusion 3, the last of which returns no context; queries and keys are normalised, as in 3.5."""
    from diffusers.models.attention import JointTransformerBlock
    from safetensors.torch import load_file

    module, path = (
        nn.ModuleList(JointTransformerBlock(32, 2, 16, number == 1, "rms_norm") for number in range(2)),
        f"{name}.safetensors",
    )

    def load(folder):
        module.load_state_dict(load_file(folder / path))
        return module

    def run(module, x, context, embedding):
        for block in module:
            context, x = block(x, context, embedding)
        return {"sample": x}

    inputs = drawn(name, x=(2, 12, 32), context=(2, 5, 32), embedding=(2, 32))
    record(name, {}, {path: shapes_of(module)}, {}, inputs, load, run)


# Peebles & Xie, Ma et al.


class Heads(nn.Module):
    """What timm's Attention is."""

    def __init__(self, width, num_heads, qkv_bias):
        super().__init__()
        self.heads, self.qkv, self.proj = num_heads, nn.Linear(width, 3 * width, bias=qkv_bias), nn.Linear(width, width)

    def forward(self, x):
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, dim=-1))
        return self.proj(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """What timm's Mlp is."""

    def __init__(self, in_features, hidden_features, act_layer, drop):
        super().__init__()
        self.fc1, self.act, self.fc2 = nn.Linear(in_features, hidden_features), act_layer(), nn.Linear(hidden_features, in_features)

    def forward(self, x):
        return self.fc2(self.act(self.fc1(x)))


class PatchEmbed(nn.Module):
    """What timm's PatchEmbed is."""

    def __init__(self, size, patch, channels, width, bias):
        super().__init__()
        self.num_patches, self.patch_size = (size // patch) ** 2, (patch, patch)
        self.proj = nn.Conv2d(channels, width, patch, patch, bias=bias)

    def forward(self, x):
        return self.proj(x).flatten(2).transpose(1, 2)


def transformer(name, clones):
    """The positions are not drawn, but those that the published code makes."""
    from safetensors.torch import load_file

    path, sit = f"{name}.safetensors", name == "sit"
    layers = mock.MagicMock(Attention=Heads, Mlp=Mlp, PatchEmbed=PatchEmbed)
    timm = {"timm": mock.MagicMock(), "timm.models": mock.MagicMock(), "timm.models.vision_transformer": layers}
    with importable(clones.sit if sit else clones.dit) as importer, mock.patch.dict(sys.modules, timm):
        published = importer("models")
        module = (published.SiT if sit else published.DiT)(**configs.DIT_PUBLISHED)

    def load(folder):
        state = {key: value for key, value in load_file(folder / path).items() if key != "pos_embed"}
        module.load_state_dict(module.state_dict() | state)
        return module

    inputs = drawn(name, x=(2, 4, 8, 8)) | {"labels": np.array([3, 10])}
    inputs["timesteps"] = np.array([0.25, 0.9], np.float32) if sit else TIMESTEPS
    run = lambda module, x, timesteps, labels: {"sample": module(x, timesteps, labels)}  # noqa: E731
    record(name, {}, {path: shapes_of(module)}, configs.DIT_PUBLISHED, inputs, load, run)


# OpenAI


class Attention(nn.Module):
    """What flash_attn computes, on the CPU in the input's precision: [B, T, 3, heads, channels] -> [B, T, heads, channels]."""

    def __init__(self, **kwargs):
        super().__init__()

    def forward(self, qkv, **kwargs):
        q, k, v = qkv.transpose(1, 3).unbind(2)
        return nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2), None


@contextlib.contextmanager
def importable(clone):
    """Modules of a clone, with stubs for the packages that computing does not need."""
    stubs = {".".join(stub.split(".")[: i + 1]): mock.MagicMock() for stub in STUBS for i in range(stub.count(".") + 1)}
    stubs["pytorch_lightning"].LightningModule = nn.Module
    stubs["flash_attn.flash_attention"].FlashAttention = Attention
    with mock.patch.dict(sys.modules, stubs), mock.patch.object(sys, "path", [str(clone), *sys.path]):
        yield importlib.import_module  # patch.dict forgets the clone's modules, too


def single_file(name, module, config, inputs, run, extra=None):
    """A network of published code, all of it in one file, with the shapes in `extra` beside it."""
    from safetensors.torch import load_file

    path = f"{name}.safetensors"

    def load(folder):
        found = load_file(folder / path)
        module.load_state_dict({key: value for key, value in found.items() if key not in (extra or {})})
        return module

    record(name, {}, {path: shapes_of(module) | (extra or {})}, config, inputs, load, run)


LABELS = np.array([7, 933])


def adm(name, clones):
    flags = configs.ADM | {"use_new_attention_order": name == "adm_new"}
    inputs = drawn(name, x=(2, 3, 16, 16)) | {"timesteps": TIMESTEPS, "labels": LABELS}
    with importable(clones.guided) as load:
        module = load("guided_diffusion.script_util").create_model(**flags)
        single_file(name, module, flags, inputs, lambda m, x, timesteps, labels: {"sample": m(x, timesteps, labels)})


def consistency(name, clones):
    """`x0` of a distilled network and `edm` of its teacher; `legacy` is `x0` with heads split before q, k and v, as in `adm`."""
    sigmas = np.array([0.7, 40.0], np.float32)
    inputs = drawn(name, x=(2, 3, 16, 16)) | {"sigmas": sigmas, "labels": LABELS}
    inputs["x"] *= np.sqrt(0.25 + sigmas**2)[:, None, None, None]
    with importable(clones.guided) as load:
        legacy = load("guided_diffusion.unet").QKVAttentionLegacy
    with importable(clones.consistency) as load:
        scripts, unet = load("cm.script_util"), load("cm.unet")

        def run(module, x, sigmas, labels):
            output, x0 = distilled.denoise(module, x, sigmas, y=labels)
            _, edm = teacher.denoise(module, x, sigmas, y=labels)
            blocks = [part for part in module.modules() if isinstance(part, unet.AttentionBlock)]
            flash = [block.attention for block in blocks]
            for block in blocks:
                block.attention = legacy(block.num_heads)
            _, other = distilled.denoise(module, x, sigmas, y=labels)
            for block, attention in zip(blocks, flash, strict=True):
                block.attention = attention
            return {"output": output, "x0": x0, "edm": edm, "legacy": other}

        module, distilled = scripts.create_model_and_diffusion(
            **scripts.model_and_diffusion_defaults() | configs.CONSISTENCY, distillation=True
        )
        _, teacher = scripts.create_model_and_diffusion(
            **scripts.model_and_diffusion_defaults() | configs.CONSISTENCY, distillation=False
        )
        single_file(name, module, configs.CONSISTENCY, inputs, run)


# CompVis


def ldm(name, clones):
    """Named as in a checkpoint of LatentDiffusion, with its other tensors beside them."""
    config = configs.LDM
    if name == "ldm2":
        other = {"params": config["unet_config"]["params"] | configs.LDM2_UNET}
        config = config | {"parameterization": "v", "unet_config": config["unet_config"] | other}
    inputs = drawn(name, x=(2, 4, 8, 8), context=(2, 7, 12), image=(2, 3, 16, 16), latents=(2, 4, 4, 4))
    with importable(clones.stability if name == "ldm2" else clones.compvis) as load:
        module = nn.Module()
        module.model = nn.Module()
        network = load("ldm.modules.diffusionmodules.openaimodel").UNetModel
        module.model.diffusion_model = network(**config["unet_config"]["params"])
        module.first_stage_model = load("ldm.models.autoencoder").AutoencoderKL(**config["first_stage_config"]["params"])

        def run(module, x, timesteps, context, image, latents):
            return {
                "sample": module.model.diffusion_model(x, timesteps, context=context),
                "moments": module.first_stage_model.encode(image).parameters,
                "decoded": module.first_stage_model.decode(latents),
            }

        single_file(name, module, config, inputs | {"timesteps": TIMESTEPS}, run, configs.LDM_SKIPPED)


# LoRA


def lora(name, clones):
    """The UNet of `sd1` with a LoRA in `pytorch_lora_weights.safetensors`, loaded by diffusers."""
    from diffusers import StableDiffusionPipeline, UNet2DConditionModel

    network = UNet2DConditionModel.from_config(configs.SD1)
    names, metadata = lora_peft(network) if name == "lora_peft" else (lora_names(name, network), None)
    path = "pytorch_lora_weights.safetensors"

    def load(folder):
        module = UNet2DConditionModel.from_pretrained(write(folder, "sd1") / "unet", low_cpu_mem_usage=False)
        found, alphas, header = StableDiffusionPipeline.lora_state_dict(folder, weight_name=path, return_lora_metadata=True)
        StableDiffusionPipeline.load_lora_into_unet(found, network_alphas=alphas, unet=module, metadata=header)
        return module

    inputs = drawn("sd1", x=(2, 4, 8, 8), context=(2, 7, 12)) | {"timesteps": TIMESTEPS}
    headers = {path: metadata} if metadata else None
    record(name, {}, {path: names}, {"base": "sd1"}, inputs, load, conditional, headers, moving="lora_")


def lora_peft(network):
    """Names with shapes, and the header, as diffusers saves what peft made."""
    from diffusers import StableDiffusionPipeline
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict
    from safetensors import safe_open

    network.add_adapter(LoraConfig(r=4, lora_alpha=8, target_modules=["to_q", "to_k", "to_v", "to_out.0", "proj_in", "conv1"]))
    header = network.peft_config["default"].to_dict()
    header |= {key: sorted(value) for key, value in header.items() if isinstance(value, set)}
    with tempfile.TemporaryDirectory() as folder:
        layers = get_peft_model_state_dict(network)
        StableDiffusionPipeline.save_lora_weights(folder, layers, unet_lora_adapter_metadata=header)
        with safe_open(f"{folder}/pytorch_lora_weights.safetensors", "pt") as file:
            return {key: file.get_slice(key).get_shape() for key in file.keys()}, dict(sorted(file.metadata().items()))  # noqa: SIM118


def lora_names(name, network):
    """Names with shapes as three others wrote them."""
    shapes = {}
    for layer, part in network.named_modules():
        attention = ".attn" in layer and layer.endswith(("to_q", "to_k", "to_v", "to_out.0"))
        wide = layer.startswith(("down_blocks.1.", "mid_block.", "up_blocks.1."))
        if not hasattr(part, "weight") or part.weight.ndim < 2 or not (wide if name == "lora_kohya" else attention):
            continue
        columns, rows, *kernel = part.weight.shape
        down, up = [4, rows, *kernel], [columns, 4, *(1 for _ in kernel)]
        if name == "lora_kohya":
            key = "lora_unet_" + layer.replace(".", "_")
            shapes |= {f"{key}.alpha": [], f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up}
        elif name == "lora_diffusers":
            shapes |= {f"unet.{layer}.lora.down.weight": down, f"unet.{layer}.lora.up.weight": up}
        else:
            block, projection = layer.removesuffix(".0").rsplit(".", 1)
            key = f"unet.{block}.processor.{projection}_lora"
            shapes |= {f"{key}.down.weight": down, f"{key}.up.weight": up}
    if name == "lora_kohya":
        for layer in ("self_attn_q_proj", "mlp_fc1"):
            key = f"lora_te_text_model_encoder_layers_0_{layer}"
            shapes |= {f"{key}.alpha": [], f"{key}.lora_down.weight": [4, 12], f"{key}.lora_up.weight": [12, 4]}
    return shapes


# Schedules


def schedules(name, clones):
    """Scheduler configs as published: alphas_cumprod at some of the 1000 times, and the times and sigmas of ten steps."""
    import diffusers

    recorded = {}
    for key, config in configs.SCHEDULES.items():
        scheduler = getattr(diffusers, config["_class_name"]).from_config(config)
        entry = {"config": config}
        if hasattr(scheduler, "alphas_cumprod"):
            count = len(scheduler.alphas_cumprod)
            indices = [int(i) for i in np.linspace(0, count - 1, 12).round()]
            values = scheduler.alphas_cumprod.double()
            entry |= {"indices": indices, "alphas_cumprod": [float(values[i]) for i in indices]}
        if hasattr(scheduler, "final_alpha_cumprod"):
            entry["final_alpha_cumprod"] = float(scheduler.final_alpha_cumprod)
        scheduler.set_timesteps(10)
        entry["timesteps"] = [float(t) for t in scheduler.timesteps]
        if hasattr(scheduler, "sigmas"):
            entry["sigmas"] = [float(s) for s in scheduler.sigmas]
        recorded[key] = entry
        print(name, key, entry["timesteps"])
    (RECORDED / "schedules.json").write_text(compact(json.dumps(recorded, indent=1)) + "\n")


FAMILIES = {
    "sd1": sd1,
    "sd2": sd2,
    "sdxl": sdxl,
    "kl": kl,
    "kl_old": kl,
    "vq": vq,
    "dit": dit,
    "dit_published": transformer,
    "sit": transformer,
    "joint": joint,
    "ddpm": ddpm,
    "ddpm_old": ddpm,
    "consistency_diffusers": consistency_diffusers,
    "adm": adm,
    "adm_new": adm,
    "consistency": consistency,
    "ldm": ldm,
    "ldm2": ldm,
    "lora_peft": lora,
    "lora_diffusers": lora,
    "lora_diffusers_old": lora,
    "lora_kohya": lora,
    "schedules": schedules,
}


if __name__ == "__main__":
    main()
