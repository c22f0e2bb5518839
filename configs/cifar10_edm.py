"""CIFAR-10, 32x32, class-conditional, as a teacher of consistency models: EDM's preconditioning and levels.

Paper: Karras et al. (2022), table 1; there a DDPM++ UNet of 56M parameters, batch 512, 200 million images.
Data: cifar10.
Cost: 35 GFLOP an image; 4.46 TFLOP a step of batch 128, as configs/cifar10.py; 400,000 steps of batch 512.
Score: FID 1.79 (paper); its conditional model in 18 steps of Heun; none of ours measured yet.
Run: jaxdiff data cifar10 && jaxdiff train configs/cifar10_edm.py --workdir runs/cifar10_edm
"""

from jaxdiff.app.config import Data, Diffusion, Experiment, Model, Optimizer, Sampling

config = Experiment(
    data=Data(name="cifar10", image_shape=(32, 32, 3), flip=True, batch_size=512),
    model=Model(channels=128, multipliers=(1, 2, 2, 2), blocks=2, attention=(16,), num_classes=10, dropout=0.13, dtype="bfloat16"),
    diffusion=Diffusion(schedule="lognormal", sampling_schedule="karras", prediction="edm", weight="edm"),
    optimizer=Optimizer(learning_rate=1e-3, warmup_steps=10_000),
    ema={"ema": 0.9998},
    steps=400_000,
    checkpoint_every=5000,
    sampling=Sampling(sampler="heun_edm", steps=18, spacing="karras", guidance=1.0, every=10_000),
)
