"""Digits of 8x8 pixels, class-conditional: the first run.

Paper: Ho & Salimans (2022), classifier-free guidance, with the v prediction of Salimans & Ho (2022).
Data: digits.
Cost: about 2 min on CPU; on two cores, of training alone.
Score: >= 95% by label; of 1,000 samples (DDIM, 50 steps, guidance 2).
Run: jaxdiff train configs/digits.py --workdir runs/digits
"""

from jaxdiff.app.config import Data, Diffusion, Evaluation, Experiment, Model, Optimizer, Sampling

config = Experiment(
    data=Data(name="digits", image_shape=(8, 8, 1), batch_size=128),
    model=Model(channels=32, multipliers=(1, 2), blocks=1, attention=(4,), head_channels=32, num_classes=10),
    diffusion=Diffusion(schedule="cosine", prediction="v", weight="v"),
    optimizer=Optimizer(learning_rate=2e-3, schedule="cosine", warmup_steps=50),
    ema={"ema": 0.995},
    steps=400,
    checkpoint_every=100,
    sampling=Sampling(sampler="ddim", steps=50, guidance=2.0, every=200),
    evaluation=Evaluation(num=1000),
)
