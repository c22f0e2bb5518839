"""CIFAR-10 in one step, or two: consistency distillation of configs/cifar10_edm.py by Heun on 18 levels.

Paper: Song et al. (2023), table 3: Heun, N = 18, no EMA for the target, learning rate 4e-4, batch 512, 800,000
steps. Their distance is LPIPS, here pseudo-Huber (Song & Dhariwal 2023), and their optimizer RAdam, here AdamW.
Data: cifar10.
Cost: 3 teacher steps; about.
Score: FID 3.55 (paper); its unconditional student in one step, 2.93 in two; none of ours measured yet.
Run: jaxdiff train configs/cifar10_consistency.py --workdir runs/cifar10_consistency --with-stages
"""

from jaxdiff.app.config import Data, Diffusion, Distillation, Experiment, Model, Optimizer, Sampling, Sources

config = Experiment(
    objective="consistency",
    sources=Sources(teacher="configs/cifar10_edm.py"),
    data=Data(name="cifar10", image_shape=(32, 32, 3), flip=True, batch_size=512),
    model=Model(channels=128, multipliers=(1, 2, 2, 2), blocks=2, attention=(16,), num_classes=10, dropout=0.0, dtype="bfloat16"),
    diffusion=Diffusion(schedule="karras", prediction="edm", weight="x0", label_dropout=0.0),
    distillation=Distillation(steps=18, spacing="karras", solver="heun_edm", distance="pseudo_huber"),
    optimizer=Optimizer(learning_rate=4e-4),
    ema={"ema": 0.9999},
    steps=800_000,
    checkpoint_every=5000,
    sampling=Sampling(sampler="consistency", steps=1, spacing="karras", guidance=1.0, every=10_000),
)
