"""Writes data/learned_variance.npz: steps of diffusers' DDPMScheduler with learned variances, of outputs drawn at random.

python -m venv peer && peer/bin/pip install torch diffusers==0.42.1 && peer/bin/python tests/make_learned_variance.py
"""

import pathlib

import numpy as np
import torch
from diffusers import DDPMScheduler

RECORDED = pathlib.Path(__file__).parent / "data" / "learned_variance.npz"
SHAPE, STEPS = (2, 3, 4, 4), 10


def record(spacing):
    scheduler = DDPMScheduler(1000, variance_type="learned_range", clip_sample=False, timestep_spacing=spacing)
    scheduler.set_timesteps(STEPS)
    drawn = torch.Generator().manual_seed(0)
    x = torch.randn(SHAPE, generator=drawn)
    states, outputs, noises = [x], [], []
    for number, time in enumerate(scheduler.timesteps):
        predicted = torch.randn(SHAPE, generator=drawn)
        v = 2 * torch.rand(SHAPE, generator=drawn) - 1
        outputs.append(torch.cat([predicted, v], dim=1))
        noises.append(torch.randn(SHAPE, generator=torch.Generator().manual_seed(number + 1)))
        x = scheduler.step(outputs[-1], time, x, generator=torch.Generator().manual_seed(number + 1)).prev_sample
        states.append(x)
    stacked = {name: torch.stack(each).numpy() for name, each in (("x", states), ("o", outputs), ("n", noises))}
    chain = {f"{spacing}_{name}": np.moveaxis(each, 2, -1) for name, each in stacked.items()}
    return chain | {"betas": scheduler.betas.numpy().astype(np.float64)}


if __name__ == "__main__":
    np.savez_compressed(RECORDED, **record("leading"), **{k: v for k, v in record("trailing").items() if k != "betas"})
