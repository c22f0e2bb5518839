"""Digits of 8x8 pixels: the guided teacher of configs/digits.py in one network call, at any guidance scale from 1 to 4.

Paper: Meng et al. (2023), stage one; the scale is an input of the student's network.
Data: digits.
Cost: about 1 min on CPU; on two cores, after two for the teacher.
Score: 99.7% by label; in 8 steps, at scale 1 (README, the ladder).
Run: jaxdiff train configs/digits_guided.py --workdir runs/digits_guided --with-stages
"""

from jaxdiff.app.config import Data, Diffusion, Distillation, Evaluation, Experiment, Model, Optimizer, Sampling, Sources

config = Experiment(
    objective="guided",
    sources=Sources(teacher="configs/digits.py"),
    data=Data(name="digits", image_shape=(8, 8, 1), batch_size=64),
    model=Model(channels=32, multipliers=(1, 2), blocks=1, attention=(4,), head_channels=32, num_classes=10),
    diffusion=Diffusion(schedule="cosine", prediction="v", weight="v", label_dropout=0.0),
    distillation=Distillation(guidance=(1.0, 4.0)),
    optimizer=Optimizer(learning_rate=1e-3, schedule="cosine", warmup_steps=20),
    ema={"ema": 0.99},
    steps=200,
    checkpoint_every=100,
    sampling=Sampling(sampler="ddim", steps=16, guidance=2.0),
    evaluation=Evaluation(num=1000),
)
