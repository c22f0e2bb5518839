"""CIFAR-10: the guided teacher of configs/cifar10_v.py in one network call, at any guidance scale from 1 to 5.

Paper: Meng et al. (2023), stage one (their w from 0 to 4).
Data: cifar10.
Cost: 1.7 teacher steps; about; 100,000 steps.
Score: its teacher's; the paper has no figure of stage one alone on CIFAR-10.
Run: jaxdiff train configs/cifar10_guided.py --workdir runs/cifar10_guided --with-stages
"""

from jaxdiff.app.config import Data, Diffusion, Distillation, Experiment, Model, Optimizer, Sampling, Sources

config = Experiment(
    objective="guided",
    sources=Sources(teacher="configs/cifar10_v.py"),
    data=Data(name="cifar10", image_shape=(32, 32, 3), flip=True, batch_size=128),
    model=Model(channels=128, multipliers=(1, 2, 2, 2), blocks=2, attention=(16,), num_classes=10, dropout=0.0, dtype="bfloat16"),
    diffusion=Diffusion(schedule="cosine", prediction="v", weight="v", label_dropout=0.0),
    distillation=Distillation(guidance=(1.0, 5.0)),
    optimizer=Optimizer(learning_rate=1e-4, schedule="cosine", warmup_steps=1000),
    ema={"ema": 0.9999},
    steps=100_000,
    checkpoint_every=5000,
    sampling=Sampling(sampler="ddim", steps=50, guidance=1.5, every=10_000),
)
