"""A data set where only the caption says what is in the image, and the config of a small run on it."""

import numpy as np
import tensorflow_datasets as tfds

from jaxdiff.app.config import Data, Diffusion, Experiment, Model, Optimizer, Sampling, Text
from jaxdiff.data.digits import png

CLASSES = ((40, "a dark place"), (220, "a bright place"))  # grey level of the images, and their captions
WORDS = Text(layers=1, width=8, heads=2, length=6, vocabulary=16, begin=1, end=2, pad=0)
TINY = Experiment(
    data=Data(name="told", image_shape=(8, 8, 1), batch_size=16),
    model=Model(
        channels=4, multipliers=(1,), blocks=1, attention=(), head_channels=4, transformer=1, context_channels=8, num_classes=0
    ),
    text=WORDS,
    diffusion=Diffusion(schedule="cosine", prediction="x0", weight="truncated_snr", label_dropout=0.2),
    optimizer=Optimizer(learning_rate=5e-3),
    ema={"ema": 0.9},
    steps=300,
    sampling=Sampling(steps=10, guidance=1.5, num=4, every=150, prompts=("a dark place", "a bright place")),
)


def write(folder):
    """Writes it below a data directory, whose name it returns: dark and bright images, without labels."""
    image = tfds.features.Image(shape=(8, 8, 1), dtype=np.uint8)
    features = tfds.features.FeaturesDict({"image": image, "caption": tfds.features.Text()})
    directory = folder / "told" / "1.0.0"
    directory.mkdir(parents=True)
    identity = tfds.core.DatasetIdentity(
        name="told", version=tfds.core.Version("1.0.0"), data_dir=str(directory), module_name=__name__
    )
    info = tfds.core.DatasetInfo(builder=identity, features=features)
    writer = tfds.core.SequentialWriter(info, max_examples_per_shard=100, file_format="array_record")
    for split in ("train", "test"):
        writer.initialize_splits([split])
        for number in range(40):
            grey, caption = CLASSES[number % 2]
            writer.add_examples({split: [{"image": png(np.full((8, 8), grey, np.uint8)), "caption": caption}]})
    writer.initialize_splits(["grey"])
    writer.add_examples({"grey": [{"image": png(np.full((8, 8), 130, np.uint8)), "caption": CLASSES[0][1]}] * 10})
    writer.close_all()
    return str(folder)
