"""An autoencoder of MNIST, 28x28 padded to 32x32, with 8x8 latents of one channel: 16 times fewer numbers.

Paper: Rombach et al. (2022), the KL-regularised autoencoder KL-f4, against a patch discriminator (Esser et al. 2021).
Data: mnist.
Cost: 0.7 s a step, CPU; about, 2 cores.
Score: PSNR 29.9 dB; mean of 10,000 held-out images (in a run whose discriminator began at step 1,000).
Run: jaxdiff data mnist && jaxdiff train configs/mnist_kl.py --workdir runs/mnist_kl
"""

from jaxdiff.app.config import Autoencoder, Data, Experiment, Model, Optimizer

config = Experiment(
    objective="autoencoder",
    data=Data(name="mnist", image_shape=(32, 32, 1), batch_size=64),
    model=Model(channels=16, multipliers=(1, 2, 4), blocks=1, head_channels=32, num_classes=10),
    autoencoder=Autoencoder(
        latent_channels=1,
        kl=1e-5,
        distance="l2",
        adversarial=0.1,
        adversarial_start=500,
        discriminator_channels=16,
        discriminator_layers=2,
    ),
    optimizer=Optimizer(learning_rate=2e-3, schedule="cosine", warmup_steps=100),
    ema={"ema": 0.998},
    steps=1100,
)
