"""MNIST in the latents of configs/mnist_kl.py: the guided teacher of configs/mnist_latent.py in one call, at any scale from 1 to 4.

Paper: Meng et al. (2023), stage one; the scale is an input of the student's network.
Data: mnist.
Cost: 0.3 s a step, CPU; about, 2 cores, once what it starts from is trained.
Score: in table.md; of configs/mnist_ladder.py.
Run: jaxdiff data mnist && jaxdiff train configs/mnist_guided.py --workdir runs/mnist_guided --with-stages
"""

from jaxdiff.app.config import Data, Diffusion, Distillation, Evaluation, Experiment, Model, Optimizer, Sampling, Sources

config = Experiment(
    objective="guided",
    sources=Sources(autoencoder="configs/mnist_kl.py", teacher="configs/mnist_latent.py"),
    data=Data(name="mnist", image_shape=(32, 32, 1), batch_size=64),
    model=Model(channels=32, multipliers=(1, 2), blocks=2, attention=(4,), head_channels=32, num_classes=10),
    diffusion=Diffusion(schedule="cosine", prediction="v", weight="v", label_dropout=0.0),
    distillation=Distillation(guidance=(1.0, 4.0), clip=False),
    optimizer=Optimizer(learning_rate=1e-3, schedule="cosine", warmup_steps=50),
    ema={"ema": 0.99},
    steps=400,
    checkpoint_every=200,
    sampling=Sampling(sampler="ddim", steps=16, guidance=2.0, clip=False),
    evaluation=Evaluation(num=1000, epochs=3),
)
