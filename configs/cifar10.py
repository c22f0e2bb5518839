"""CIFAR-10, 32x32, class-conditional, with the network of DDPM.

Paper: Ho et al. (2020), appendix B: the UNet of 36M parameters (38M here: the condition scales and shifts), dropout 0.1,
learning rate 2e-4, batch 128, EMA 0.9999, 800,000 steps; linear betas, noise prediction.
Data: cifar10.
Cost: 4.46 TFLOP a step; by `jaxdiff plan`: at the peak of a TPU v5e chip the paper's length takes 5 hours.
Score: FID 3.17 (paper); its unconditional model with 1,000 steps of DDPM; none of ours measured yet.
Run: jaxdiff data cifar10 && jaxdiff train configs/cifar10.py --workdir runs/cifar10
"""

from jaxdiff.app.config import Data, Diffusion, Experiment, Model, Optimizer, Sampling

config = Experiment(
    data=Data(name="cifar10", image_shape=(32, 32, 3), flip=True, batch_size=128),
    model=Model(channels=128, multipliers=(1, 2, 2, 2), blocks=2, attention=(16,), num_classes=10, dropout=0.1, dtype="bfloat16"),
    diffusion=Diffusion(schedule="linear", prediction="noise", weight="noise"),
    optimizer=Optimizer(learning_rate=2e-4, warmup_steps=5000),
    ema={"ema": 0.9999},
    steps=800_000,
    checkpoint_every=5000,
    sampling=Sampling(sampler="ddim", steps=50, guidance=1.5, every=10_000),
)
