"""A LoRA of Stable Diffusion 1.5 for a style or a thing in images of one's own, on one chip.

Paper: Hu et al. (2021), rank 16; the weight min(SNR, 5) of Hang et al. (2023).
Data: photos; images with captions, by that name, as `jaxdiff data import` makes them. Ten are enough for a thing.
Cost: not run; at most 124 images/s on eight v5e chips (`jaxdiff plan`).
Score: not measured.
Run: jaxdiff import stable-diffusion-v1-5/stable-diffusion-v1-5 --workdir runs/sd15
  Then: jaxdiff train configs/sd15_lora.py --workdir runs/sd15_lora && jaxdiff export runs/sd15_lora --out lora
"""

import dataclasses
import pathlib

from jaxdiff.app.config import Data, Distillation, Optimizer, Sources, load

base = load(pathlib.Path("configs/sd15.py"))
config = dataclasses.replace(
    base,
    data=Data(name="photos", image_shape=(512, 512, 3), fit="crop", flip=True, batch_size=4),
    model=dataclasses.replace(base.model, remat="everything", dtype="bfloat16"),
    published=dataclasses.replace(base.published, repository=""),
    diffusion=dataclasses.replace(base.diffusion, weight="min_snr"),
    distillation=Distillation(lora_rank=16),
    sources=Sources(init="configs/sd15.py"),
    optimizer=Optimizer(learning_rate=1e-4, warmup_steps=100),
    ema={"ema": 0.99},
    steps=2000,
)
