"""CIFAR-10, 32x32, class-conditional, as a teacher of progressive distillation: cosine schedule, v prediction.

Paper: Salimans & Ho (2022), section 4 and appendix A; there an unconditional UNet of ADM's kind, 256 channels wide, batch 128.
Data: cifar10.
Cost: 4.46 TFLOP a step; as configs/cifar10.py; 800,000 steps.
Score: FID 2.87 (paper); its unconditional model with this prediction and weight by DDIM, table 1; none of ours measured yet.
Run: jaxdiff data cifar10 && jaxdiff train configs/cifar10_v.py --workdir runs/cifar10_v
"""

from jaxdiff.app.config import Data, Diffusion, Experiment, Model, Optimizer, Sampling

config = Experiment(
    data=Data(name="cifar10", image_shape=(32, 32, 3), flip=True, batch_size=128),
    model=Model(channels=128, multipliers=(1, 2, 2, 2), blocks=2, attention=(16,), num_classes=10, dropout=0.1, dtype="bfloat16"),
    diffusion=Diffusion(schedule="cosine", prediction="v", weight="v"),
    optimizer=Optimizer(learning_rate=2e-4, warmup_steps=1000),
    ema={"ema": 0.9999},
    steps=800_000,
    checkpoint_every=5000,
    sampling=Sampling(sampler="ddim", steps=50, guidance=1.5, every=10_000),
)
