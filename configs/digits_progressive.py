"""Digits of 8x8 pixels in 4 steps, or in 8, 2 or 1: the student of configs/digits_guided.py, halved four times.

Paper: Salimans & Ho (2022), progressive distillation; Meng et al. (2023), stage two.
Data: digits.
Cost: about 2 min on CPU; on two cores, after three for the teacher and the guided student.
Score: 100.0% by label; of 1,000 samples in 4 steps, and in one (README, results).
Run: jaxdiff train configs/digits_progressive.py --workdir runs/digits_progressive --with-stages
"""

from jaxdiff.app.config import Data, Diffusion, Distillation, Evaluation, Experiment, Model, Optimizer, Sampling, Sources

config = Experiment(
    objective="progressive",
    sources=Sources(teacher="configs/digits_guided.py"),
    data=Data(name="digits", image_shape=(8, 8, 1), batch_size=64),
    model=Model(channels=32, multipliers=(1, 2), blocks=1, attention=(4,), head_channels=32, num_classes=10),
    diffusion=Diffusion(schedule="cosine", prediction="v", weight="truncated_snr", label_dropout=0.0),
    distillation=Distillation(steps=16, guidance=(1.0, 4.0)),
    optimizer=Optimizer(learning_rate=1e-3, schedule="cosine", warmup_steps=20),
    ema={"ema": 0.99},
    steps=400,
    checkpoint_every=100,
    sampling=Sampling(sampler="ddim", steps=4, guidance=2.0),
    evaluation=Evaluation(num=1000),
)
