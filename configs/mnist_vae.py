"""A variational autoencoder of MNIST cut to black and white, 28x28.

Paper: Kingma & Welling (2014), Bernoulli pixels; the convolutional design of Rombach et al. (2022).
Data: mnist.
Cost: 0.6 s a step, CPU; 2 cores; made for a TPU or GPU.
Score: not measured; bits per dimension of the black-and-white images: `jaxdiff evaluate runs/mnist_vae --likelihood`.
Run: jaxdiff data mnist && jaxdiff train configs/mnist_vae.py --workdir runs/mnist_vae
"""

from jaxdiff.app.config import Data, Experiment, Model, Optimizer, Vae

config = Experiment(
    objective="vae",
    data=Data(name="mnist", image_shape=(28, 28, 1), batch_size=64),
    model=Model(channels=16, multipliers=(1, 2, 2), blocks=1, head_channels=32, num_classes=10),
    vae=Vae(latent_channels=2, pixels="binary", free_bits=8.0),
    optimizer=Optimizer(learning_rate=2e-3, schedule="cosine", warmup_steps=100),
    ema={"ema": 0.999},
    steps=5000,
)
