"""Digits of 8x8 pixels by maximum likelihood: the network of configs/digits.py, trained on the variational bound.

Paper: Kingma et al. (2021), variational diffusion models, with their first, fixed schedule.
Data: digits.
Cost: about 4 min on CPU; on two cores, of training alone.
Score: 2.01 bits/dim; +- 0.02, of held-out digits by the continuous bound, 2.08 by 256 steps, 2.20 by the flow
    (`jaxdiff evaluate runs/digits_elbo --likelihood --steps 256`); trained on cosine levels with the weight `noise`, 3.57.
Run: jaxdiff train configs/digits_elbo.py --workdir runs/digits_elbo
"""

from jaxdiff.app.config import Data, Diffusion, Evaluation, Experiment, Model, Optimizer, Sampling

config = Experiment(
    data=Data(name="digits", image_shape=(8, 8, 1), batch_size=128),
    model=Model(
        channels=32,
        multipliers=(1, 2),
        blocks=1,
        attention=(4,),
        head_channels=32,
        num_classes=10,
        dropout=0.1,
        fourier=(3, 4, 5, 6),
    ),
    diffusion=Diffusion(schedule="linear_logsnr", prediction="v", weight="elbo"),
    optimizer=Optimizer(learning_rate=2e-3, schedule="cosine", warmup_steps=50),
    ema={"ema": 0.995},
    steps=800,
    checkpoint_every=200,
    sampling=Sampling(sampler="ddim", steps=50, guidance=2.0),
    evaluation=Evaluation(num=1000),
)
