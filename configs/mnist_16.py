"""MNIST from 8x8 to 16x16 pixels, class-conditional: a super-resolution stage of a cascade.

Paper: Ho et al. (2021), Cascaded Diffusion Models, with noise conditioning augmentation.
Data: mnist.
Cost: 0.5 s a step, CPU; about, 2 cores, after the stages below it.
Score: in evaluations/; label agreement and Frechet distance of 1,000 samples of the whole cascade.
Run: jaxdiff data mnist && jaxdiff train configs/mnist_16.py --workdir runs/mnist_16 --with-stages
"""

from jaxdiff.app.config import Cascade, Data, Diffusion, Evaluation, Experiment, Model, Optimizer, Sampling, Sources

config = Experiment(
    sources=Sources(base="configs/mnist_8.py"),
    cascade=Cascade(factor=2, max_augmentation=0.6, augmentation=0.2),
    data=Data(name="mnist", image_shape=(16, 16, 1), reduce=2, batch_size=64),
    model=Model(channels=32, multipliers=(1, 2), blocks=1, head_channels=32, num_classes=10),
    diffusion=Diffusion(schedule="cosine", prediction="v", weight="v"),
    optimizer=Optimizer(learning_rate=2e-3, schedule="cosine", warmup_steps=100),
    ema={"ema": 0.995},
    steps=600,
    sampling=Sampling(sampler="ddim", steps=25, guidance=1.0),
    evaluation=Evaluation(num=1000, epochs=2),
)
