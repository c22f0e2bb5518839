"""MNIST from 16x16 to 32x32 pixels, class-conditional: a super-resolution stage of a cascade.

Paper: Ho et al. (2021), Cascaded Diffusion Models, with noise conditioning augmentation.
Data: mnist.
Cost: 0.8 s a step, CPU; about, 2 cores, after the stages below it.
Score: 94.3% by label; of 300 samples of the whole cascade (600, 400 and 400 steps).
Run: jaxdiff data mnist && jaxdiff train configs/mnist_32.py --workdir runs/mnist_32 --with-stages
"""

from jaxdiff.app.config import Cascade, Data, Diffusion, Evaluation, Experiment, Model, Optimizer, Sampling, Sources

config = Experiment(
    sources=Sources(base="configs/mnist_16.py"),
    cascade=Cascade(factor=2, max_augmentation=0.6, augmentation=0.2),
    data=Data(name="mnist", image_shape=(32, 32, 1), batch_size=64),
    model=Model(channels=16, multipliers=(1, 2, 2), blocks=1, head_channels=32, num_classes=10),
    diffusion=Diffusion(schedule="cosine", prediction="v", weight="v"),
    optimizer=Optimizer(learning_rate=2e-3, schedule="cosine", warmup_steps=100),
    ema={"ema": 0.995},
    steps=600,
    sampling=Sampling(sampler="ddim", steps=25, guidance=1.0),
    evaluation=Evaluation(num=1000, epochs=2),
)
