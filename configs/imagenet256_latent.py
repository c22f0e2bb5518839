"""Latent diffusion of ImageNet 256x256, class-conditional, in the 32x32 latents of configs/imagenet256_kl.py.

Paper: Rombach et al. (2022), the class-conditional model; v prediction of Salimans & Ho (2022).
Data: imagenet2012.
Cost: not run; compiled for TPU v5e (`jaxdiff plan`).
Score: not measured.
Run: see configs/imagenet256_kl.py for the data, then jaxdiff train configs/imagenet256_latent.py --with-stages
"""

from jaxdiff.app.config import Data, Diffusion, Evaluation, Experiment, Mesh, Model, Optimizer, Sampling, Sources

config = Experiment(
    sources=Sources(autoencoder="configs/imagenet256_kl.py"),
    data=Data(name="imagenet2012", image_shape=(256, 256, 3), held_out="validation", fit="crop", flip=True, batch_size=256),
    model=Model(
        channels=256,
        multipliers=(1, 2, 4),
        blocks=2,
        attention=(16, 8),
        num_classes=1000,
        residual_resampling=True,
        remat="everything",
        dtype="bfloat16",
    ),
    diffusion=Diffusion(schedule="cosine", prediction="v", weight="v"),
    optimizer=Optimizer(learning_rate=1e-4, warmup_steps=5000),
    ema={"ema": 0.9999},
    steps=400_000,
    checkpoint_every=5000,
    mesh=Mesh(fsdp=-1, data=1),
    sampling=Sampling(sampler="ddim", steps=50, guidance=1.5, clip=False, num=64, batch_size=16),
    evaluation=Evaluation(num=0, batch_size=16),
)
