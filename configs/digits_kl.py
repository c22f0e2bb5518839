"""An autoencoder of digits of 8x8 pixels, with 4x4 latents of two channels.

Paper: Rombach et al. (2022), a KL-regularised autoencoder with a perceptual distance and a patch discriminator; the
perceptual features are those of configs/digits_classifier.py.
Data: digits.
Cost: about 2 min on CPU; on two cores, after one for the classifier.
Score: in the run; `reconstruction.json`: PSNR of held-out digits.
Run: jaxdiff train configs/digits_kl.py --workdir runs/digits_kl --with-stages
"""

from jaxdiff.app.config import Autoencoder, Data, Experiment, Model, Optimizer, Sources

config = Experiment(
    objective="autoencoder",
    sources=Sources(features="configs/digits_classifier.py"),
    data=Data(name="digits", image_shape=(8, 8, 1), batch_size=128),
    model=Model(channels=32, multipliers=(1, 2), blocks=1, head_channels=32, num_classes=10),
    autoencoder=Autoencoder(
        latent_channels=2,
        kl=1e-5,
        distance="l2",
        perceptual=0.05,
        adversarial=0.1,
        adversarial_start=250,
        discriminator_channels=16,
        discriminator_layers=1,
    ),
    optimizer=Optimizer(learning_rate=2e-3, schedule="cosine", warmup_steps=50),
    ema={"ema": 0.995},
    steps=500,
    checkpoint_every=250,
)
