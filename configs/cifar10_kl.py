"""An autoencoder of CIFAR-10 with 16x16 latents of four channels (f2).

Paper: Rombach et al. (2022), a KL-regularised autoencoder against a patch discriminator (Esser et al. 2021).
Data: cifar10.
Cost: for a TPU or GPU.
Score: not measured; `reconstruction.json` holds the PSNR of held-out images.
Run: jaxdiff data cifar10 && jaxdiff train configs/cifar10_kl.py --workdir runs/cifar10_kl
"""

from jaxdiff.app.config import Autoencoder, Data, Experiment, Model, Optimizer

config = Experiment(
    objective="autoencoder",
    data=Data(name="cifar10", image_shape=(32, 32, 3), flip=True, batch_size=128),
    model=Model(channels=128, multipliers=(1, 2), blocks=2, num_classes=10, dtype="bfloat16"),
    autoencoder=Autoencoder(
        latent_channels=4, kl=1e-6, adversarial=0.5, adversarial_start=20_000, discriminator_channels=64, discriminator_layers=2
    ),
    optimizer=Optimizer(learning_rate=1e-4, b1=0.5, b2=0.9, warmup_steps=1000),
    ema={"ema": 0.999},
    steps=50_000,
    checkpoint_every=5000,
)
