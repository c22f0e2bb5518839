"""CIFAR-10 in 4 steps, or in 512 to 1: the student of configs/cifar10_guided.py, halved ten times.

Paper: Salimans & Ho (2022), who halve from 8,192 steps to 1, 50,000 updates a round and
100,000 for the last two, which here are as long as the others; Meng et al. (2023), stage two.
Data: cifar10.
Cost: 2.3 teacher steps; 500,000 steps.
Score: FID 3.00 (paper); its unconditional student in 4 steps, 2.57 in 8, 4.51 in 2, 9.12 in 1; none of ours measured yet.
Run: jaxdiff train configs/cifar10_progressive.py --workdir runs/cifar10_progressive --with-stages
"""

from jaxdiff.app.config import Data, Diffusion, Distillation, Experiment, Model, Optimizer, Sampling, Sources

config = Experiment(
    objective="progressive",
    sources=Sources(teacher="configs/cifar10_guided.py"),
    data=Data(name="cifar10", image_shape=(32, 32, 3), flip=True, batch_size=128),
    model=Model(channels=128, multipliers=(1, 2, 2, 2), blocks=2, attention=(16,), num_classes=10, dropout=0.0, dtype="bfloat16"),
    diffusion=Diffusion(schedule="cosine", prediction="v", weight="truncated_snr", label_dropout=0.0),
    distillation=Distillation(steps=1024, guidance=(1.0, 5.0)),
    optimizer=Optimizer(learning_rate=1e-4, schedule="cosine", warmup_steps=100),
    ema={"ema": 0.999},
    steps=500_000,
    checkpoint_every=5000,
    sampling=Sampling(sampler="ddim", steps=4, guidance=1.5),
)
