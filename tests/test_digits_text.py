"""Canvases of two digits with captions: what they show and say, what is held out, and the share of them that is right."""

import collections
import itertools

import jax
import numpy as np
import pytest
import tensorflow_datasets as tfds
from sklearn import datasets

from jaxdiff import data, evaluate
from jaxdiff.app import config
from jaxdiff.data import digits_text
from jaxdiff.data.labels import classes_of_places
from jaxdiff.io.errors import DataError

CANVASES = config.Data(name="digits_text", image_shape=(8, 16, 1))
SPLITS = ("train", "test", "unseen")


@pytest.fixture(scope="module")
def canvases(tfds_dir):
    """Split -> images `[N, 8, 16]`, classes of their places `[N, 2]` and captions."""
    made = {}
    for split in SPLITS:
        images = data.load_images(CANVASES, split, tfds_dir)
        pixels, label = images.fetch(np.arange(images.num_examples))
        source = tfds.builder("digits_text", data_dir=tfds_dir).as_data_source(
            split, decoders={"image": tfds.decode.SkipDecoding()}
        )
        made[split] = pixels[..., 0], classes_of_places(label, 11, 2), [example["caption"].decode() for example in source]
    return made


@pytest.mark.parametrize("split", SPLITS)
def test_halves_are_digits_of_scikit_learn_and_empty_places(canvases, split):
    """Those of the training split come from other images than those of the held-out ones."""
    bundled = datasets.load_digits()
    pixels = np.round(bundled.images * 255 / 16).astype(np.uint8)
    known = {image.tobytes(): label for image, label in zip(pixels, bundled.target, strict=True)} | {bytes(64): digits_text.EMPTY}
    images, places, _ = canvases[split]
    halves = [images[:, :, :8], images[:, :, 8:]]
    for half, classes in zip(halves, places.T, strict=True):
        assert [known.get(image.tobytes()) for image in half] == classes.tolist()
    seen = {image.tobytes() for half in halves for image in half} - {bytes(64)}
    of_train = {image.tobytes() for number, image in enumerate(pixels) if number % 6 != 5}
    assert seen == of_train if split == "train" else not seen & of_train


def test_pairs_held_out_are_of_digits_never_seen_together(canvases):
    counts = {split: collections.Counter(map(tuple, places.tolist())) for split, (_, places, _) in canvases.items()}
    assert {split: (len(counts[split]), set(counts[split].values())) for split in SPLITS} == {
        "train": (100, {100}), "test": (100, {10}), "unseen": (20, {50})}  # fmt: skip
    assert counts["train"].keys() == counts["test"].keys()
    together = {frozenset(pair) for pair in counts["train"]}
    assert not together & {frozenset(pair) for pair in counts["unseen"]}
    for place in (0, 1):
        for pairs in (counts["train"], counts["unseen"]):
            assert {pair[place] for pair in pairs} >= set(range(10))


def test_a_caption_says_what_is_at_both_places(canvases):
    said = {pair: digits_text.captions(*pair) for pair in itertools.product(range(11), repeat=2) if pair != (10, 10)}
    assert len({caption for captions in said.values() for caption in captions}) == sum(map(len, said.values()))
    for _, places, captions in canvases.values():
        assert all(caption in said[pair] for pair, caption in zip(map(tuple, places.tolist()), captions, strict=True))
        assert set(captions) == {caption for pair in set(map(tuple, places.tolist())) for caption in said[pair]}


@pytest.mark.parametrize(
    ("left", "right", "captions"),
    [
        (3, 8, ["a three and an eight", "a three left of an eight", "an eight right of a three"]),
        (6, 6, ["a six and a six", "a six left of a six", "a six right of a six", "two sixes"]),
        (
            digits_text.EMPTY,
            1,
            ["an empty place and a one", "an empty place left of a one", "a one right of an empty place", "a one on the right"],
        ),
    ],
)
def test_captions_are_english(left, right, captions):
    assert digits_text.captions(left, right) == captions


def test_a_canvas_is_named_right_where_both_places_are(canvases, tfds_dir, tmp_path, monkeypatch):
    """Also one of a pair that the classifier has not seen; not one whose places are swapped, or with another digit at one."""
    monkeypatch.setenv("JAXDIFF_CACHE_DIR", str(tmp_path))
    few = config.Data(name="digits_text", image_shape=(8, 16, 1), split="train[:1200]", held_out="unseen")
    network = evaluate.classifier(evaluate.data_set(few, tfds_dir), epochs=4)
    named = jax.jit(lambda images: network.apply(network.variables, images)[1].argmax(-1))
    for split in ("test", "unseen"):
        images, places, _ = canvases[split]
        left, right, other = images[:, :, :8], images[:, :, 8:], np.roll(images[:, :, 8:], 1, axis=0)
        shown = {"right": (left, right), "swapped": (right, left), "other": (left, other)}
        samples = {name: data.normalize(np.concatenate(halves, axis=2)[..., None]) for name, halves in shown.items()}
        found = {name: np.mean(named(each) == places @ [11, 1]) for name, each in samples.items()}
        twins, same = np.mean(places[:, 0] == places[:, 1]), np.mean(places[:, 1] == np.roll(places[:, 1], 1))
        assert found["right"] > 0.85
        assert found["swapped"] < twins + 0.02
        assert found["other"] < same + 0.05


def test_a_width_that_places_do_not_divide_is_refused(tfds_dir):
    with pytest.raises(DataError, match=r"digits_text has 2 places side by side; set data\.image_shape to a width that 2 divides"):
        data.load_split("digits_text", "test", (8, 17, 1), data_dir=tfds_dir)
