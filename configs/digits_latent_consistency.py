"""Digits in a few steps in the latents of configs/digits_kl.py, at any guidance scale from 1 to 2: a latent consistency model.

Paper: Luo et al. (2023): guided DDIM teacher, several levels ahead, the scale an input of the network.
Data: digits.
Cost: about 2 min on CPU; on two cores, after six for the classifier, the autoencoder and the teacher.
Score: 100.0% by label; of 1,000 samples in 4 steps, guidance 2 (README, results).
Run: jaxdiff train configs/digits_latent_consistency.py --workdir runs/digits_latent_consistency --with-stages
"""

from jaxdiff.app.config import Data, Diffusion, Distillation, Evaluation, Experiment, Model, Optimizer, Sampling, Sources

config = Experiment(
    objective="consistency",
    sources=Sources(autoencoder="configs/digits_kl.py", teacher="configs/digits_latent.py"),
    data=Data(name="digits", image_shape=(8, 8, 1), batch_size=64),
    model=Model(channels=64, multipliers=(1,), blocks=2, attention=(4,), head_channels=32, num_classes=10),
    diffusion=Diffusion(schedule="cosine", prediction="v", weight="v", label_dropout=0.0),
    distillation=Distillation(steps=32, guidance=(1.0, 2.0), skip=2, clip=False),
    optimizer=Optimizer(learning_rate=1e-3, schedule="cosine", warmup_steps=20),
    ema={"ema": 0.99},
    steps=300,
    checkpoint_every=150,
    sampling=Sampling(sampler="consistency", steps=4, guidance=2.0, clip=False),
    evaluation=Evaluation(num=1000),
)
