"""The text encoder of Stable Diffusion 1, CLIP ViT-L/14: a network that is imported, not trained here.

Paper: Radford et al. (2021); 123,060,480 parameters as published.
Data: none; 400 million pairs of images and texts (published weights).
Cost: none; `jaxdiff import` of a pipeline makes its run, text/ in the pipeline's.
Score: published; see its model card.
Run: jaxdiff import stable-diffusion-v1-5/stable-diffusion-v1-5 --workdir runs/sd15
"""

from jaxdiff.app.config import Data, Experiment, Text

config = Experiment(
    objective="text",
    data=Data(name=""),
    text=Text(layers=12, width=768, heads=12, feed=3072),
    ema={"ema": 0.9999},
    steps=1,
)
