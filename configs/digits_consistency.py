"""Digits of 8x8 pixels in one step, or a few: consistency distillation of configs/digits.py.

Paper: Song et al. (2023), consistency distillation; levels doubled as Song & Dhariwal (2023) do.
Data: digits.
Cost: about 2 min on CPU; on two cores, after two for the teacher.
Score: 97.5% by label; of 1,000 samples in one step (README, results).
Run: jaxdiff train configs/digits_consistency.py --workdir runs/digits_consistency --with-stages
"""

from jaxdiff.app.config import Data, Diffusion, Distillation, Evaluation, Experiment, Model, Optimizer, Sampling, Sources

config = Experiment(
    objective="consistency",
    sources=Sources(teacher="configs/digits.py"),
    data=Data(name="digits", image_shape=(8, 8, 1), batch_size=64),
    model=Model(channels=32, multipliers=(1, 2), blocks=1, attention=(4,), head_channels=32, num_classes=10),
    diffusion=Diffusion(schedule="cosine", prediction="v", weight="v", label_dropout=0.0),
    distillation=Distillation(steps=16, curriculum="doubling", first_steps=4),
    optimizer=Optimizer(learning_rate=1e-3, schedule="cosine", warmup_steps=20),
    ema={"ema": 0.99},
    steps=400,
    checkpoint_every=200,
    sampling=Sampling(sampler="consistency", steps=1, guidance=1.0),
    evaluation=Evaluation(num=1000),
)
