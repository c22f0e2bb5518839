"""Digits of 8x8 pixels in one step, or a few, without a teacher: consistency training from random params.

Paper: Song & Dhariwal (2023), improved consistency training: no EMA for the target, doubling levels. Their draws, weight and
distance are for variance-exploding levels up to sigma 80; here levels are drawn evenly on the cosine schedule.
Data: digits.
Cost: about 2 min on CPU; on two cores, of training alone.
Score: 90.0% by label; in one step (README, the ladder).
Run: jaxdiff train configs/digits_consistency_training.py --workdir runs/digits_consistency_training
"""

from jaxdiff.app.config import Data, Diffusion, Distillation, Evaluation, Experiment, Model, Optimizer, Sampling

config = Experiment(
    objective="consistency",
    data=Data(name="digits", image_shape=(8, 8, 1), batch_size=64),
    model=Model(channels=32, multipliers=(1, 2), blocks=1, attention=(4,), head_channels=32, num_classes=10),
    diffusion=Diffusion(schedule="cosine", prediction="v", weight="v", label_dropout=0.0),
    distillation=Distillation(target="data", steps=32, curriculum="doubling", first_steps=4),
    optimizer=Optimizer(learning_rate=1e-3, warmup_steps=50),
    ema={"ema": 0.995},
    steps=600,
    checkpoint_every=200,
    sampling=Sampling(sampler="consistency", steps=1, guidance=1.0),
    evaluation=Evaluation(num=1000),
)
