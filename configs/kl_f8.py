"""The autoencoder of Stable Diffusion, eight times smaller in height and width: a network that is imported, not trained here.

Paper: Rombach et al. (2022); 83,653,863 parameters as published. configs/imagenet256_kl.py trains one.
Data: none; LAION (published weights).
Cost: none; `jaxdiff import` of a pipeline makes its run, autoencoder/ in the pipeline's.
Score: published; see its model card.
Run: jaxdiff import stable-diffusion-v1-5/stable-diffusion-v1-5 --workdir runs/sd15
"""

from jaxdiff.app.config import Data, Experiment, Model, Published

config = Experiment(
    objective="autoencoder",
    data=Data(name="", image_shape=(512, 512, 3), fit="crop"),
    model=Model(channels=128, multipliers=(1, 2, 4, 4), blocks=2, heads=1, num_classes=0),
    published=Published(groups=32, epsilon=1e-6),
    ema={"ema": 0.9999},
    steps=1,
)
