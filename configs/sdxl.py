"""Stable Diffusion XL as it is published: a network that is imported, not trained here; what recipes begin with.

Paper: Podell et al. (2023); 2,567,463,684 parameters of the UNet as published.
Data: none; images of Stability AI's (published weights).
Cost: none; the import reads 13.9 GB in float32.
Score: published; see its model card.
Run: jaxdiff import stabilityai/stable-diffusion-xl-base-1.0 --workdir runs/sdxl
  Then: jaxdiff sample runs/sdxl --prompt "a photo of a cat"
"""

from jaxdiff.app.config import Betas, Data, Diffusion, Evaluation, Experiment, Model, Published, Sampling, Sources

config = Experiment(
    data=Data(name="", image_shape=(1024, 1024, 3), fit="crop"),
    model=Model(channels=320, multipliers=(1, 2, 4), context_channels=2048, scale_shift=False, num_classes=0),
    published=Published(
        told="step",
        cosine_first=True,
        groups=32,
        transformer_epsilon=1e-6,
        padding=(1, 1),
        attention_levels=(1, 2),
        transformer_depths=(1, 2, 10),
        pooled_channels=1280,
        zero_null=True,
        repository="stabilityai/stable-diffusion-xl-base-1.0",
    ),
    betas=Betas(kind="scaled_linear", first=0.00085, last=0.012),
    diffusion=Diffusion(schedule="betas", prediction="noise", weight="noise"),
    sources=Sources(autoencoder="configs/kl_f8.py", text="configs/sdxl_clip_l.py", text_2="configs/sdxl_clip_bigg.py"),
    ema={"ema": 0.9999},
    steps=1,
    sampling=Sampling(spacing="leading", steps_offset=1, guidance=5.0, clip=False, num=16, batch_size=4),
    evaluation=Evaluation(batch_size=4),
)
