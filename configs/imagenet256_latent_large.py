"""Latent diffusion of ImageNet 256x256 at the size of Stable Diffusion, in the 32x32 latents of configs/imagenet256_kl.py.

Paper: Rombach et al. (2022), the UNet of Stable Diffusion 1.x, transformer blocks and all, with classes for text; v prediction of
Salimans & Ho (2022).
Data: imagenet2012.
Cost: not run; compiled for TPUs (`jaxdiff plan`). Encode the images once (`jaxdiff latents`) and add --data.latents.
Score: not measured.
Run: see configs/imagenet256_kl.py for the data, then on every host
  jaxdiff train configs/imagenet256_latent_large.py --with-stages --workdir a/directory/that/all/hosts/share
"""

from jaxdiff.app.config import Data, Diffusion, Evaluation, Experiment, Model, Optimizer, Sampling, Sources

config = Experiment(
    sources=Sources(autoencoder="configs/imagenet256_kl.py"),
    data=Data(name="imagenet2012", image_shape=(256, 256, 3), held_out="validation", fit="crop", flip=True, batch_size=2048),
    model=Model(
        channels=320,
        multipliers=(1, 2, 4, 4),
        blocks=2,
        attention=(32, 16, 8),
        heads=8,
        transformer=1,
        scale_shift=False,
        num_classes=1000,
        remat="attention",
        dtype="bfloat16",
    ),
    diffusion=Diffusion(schedule="cosine", prediction="v", weight="v"),
    optimizer=Optimizer(learning_rate=1e-4, warmup_steps=5000),
    ema={"ema": 0.9999},
    steps=400_000,
    checkpoint_every=2000,
    sampling=Sampling(sampler="ddim", steps=50, guidance=1.5, clip=False, num=64, batch_size=16),
    evaluation=Evaluation(num=0, batch_size=16),
)
