"""Stable Diffusion 1.5 as it is published: a network that is imported, not trained here; what recipes begin with.

Paper: Rombach et al. (2022); 859,520,964 parameters of the UNet as published.
Data: none; LAION (published weights).
Cost: none; the import reads 4.3 GB in float32.
Score: published; see its model card.
Run: jaxdiff import stable-diffusion-v1-5/stable-diffusion-v1-5 --workdir runs/sd15
  Then: jaxdiff sample runs/sd15 --prompt "a photo of a cat"
"""

from jaxdiff.app.config import Betas, Data, Diffusion, Evaluation, Experiment, Model, Published, Sampling, Sources

config = Experiment(
    data=Data(name="", image_shape=(512, 512, 3), fit="crop"),
    model=Model(
        channels=320,
        multipliers=(1, 2, 4, 4),
        heads=8,
        transformer=1,
        context_channels=768,
        scale_shift=False,
        num_classes=0,
    ),
    published=Published(
        told="step",
        cosine_first=True,
        groups=32,
        transformer_epsilon=1e-6,
        padding=(1, 1),
        attention_levels=(0, 1, 2),
        repository="stable-diffusion-v1-5/stable-diffusion-v1-5",
    ),
    betas=Betas(kind="scaled_linear", first=0.00085, last=0.012),
    diffusion=Diffusion(schedule="betas", prediction="noise", weight="noise"),
    sources=Sources(autoencoder="configs/kl_f8.py", text="configs/clip_l.py"),
    ema={"ema": 0.9999},
    steps=1,
    sampling=Sampling(spacing="leading", steps_offset=1, guidance=7.5, clip=False, num=16, batch_size=4),
    evaluation=Evaluation(batch_size=4),
)
