"""Two digits side by side as a caption says it in words: text to image, all of it trained from nothing.

Paper: Rombach et al. (2022), section 3.3, cross-attention to a text encoder trained with the UNet; Ho & Salimans (2022), guidance.
Data: digits_text.
Cost: about 5 min on CPU; on two cores, of training alone.
Score: 99.9% by label; both digits right, of 1,000 samples (DDIM, 50 steps, guidance 2); of pairs never seen together 100%, by
    jaxdiff evaluate runs/digits_text --split unseen.
Run: jaxdiff train configs/digits_text.py --workdir runs/digits_text
"""

from jaxdiff.app.config import Data, Diffusion, Evaluation, Experiment, Model, Optimizer, Sampling, Text

PROMPTS = (  # a column each
    *("a three left of an eight", "an eight right of a three", "a three and an eight", "an eight left of a three", "two sevens"),
    *("a two left of a nine", "a zero right of a four", "an empty place and a one", "a one on the left", "a six on the right"),
)

config = Experiment(
    data=Data(name="digits_text", image_shape=(8, 16, 1), batch_size=64),
    model=Model(
        channels=32,
        multipliers=(1, 2),
        blocks=1,
        attention=(4,),
        head_channels=32,
        transformer=1,
        context_channels=64,
        num_classes=0,
    ),
    text=Text(layers=2, width=64, heads=2, length=12, vocabulary=48, activation="gelu", begin=1, end=2, pad=0),
    diffusion=Diffusion(schedule="cosine", prediction="v", weight="v"),
    optimizer=Optimizer(learning_rate=2e-3, schedule="cosine", warmup_steps=50),
    ema={"ema": 0.995},
    steps=1500,
    sampling=Sampling(sampler="ddim", steps=50, guidance=2.0, every=500, prompts=PROMPTS),
    evaluation=Evaluation(num=1000, epochs=6),
)
