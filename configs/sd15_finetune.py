"""Stable Diffusion 1.5 trained on with images and captions of one's own, all params: on a TPU pod of eight chips.

Paper: Rombach et al. (2022); the weight min(SNR, 5) of Hang et al. (2023); EMA.
Data: photos; images with captions, by that name, as `jaxdiff data import` makes them.
Cost: not run; at most 217 images/s on eight v5e chips (`jaxdiff plan`).
Score: not measured.
Run: jaxdiff import stable-diffusion-v1-5/stable-diffusion-v1-5 --workdir runs/sd15
  Then: jaxdiff train configs/sd15_finetune.py --workdir runs/sd15_finetune
  Faster, with captions and images encoded once: jaxdiff latents runs/sd15 --out photos, and --data.latents photos
"""

import dataclasses
import pathlib

from jaxdiff.app.config import Data, Mesh, Optimizer, Sources, load

base = load(pathlib.Path("configs/sd15.py"))
config = dataclasses.replace(
    base,
    data=Data(name="photos", image_shape=(512, 512, 3), fit="crop", flip=True, batch_size=64),
    model=dataclasses.replace(base.model, remat="everything", dtype="bfloat16"),
    published=dataclasses.replace(base.published, repository=""),
    diffusion=dataclasses.replace(base.diffusion, weight="min_snr"),
    sources=Sources(init="configs/sd15.py"),
    optimizer=Optimizer(learning_rate=1e-5, warmup_steps=500, weight_decay=1e-2),
    steps=10_000,
    mesh=Mesh(fsdp=-1, data=1),
)
