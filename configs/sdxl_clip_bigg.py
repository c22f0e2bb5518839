"""The second text encoder of Stable Diffusion XL, OpenCLIP ViT-bigG/14, with its pooled vector: imported, not trained here.

Paper: Cherti et al. (2023), reproducible scaling laws; Podell et al. (2023), section 2.1; 694,659,840 parameters as published.
Data: none; LAION-2B (published weights).
Cost: none; `jaxdiff import` of a pipeline makes its run, text_2/ in the pipeline's.
Score: published; see its model card.
Run: jaxdiff import stabilityai/stable-diffusion-xl-base-1.0 --workdir runs/sdxl
"""

from jaxdiff.app.config import Data, Experiment, Text

config = Experiment(
    objective="text",
    data=Data(name=""),
    text=Text(layers=32, width=1280, heads=20, feed=5120, activation="gelu", skip=1, final_norm=False, projection=1280, pad=0),
    ema={"ema": 0.9999},
    steps=1,
)
