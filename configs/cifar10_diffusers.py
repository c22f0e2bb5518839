"""CIFAR-10, 32x32, unconditional, with the very network of DDPM: its run exports to diffusers.

Paper: Ho et al. (2020), appendix B: the UNet of 35.7M parameters as google/ddpm-cifar10-32 publishes it, told the time step of a
chain of 1,000 linear betas; dropout 0.1, learning rate 2e-4, batch 128, EMA 0.9999, 800,000 steps, noise prediction.
Data: cifar10.
Cost: 4.46 TFLOP a step; `jaxdiff plan` of one v5e chip bounds a step by 30 ms, the paper's length by 7 hours. Not trained here.
Score: FID 3.17 (paper); with 1,000 steps of DDPM; none of ours measured yet.
Run: jaxdiff data cifar10 && jaxdiff train configs/cifar10_diffusers.py --workdir runs/cifar10_diffusers
  Then: jaxdiff export runs/cifar10_diffusers --out cifar10, which DDIMPipeline.from_pretrained of diffusers opens.
"""

from jaxdiff.app.config import Betas, Data, Diffusion, Experiment, Model, Optimizer, Published, Sampling

config = Experiment(
    data=Data(name="cifar10", image_shape=(32, 32, 3), flip=True, batch_size=128),
    model=Model(
        channels=128,
        multipliers=(1, 2, 2, 2),
        blocks=2,
        heads=1,
        scale_shift=False,
        num_classes=0,
        dropout=0.1,
        dtype="bfloat16",
    ),
    published=Published(told="step", shift=1.0, groups=32, epsilon=1e-6, padding=(0, 1), attention_levels=(1,)),
    betas=Betas(kind="linear", first=0.0001, last=0.02, num=1000),
    diffusion=Diffusion(schedule="betas", prediction="noise", weight="noise"),
    optimizer=Optimizer(learning_rate=2e-4, warmup_steps=5000),
    ema={"ema": 0.9999},
    steps=800_000,
    checkpoint_every=5000,
    sampling=Sampling(sampler="ddim", steps=50, spacing="leading", guidance=1.0, every=10_000),
)
