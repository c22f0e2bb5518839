"""Latent diffusion of MNIST, class-conditional, in the 8x8 latents of configs/mnist_kl.py.

Paper: Rombach et al. (2022); classifier-free guidance of Ho & Salimans (2022).
Data: mnist.
Cost: 0.3 s a step, CPU; about, 2 cores, once the autoencoder is trained.
Score: 99.9% by label; of 1,000 samples (guidance 2), by a classifier of 99.3%; Frechet distance 11.9 in its features,
    held-out images 2.6.
Run: jaxdiff data mnist && jaxdiff train configs/mnist_latent.py --workdir runs/mnist_latent --with-stages
"""

from jaxdiff.app.config import Data, Diffusion, Evaluation, Experiment, Model, Optimizer, Sampling, Sources

config = Experiment(
    sources=Sources(autoencoder="configs/mnist_kl.py"),
    data=Data(name="mnist", image_shape=(32, 32, 1), batch_size=128),
    model=Model(channels=32, multipliers=(1, 2), blocks=2, attention=(4,), head_channels=32, num_classes=10),
    diffusion=Diffusion(schedule="cosine", prediction="v", weight="v"),
    optimizer=Optimizer(learning_rate=1e-3, schedule="cosine", warmup_steps=100),
    ema={"ema": 0.998},
    steps=1000,
    sampling=Sampling(sampler="ddim", steps=50, guidance=2.0, clip=False),
    evaluation=Evaluation(num=1000, epochs=3),
)
