"""Latent diffusion of digits, class-conditional, in the 4x4 latents of configs/digits_kl.py.

Paper: Rombach et al. (2022); classifier-free guidance of Ho & Salimans (2022).
Data: digits.
Cost: about 1 min on CPU; on two cores, after four for the classifier and the autoencoder.
Score: 100.0% by label; of 1,000 samples (DDIM, 50 steps, guidance 2; README, results).
Run: jaxdiff train configs/digits_latent.py --workdir runs/digits_latent --with-stages
"""

from jaxdiff.app.config import Data, Diffusion, Evaluation, Experiment, Model, Optimizer, Sampling, Sources

config = Experiment(
    sources=Sources(autoencoder="configs/digits_kl.py"),
    data=Data(name="digits", image_shape=(8, 8, 1), batch_size=128),
    model=Model(channels=64, multipliers=(1,), blocks=2, attention=(4,), head_channels=32, num_classes=10),
    diffusion=Diffusion(schedule="cosine", prediction="v", weight="v"),
    optimizer=Optimizer(learning_rate=2e-3, schedule="cosine", warmup_steps=50),
    ema={"ema": 0.995},
    steps=500,
    checkpoint_every=250,
    sampling=Sampling(sampler="ddim", steps=50, guidance=2.0, clip=False),
    evaluation=Evaluation(num=1000),
)
