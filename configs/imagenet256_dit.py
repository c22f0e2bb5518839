"""Latent diffusion of ImageNet 256x256 by a transformer, DiT-XL/2, in the 32x32 latents of Stable Diffusion's autoencoder.

Paper: Peebles & Xie (2022), 675M parameters; v prediction of Salimans & Ho (2022) in place of noise and a learned variance.
Data: imagenet2012.
Cost: not run; compiled for TPU v5e: docs/pods.md. Encode the images once (`jaxdiff latents`) and add --data.latents.
Score: not measured.
Run: see configs/kl_f8.py for the autoencoder and configs/imagenet256_kl.py for the data, then
  jaxdiff train configs/imagenet256_dit.py --workdir runs/imagenet256_dit
"""

from jaxdiff.app.config import Data, Diffusion, Dit, Evaluation, Experiment, Model, Optimizer, Sampling, Sources

config = Experiment(
    sources=Sources(autoencoder="configs/kl_f8.py"),
    data=Data(name="imagenet2012", image_shape=(256, 256, 3), held_out="validation", fit="crop", flip=True, batch_size=256),
    model=Model(network="dit", channels=1152, heads=16, num_classes=1000, remat="blocks", dtype="bfloat16"),
    dit=Dit(depth=28, patch=2),
    diffusion=Diffusion(schedule="cosine", prediction="v", weight="v"),
    optimizer=Optimizer(learning_rate=1e-4, moments="bfloat16"),
    ema={"ema": 0.9999},
    ema_dtype="bfloat16",
    steps=400_000,
    checkpoint_every=5000,
    sampling=Sampling(sampler="ddim", steps=50, guidance=1.5, clip=False, num=64, batch_size=16),
    evaluation=Evaluation(num=0, batch_size=16),
)
