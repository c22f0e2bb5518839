"""ImageNet 64x64, class-conditional, at the size of ADM (365M parameters), laid out for the matrix units of TPUs.

Paper: Dhariwal & Nichol (2021), ADM at 64x64 (296M), with fewer channels at fine levels and more at coarse ones, as Hoogeboom et
al. (2023) advise: 256 at 64x64 and 32x32, 768 at 16x16, 1024 at 8x8, all multiples of 128; heads of 128; no attention at 32x32.
Adam's first moment is bfloat16 (Zhai et al. 2022). Prediction and loss: v (Salimans & Ho 2022).
Data: imagenet2012.
Cost: 559 GFLOP an image; `jaxdiff plan` of one v5e chip bounds a step of 32 images by 0.12 s. Not run.
Score: FID 2.07 (paper); its ADM; none of ours measured.
Run: pip install tensorflow && tfds build imagenet2012 --file_format array_record, then on every host
  jaxdiff train configs/imagenet64.py --workdir a/directory/that/all/hosts/share
"""

from jaxdiff.app.config import Data, Diffusion, Evaluation, Experiment, Model, Optimizer, Sampling

config = Experiment(
    data=Data(name="imagenet2012", image_shape=(64, 64, 3), held_out="validation", fit="crop", flip=True, batch_size=2048),
    model=Model(
        channels=256,
        multipliers=(1, 1, 3, 4),
        blocks=2,
        attention=(16, 8),
        head_channels=128,
        num_classes=1000,
        dropout=0.1,
        residual_resampling=True,
        dtype="bfloat16",
    ),
    diffusion=Diffusion(schedule="cosine", prediction="v", weight="v"),
    optimizer=Optimizer(learning_rate=3e-4, warmup_steps=5000, moments="bfloat16"),
    ema={"ema": 0.9999},
    steps=540_000,
    checkpoint_every=2000,
    sampling=Sampling(sampler="ddim", steps=50, guidance=1.5, num=64),
    evaluation=Evaluation(num=0, batch_size=16),
)
