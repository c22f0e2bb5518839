"""A LoRA of Stable Diffusion XL for a style or a thing in images of one's own, on a TPU pod of eight chips.

Paper: Hu et al. (2021), rank 16; Podell et al. (2023): both text encoders, the pooled vector and the sizes are given.
Data: photos; images with captions, by that name, as `jaxdiff data import` makes them.
Cost: not run; at most 24 images/s on eight v5e chips (`jaxdiff plan`).
Score: not measured.
Run: jaxdiff import stabilityai/stable-diffusion-xl-base-1.0 --workdir runs/sdxl
  Then: jaxdiff train configs/sdxl_lora.py --workdir runs/sdxl_lora && jaxdiff export runs/sdxl_lora --out lora
"""

import dataclasses
import pathlib

from jaxdiff.app.config import Data, Distillation, Mesh, Optimizer, Sources, load

base = load(pathlib.Path("configs/sdxl.py"))
config = dataclasses.replace(
    base,
    data=Data(name="photos", image_shape=(1024, 1024, 3), fit="crop", flip=True, batch_size=8),
    model=dataclasses.replace(base.model, remat="everything", dtype="bfloat16"),
    published=dataclasses.replace(base.published, repository=""),
    distillation=Distillation(lora_rank=16),
    sources=Sources(init="configs/sdxl.py"),
    optimizer=Optimizer(learning_rate=1e-4, warmup_steps=100),
    ema={"ema": 0.99},
    steps=2000,
    mesh=Mesh(fsdp=-1, data=1),
)
