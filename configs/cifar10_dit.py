"""CIFAR-10, class-conditional, by a diffusion transformer on pixels, DiT-S/2.

Paper: Peebles & Xie (2022), with v prediction (Salimans & Ho 2022), RMS norms of queries and keys, SwiGLU and rotary positions.
Data: cifar10.
Cost: not run; traced.
Score: not measured.
Run: jaxdiff train configs/cifar10_dit.py --workdir runs/cifar10_dit
"""

from jaxdiff.app.config import Data, Diffusion, Dit, Evaluation, Experiment, Model, Optimizer, Sampling

config = Experiment(
    data=Data(name="cifar10", image_shape=(32, 32, 3), flip=True, batch_size=128),
    model=Model(network="dit", channels=384, heads=6, num_classes=10, dtype="bfloat16"),
    dit=Dit(depth=12, patch=2, qk_norm=True, swiglu=True, rotary=True),
    diffusion=Diffusion(schedule="cosine", prediction="v", weight="v"),
    optimizer=Optimizer(learning_rate=2e-4, warmup_steps=5000),
    ema={"ema": 0.9999},
    steps=400_000,
    checkpoint_every=5000,
    sampling=Sampling(sampler="ddim", steps=50, guidance=1.5),
    evaluation=Evaluation(num=10_000),
)
