"""MNIST in latents in one step, or a few, without a teacher: consistency training from random params.

Paper: Song & Dhariwal (2023), improved consistency training; draws and weights are uniform on the cosine schedule.
Data: mnist.
Cost: 0.3 s a step, CPU; about, 2 cores, once what it starts from is trained.
Score: in table.md; of configs/mnist_ladder.py.
Run: jaxdiff data mnist && jaxdiff train configs/mnist_consistency_training.py --with-stages
"""

from jaxdiff.app.config import Data, Diffusion, Distillation, Evaluation, Experiment, Model, Optimizer, Sampling, Sources

config = Experiment(
    objective="consistency",
    sources=Sources(autoencoder="configs/mnist_kl.py"),
    data=Data(name="mnist", image_shape=(32, 32, 1), batch_size=64),
    model=Model(channels=32, multipliers=(1, 2), blocks=2, attention=(4,), head_channels=32, num_classes=10),
    diffusion=Diffusion(schedule="cosine", prediction="v", weight="v", label_dropout=0.0),
    distillation=Distillation(target="data", steps=32, clip=False, curriculum="doubling", first_steps=4),
    optimizer=Optimizer(learning_rate=1e-3, warmup_steps=50),
    ema={"ema": 0.995},
    steps=1000,
    checkpoint_every=200,
    sampling=Sampling(sampler="consistency", steps=1, guidance=1.0, clip=False),
    evaluation=Evaluation(num=1000, epochs=3),
)
