"""Latent diffusion of CIFAR-10, class-conditional, in the 16x16 latents of configs/cifar10_kl.py.

Paper: Rombach et al. (2022); classifier-free guidance of Ho & Salimans (2022).
Data: cifar10.
Cost: for a TPU or GPU.
Score: not measured.
Run: jaxdiff data cifar10 && jaxdiff train configs/cifar10_latent.py --workdir runs/cifar10_latent --with-stages
"""

from jaxdiff.app.config import Data, Diffusion, Evaluation, Experiment, Model, Optimizer, Sampling, Sources

config = Experiment(
    sources=Sources(autoencoder="configs/cifar10_kl.py"),
    data=Data(name="cifar10", image_shape=(32, 32, 3), flip=True, batch_size=128),
    model=Model(channels=128, multipliers=(1, 2, 2), blocks=2, attention=(8,), num_classes=10, dropout=0.1, dtype="bfloat16"),
    diffusion=Diffusion(schedule="cosine", prediction="v", weight="v"),
    optimizer=Optimizer(learning_rate=2e-4, warmup_steps=1000),
    ema={"ema": 0.9999},
    steps=200_000,
    checkpoint_every=5000,
    sampling=Sampling(sampler="ddim", steps=50, guidance=1.5, clip=False),
    evaluation=Evaluation(num=10_000, epochs=20),
)
