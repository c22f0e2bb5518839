"""`digits_text`: two handwritten digits side by side, with captions in words, as a tensorflow-datasets builder."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds

from jaxdiff.data.digits import load_digits, png

EMPTY = 10  # the class of a place without a digit
NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "empty")
PLURALS = ("zeros", "ones", "twos", "threes", "fours", "fives", "sixes", "sevens", "eights", "nines")
CANVASES = {"train": 100, "test": 10, "unseen": 50}  # of each pair
Pair = tuple[int, int]  # left and right


class DigitsText(tfds.core.GeneratorBasedBuilder):
    """Canvases of 8x16 pixels: two places, each with one of the images of `digits` or empty, and a caption (see `captions`).

    The 20 pairs of digits that are 3 or 7 apart, `held_out`, are never seen together in training, in either order, though each
    digit is seen at both places beside seven others, itself, and none. `train` has 10,000 canvases of the other 100 pairs, with
    the training images of `digits`; `test` 1,000 of the same pairs and `unseen` 1,000 of the held-out ones, both with images of its
    test split. Nothing is drawn at random: which image is where comes from a hash.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar = {"1.0.0": "First release."}

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "image": tfds.features.Image(shape=(8, 16, 1), dtype=np.uint8),
            "caption": tfds.features.Text(),
            "places": tfds.features.Sequence(tfds.features.ClassLabel(names=list(NAMES)), length=2),
        }
        return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(features), homepage="https://archive.ics.uci.edu")

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        return {split: self._generate_examples(split) for split in CANVASES}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
        _, images, labels = load_digits(test=split != "train")
        choices = [images[labels == digit] for digit in range(10)] + [np.zeros((1, 8, 8), np.uint8)]
        number = 0
        for pair in pairs(unseen=split == "unseen"):
            said = captions(*pair)
            for copy in range(CANVASES[split]):
                halves = [choices[what][_hash(split, *pair, copy, place) % len(choices[what])] for place, what in enumerate(pair)]
                yield number, {"image": png(np.hstack(halves)), "caption": said[copy % len(said)], "places": list(pair)}
                number += 1


def pairs(unseen: bool) -> list[Pair]:
    """The pairs that are held out, or the others, in which at most one place is empty."""
    every = [(left, right) for left in range(11) for right in range(11) if min(left, right) < EMPTY]
    return [pair for pair in every if held_out(*pair) == unseen]


def held_out(left: int, right: int) -> bool:
    """Whether a pair is of digits that are never seen together in training; so is the pair in the other order."""
    return EMPTY not in (left, right) and abs(left - right) in (3, 7)


def captions(left: int, right: int) -> list[str]:
    """All captions of a pair, of which none is a caption of another: "x and y" is said from left to right."""
    x, y = _thing(left), _thing(right)
    said = [f"{x} and {y}", f"{x} left of {y}", f"{y} right of {x}"]
    if left == right:
        said.append(f"two {PLURALS[left]}")
    elif EMPTY in (left, right):
        said.append(f"{x} on the left" if right == EMPTY else f"{y} on the right")
    return said


def _thing(what: int) -> str:
    article = "an" if NAMES[what][0] == "e" else "a"
    return f"{article} {NAMES[what]}" + (" place" if what == EMPTY else "")


def _hash(*parts: Any) -> int:
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "big")
