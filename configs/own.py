"""Images of your own, 64x64, unconditional.

Paper: Salimans & Ho (2022), the v prediction; the network is that of Dhariwal & Nichol (2021), smaller, with attention at the
coarsest level alone, so that it takes any height and width that 4 divides.
Data: photos; your own, as jaxdiff data import names them.
Cost: 106 GFLOP an image; `jaxdiff plan` of one v5e chip bounds a step of 64 images by 60 ms. Not run at this size.
Score: none; it depends on the images: watch the pictures in RUN/samples.
Run: jaxdiff data import my/pictures --name photos --size 64 && jaxdiff train configs/own.py --workdir runs/photos
  Other sizes: --data.image-shape 96 128 3. By class: --model.num-classes 10 --sampling.guidance 2. Few images: fewer --steps.
"""

from jaxdiff.app.config import Data, Diffusion, Experiment, Model, Optimizer, Sampling

config = Experiment(
    data=Data(name="photos", image_shape=(64, 64, 3), fit="crop", flip=True, batch_size=64),
    model=Model(channels=96, multipliers=(1, 2, 4), blocks=2, num_classes=0, dropout=0.1, dtype="bfloat16"),
    diffusion=Diffusion(schedule="cosine", prediction="v", weight="v"),
    optimizer=Optimizer(learning_rate=2e-4, warmup_steps=1000),
    ema={"ema": 0.999},
    steps=100_000,
    checkpoint_every=2000,
    sampling=Sampling(sampler="ddim", steps=50, guidance=1.0, num=16, every=2000),
)
