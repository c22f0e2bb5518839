"""A classifier of noised digits, which guides the samples of configs/digits.py.

Paper: Dhariwal & Nichol (2021), classifier guidance, section 4.
Data: digits.
Cost: about 1 min on CPU; on two cores, of training alone.
Score: >= 95% accuracy; of held-out digits at logsnr 2; guiding the unconditional model of configs/digits.py,
    over 90% of 1,000 samples named by their label (DDIM, 50 steps, guidance 0, classifier scale 5).
Run: jaxdiff train configs/digits_classifier.py --workdir runs/digits_classifier
"""

from jaxdiff.app.config import Data, Diffusion, Experiment, Model, Optimizer

config = Experiment(
    objective="classifier",
    data=Data(name="digits", image_shape=(8, 8, 1), batch_size=128),
    model=Model(channels=32, multipliers=(1, 2), blocks=1, attention=(), head_channels=32, num_classes=10, dropout=0.1),
    diffusion=Diffusion(schedule="cosine"),
    optimizer=Optimizer(learning_rate=2e-3, schedule="cosine", warmup_steps=50, weight_decay=0.05),
    ema={"ema": 0.995},
    steps=600,
    checkpoint_every=200,
)
