"""Writes data/published/pipelines.npz: pictures that diffusers' pipelines draw, from prompts to pixels, with small random networks.

python -m venv peer && peer/bin/pip install torch==2.14.1 diffusers==0.42.1 peft==0.21.2 transformers==5.24.0
peer/bin/python tests/make_pipelines.py

The networks are those of `make_published.py` with text encoders beside them, their weights drawn from names. Latents and the
noise of LCM are recorded with every other pixel of the pictures, float32 `[B, H / 2, W / 2, 3]` in [-1, 1].
"""

import pathlib
import tempfile

import diffusers
import numpy as np
import pipeline_cases as cases
import torch
from published_weights import RECORDED

BETAS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "steps_offset": 1}


def scheduler(name):
    """A scheduler of diffusers with the betas of Stable Diffusion, at trailing time steps, DDIM at leading ones."""
    settings = BETAS | {"timestep_spacing": "leading" if name == "ddim" else "trailing", "clip_sample": False}
    return getattr(diffusers, cases.SCHEDULERS[name]).from_config(settings)


def drawn(pipeline, case, latents):
    """The pictures of a case, and the noise that was drawn for them."""
    noises, draw = [], torch.randn

    def kept(*args, **kwargs):
        noises.append(draw(*args, **kwargs))
        return noises[-1]

    pipeline.scheduler = scheduler(case.scheduler)
    torch.randn = kept
    try:
        pictures = pipeline(
            list(cases.PROMPTS),
            negative_prompt=[case.negative] * len(cases.PROMPTS) if case.negative is not None else None,
            guidance_scale=case.guidance,
            num_inference_steps=case.steps,
            latents=torch.from_numpy(latents),
            generator=torch.Generator().manual_seed(0),
            output_type="np",
        ).images
    finally:
        torch.randn = draw
    return 2 * pictures - 1, [noise.numpy() for noise in noises]


def main():
    torch.set_num_threads(1)
    recorded = {}
    with tempfile.TemporaryDirectory() as folder:
        for family in ("sd", "xl"):
            path = cases.write(pathlib.Path(folder) / family, family)
            kind = diffusers.StableDiffusionPipeline if family == "sd" else diffusers.StableDiffusionXLPipeline
            options = {"safety_checker": None, "requires_safety_checker": False} if family == "sd" else {"add_watermarker": False}
            pipeline = kind.from_pretrained(path, low_cpu_mem_usage=False, **options)
            pipeline.set_progress_bar_config(disable=True)
            latents = np.random.RandomState(len(family)).standard_normal((len(cases.PROMPTS), 4, 8, 8)).astype(np.float32)
            recorded[f"{family} latents"] = latents
            for name, case in cases.CASES.items():
                if case.family != family:
                    continue
                if case.lora:
                    pipeline.load_lora_weights(cases.write_lora(path / "lora"), weight_name=cases.LORA, adapter_name="one")
                    pipeline.set_adapters(["one"], [case.lora])
                pictures, noises = drawn(pipeline, case, latents)
                if case.lora:
                    pipeline.unload_lora_weights()
                recorded[f"{name} pictures"] = pictures[:, ::2, ::2].astype(np.float32)
                if noises:
                    recorded[f"{name} noises"] = np.stack(noises)
                print(name, pictures.mean(), pictures.std(), len(noises))
    np.savez_compressed(RECORDED / "pipelines.npz", **recorded)


if __name__ == "__main__":
    main()
