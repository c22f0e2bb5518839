"""Stable Diffusion 1.5 in four steps: a latent consistency model as a LoRA of it, told the guidance scale.

Paper: Luo et al. (2023), latent consistency models: skip of 20 of the 1,000 steps, w between 3 and 15, embedded; and Luo et al.
(2023b), LCM-LoRA, rank 64.
Data: photos; images with captions, by that name, as `jaxdiff data import` makes them. The papers take LAION-Aesthetics.
Cost: not run; at most 141 images/s on eight v5e chips (`jaxdiff plan`). The paper: 32 A100 hours.
Score: not measured.
Run: jaxdiff import stable-diffusion-v1-5/stable-diffusion-v1-5 --workdir runs/sd15
  Then: jaxdiff train configs/sd15_lcm_lora.py --workdir runs/sd15_lcm_lora
"""

import dataclasses
import pathlib

from jaxdiff.app.config import Data, Distillation, Mesh, Optimizer, Sampling, Sources, load

base = load(pathlib.Path("configs/sd15.py"))
config = dataclasses.replace(
    base,
    objective="consistency",
    data=Data(name="photos", image_shape=(512, 512, 3), fit="crop", flip=True, batch_size=64),
    model=dataclasses.replace(base.model, remat="everything", dtype="bfloat16"),
    published=dataclasses.replace(base.published, repository=""),
    diffusion=dataclasses.replace(base.diffusion, label_dropout=0.0),
    distillation=Distillation(
        steps=1000,
        spacing="trailing",
        skip=20,
        guidance=(3.0, 15.0),
        clip=False,
        distance="pseudo_huber",
        huber=0.001,
        target_ema="target",
        lora_rank=64,
    ),
    sources=Sources(teacher="configs/sd15.py"),
    optimizer=Optimizer(learning_rate=1e-4, warmup_steps=500),
    ema={"ema": 0.999, "target": 0.95},
    steps=4000,
    mesh=Mesh(fsdp=-1, data=1),
    sampling=Sampling(sampler="consistency", steps=4, spacing="trailing", guidance=7.5, clip=False, num=16, batch_size=4),
)
