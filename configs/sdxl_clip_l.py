"""The first text encoder of Stable Diffusion XL, CLIP ViT-L/14 without its last layer: imported, not trained here.

Paper: Radford et al. (2021); states of the last layer but one, Podell et al. (2023), section 2.1.
Data: none; 400 million pairs of images and texts (published weights).
Cost: none; `jaxdiff import` of a pipeline makes its run, text/ in the pipeline's.
Score: published; see its model card.
Run: jaxdiff import stabilityai/stable-diffusion-xl-base-1.0 --workdir runs/sdxl
"""

from jaxdiff.app.config import Data, Experiment, Text

config = Experiment(
    objective="text",
    data=Data(name=""),
    text=Text(layers=12, width=768, heads=12, feed=3072, skip=1, final_norm=False),
    ema={"ema": 0.9999},
    steps=1,
)
