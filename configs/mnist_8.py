"""MNIST at 8x8 pixels, class-conditional: the base of a cascade.

Paper: Ho et al. (2021), Cascaded Diffusion Models.
Data: mnist.
Cost: 0.3 s a step, CPU; about, 2 cores.
Score: in evaluations/; label agreement and Frechet distance of 1,000 samples.
Run: jaxdiff data mnist && jaxdiff train configs/mnist_8.py --workdir runs/mnist_8
"""

from jaxdiff.app.config import Data, Diffusion, Evaluation, Experiment, Model, Optimizer, Sampling

config = Experiment(
    data=Data(name="mnist", image_shape=(8, 8, 1), reduce=4, batch_size=128),
    model=Model(channels=32, multipliers=(1, 2), blocks=2, attention=(4,), head_channels=32, num_classes=10),
    diffusion=Diffusion(schedule="cosine", prediction="v", weight="v"),
    optimizer=Optimizer(learning_rate=2e-3, schedule="cosine", warmup_steps=100),
    ema={"ema": 0.995},
    steps=800,
    sampling=Sampling(sampler="ddim", steps=50, guidance=2.0),
    evaluation=Evaluation(num=1000, epochs=2),
)
