"""A data set where only the caption says what is in the image, and the config of a small run on it."""

import numpy as np
import tensorflow_datasets as tfds

from jaxdiff.app.config import Data, Diffusion, Experiment, Model, Optimizer, Sampling, Text
from jaxdiff.data.digits import png

CLASSES = ((40, "a dark place"), (220, "a bright place"))  # grey level of the images, and their captions
IMAGE = tfds.features.Image(shape=(8, 8, 1), dtype=np.uint8)
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
    """Writes it below a data directory, whose name it returns: dark and bright images, without labels, and ten grey ones."""
    told = [{"image": grey(level), "caption": caption} for level, caption in CLASSES] * 20
    others = [{"image": grey(130), "caption": CLASSES[0][1]}] * 10
    features = {"image": IMAGE, "caption": tfds.features.Text()}
    return write_data_set(folder, "told", features, {"train": told, "test": told, "grey": others})


def grey(level):
    """The file of an image of one grey level."""
    return png(np.full((8, 8), level, np.uint8))


def write_data_set(folder, name, features, splits):
    """Writes the examples of splits as a data set of tfds below a data directory, whose name it returns."""
    directory = folder / name / "1.0.0"
    directory.mkdir(parents=True)
    identity = tfds.core.DatasetIdentity(
        name=name, version=tfds.core.Version("1.0.0"), data_dir=str(directory), module_name=__name__
    )
    info = tfds.core.DatasetInfo(builder=identity, features=tfds.features.FeaturesDict(features))
    writer = tfds.core.SequentialWriter(info, max_examples_per_shard=100, file_format="array_record")
    for split, examples in splits.items():
        writer.initialize_splits([split])
        writer.add_examples({split: examples})
    writer.close_all()
    return str(folder)
