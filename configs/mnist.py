"""MNIST, 28x28 padded to 32x32, class-conditional.

Paper: Ho & Salimans (2022), classifier-free guidance, with the v prediction of Salimans & Ho (2022).
Data: mnist.
Cost: 4.5 s a step, CPU; 2 cores; made for a TPU or GPU.
Score: not measured.
Run: jaxdiff data mnist && jaxdiff train configs/mnist.py --workdir runs/mnist
"""

from jaxdiff.app.config import Data, Diffusion, Evaluation, Experiment, Model, Optimizer, Sampling

config = Experiment(
    data=Data(name="mnist", image_shape=(32, 32, 1), batch_size=128),
    model=Model(channels=32, multipliers=(1, 2, 2), blocks=2, attention=(8,), head_channels=32, num_classes=10),
    diffusion=Diffusion(schedule="cosine", prediction="v", weight="v"),
    optimizer=Optimizer(learning_rate=1e-3, schedule="cosine", warmup_steps=500),
    ema={"ema": 0.999},
    steps=10_000,
    sampling=Sampling(sampler="ddim", steps=50, guidance=2.0, every=1000),
    evaluation=Evaluation(num=1000, epochs=2),
)
