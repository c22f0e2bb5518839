"""The KL-f8 autoencoder on ImageNet, 256x256: 32x32 latents of four channels, 48 times fewer numbers. 83.7M parameters.

Paper: Rombach et al. (2022), table 8 and section G: KL 1e-6, LPIPS, a patch discriminator of weight 0.5.
Data: imagenet2012.
Cost: not run; compiled for TPU v5e (benchmarks/latent_compile.py).
Score: not measured.
Run: pip install tensorflow && tfds build imagenet2012 --file_format array_record, weights of VGG16 and LPIPS as vgg16.npz
    (README, latent diffusion), then jaxdiff train configs/imagenet256_kl.py --workdir runs/imagenet256_kl
"""

from jaxdiff.app.config import Autoencoder, Data, Experiment, Model, Optimizer, Sources

config = Experiment(
    objective="autoencoder",
    sources=Sources(features="vgg16.npz"),
    data=Data(name="imagenet2012", image_shape=(256, 256, 3), held_out="validation", fit="crop", flip=True, batch_size=64),
    model=Model(
        channels=128, multipliers=(1, 2, 4, 4), blocks=2, head_channels=512, num_classes=1000, remat="everything", dtype="bfloat16"
    ),
    autoencoder=Autoencoder(latent_channels=4, kl=1e-6, perceptual=1.0, adversarial=0.5, adversarial_start=50_000),
    optimizer=Optimizer(learning_rate=1e-4, b1=0.5, b2=0.9, warmup_steps=1000),
    ema={"ema": 0.999},
    steps=250_000,
    checkpoint_every=5000,
)
