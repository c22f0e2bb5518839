"""CLIP as a judge: its cosines against transformers (`make_encoders.py`), the score of captions, and what is no CLIP."""

import json
import shutil

import jax.numpy as jnp
import numpy as np
import published_weights
import pytest
from published_weights import TEXTS

from jaxdiff import data, evaluate, interop
from jaxdiff.data import Images
from jaxdiff.evaluate import clip_score
from jaxdiff.io.errors import UserError

RECORDED = published_weights.family("clip_score")
PIXELS, COSINES = RECORDED.inputs["pixels"], RECORDED.outputs["cosines"]
CAPTIONS = [json.loads((TEXTS / "texts.json").read_text())[row] for row in RECORDED.inputs["rows"]]
COLOURS = {"red": 0, "green": 1, "blue": 2}


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAXDIFF_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return published_weights.write_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def network(folder):
    return evaluate.clip(folder)


def features(network, pixels):
    images = data.normalize(pixels)
    return evaluate.extract(network, lambda rows: images[rows], len(images)).features


def test_scores_are_the_cosines_of_transformers(network):
    """Of pictures and texts as they are read, with the real tokens; cosines below 0 are no score."""
    images, captions = features(network, PIXELS), evaluate.caption_features(network, CAPTIONS)
    assert images.shape[1] == captions.shape[1] == 24
    scores = [evaluate.clip_scores(images, np.repeat(caption[None], len(images), axis=0)) for caption in captions]
    np.testing.assert_allclose(np.transpose(scores), 100 * COSINES.clip(0), rtol=0, atol=1e-3)
    assert (COSINES < -0.01).any()


def test_the_score_is_100_times_a_cosine_between_0_and_1():
    angles = np.linspace(0, np.pi, 13)
    images = np.stack([np.cos(angles), np.sin(angles)], axis=1) * np.linspace(0.1, 9, 13)[:, None]
    scores = evaluate.clip_scores(images.astype(np.float32), np.array([[2.0, 0.0]]).repeat(13, 0))
    np.testing.assert_allclose(scores, 100 * np.cos(angles).clip(0), atol=1e-4)
    assert (scores[0], scores[-1], scores.max()) == (100, 0, 100)
    assert evaluate.clip_scores(np.zeros((1, 2)), np.ones((1, 2))) == [0]


def test_features_are_the_projected_vectors(network, folder):
    """Of the length that the encoder gives them, on which distances between sets depend."""
    projected = interop.image_encoder(folder)(data.normalize(PIXELS))
    np.testing.assert_allclose(features(network, PIXELS), projected, rtol=0, atol=1e-5)
    assert np.ptp(np.linalg.norm(projected, axis=1)) > 0.1


def test_grey_images_are_seen_as_three_equal_colours(network):
    grey = PIXELS[..., :1]
    np.testing.assert_array_equal(features(network, grey), features(network, grey.repeat(3, axis=-1)))
    with pytest.raises(UserError, match=r"CLIP sees images of 1 or 3 channels, got 2; write --features classifier"):
        features(network, PIXELS[..., :2])


def test_its_name_says_which_part_of_which_weights_sees_images(network, folder, tmp_path):
    assert network.name.startswith("clip image encoder, ")
    assert network.resize == "12x12, cubic, the middle square"
    assert evaluate.clip(folder).name == network.name
    other = published_weights.write_clip(tmp_path / "other", dtype="float16")
    assert evaluate.clip(other).name == network.name  # drawn weights are exact in float16
    shapes = RECORDED.tensors["model.safetensors"]
    arrays = {name: published_weights.draw(name, tuple(shape)) for name, shape in shapes.items()}
    arrays["text_projection.weight"] *= 2
    interop.save_tensors(other / "model.safetensors", arrays)
    assert evaluate.clip(other).name != network.name


def test_each_caption_is_encoded_once(network):
    seen = []

    def encode(captions):
        seen.append(list(captions))
        return np.array([[len(caption)] for caption in captions], np.float32)

    counted = network._replace(name="counted", encode_captions=encode)
    for _ in range(2):
        np.testing.assert_array_equal(evaluate.caption_features(counted, ["bb", "a", "bb", "ccc"])[:, 0], [2, 1, 2, 3])
    assert seen == [["a", "bb", "ccc"]]
    with pytest.raises(UserError, match="pixels reads no captions; write --features clip --weights FOLDER"):
        evaluate.caption_features(network._replace(name="pixels", encode_captions=None), ["a"])


def coloured(num):
    """Noisy images of one colour each, red, green and blue in turn, and their captions."""
    which = np.arange(num) % 3
    pixels = np.random.default_rng(0).integers(0, 80, (num, 2, 2, 3)).astype(np.uint8)
    pixels[np.arange(num), :, :, which] += 150
    return pixels, [list(COLOURS)[each] for each in which]


@pytest.fixture(scope="module")
def judge_of():
    """A function of how many images of coloured squares are held out: by a network whose features are colours."""
    pixels, captions = coloured(60)
    images = Images(lambda rows: (pixels[rows], np.zeros(len(rows), np.int32)), 60, 0)
    source = evaluate.DataSet("squares", "squares", images, images, lambda rows: [captions[row] for row in rows])

    def apply(variables, images):
        colours = images.mean((1, 2)) + 1
        return colours, colours[:, :0]

    def encode(captions):
        return np.eye(3, dtype=np.float32)[[COLOURS[caption] for caption in captions]]

    by_colour = evaluate.Network("colours", "none", apply, jnp.zeros(()), False, classes=False, encode_captions=encode)

    def judge(num=60):
        held_out = images._replace(num_examples=num)
        return evaluate.evaluator(by_colour, source._replace(file=f"squares_{num}", held_out=held_out), 60)

    return judge


def test_captions_of_the_right_images_score_higher(judge_of):
    judged, (pixels, captions) = judge_of(), coloured(60)
    images, labels = data.normalize(pixels), np.zeros(60, np.int32)
    right = judged.measure(images, labels, captions)
    assert right.metrics.keys() == right.held_out.keys() == {"fid", "kid", "precision", "recall", "clip_score"}
    assert right.metrics["clip_score"] == pytest.approx(right.held_out["clip_score"])  # the same images and captions
    low, value, high = (getattr(right.metrics["clip_score"], name) for name in ("low", "value", "high"))
    assert 90 < low < value < high < 100
    shuffled = judged.measure(images, labels, np.random.default_rng(1).permutation(captions).tolist())
    wrong = judged.measure(images, labels, captions[1:] + captions[:1])
    assert wrong.metrics["clip_score"].high < 30 < shuffled.metrics["clip_score"].low
    assert shuffled.metrics["clip_score"].high < 80 < low
    assert wrong.metrics["fid"] == right.metrics["fid"]
    assert "CLIP score: 9" in str(right)
    with pytest.raises(ValueError, match="a caption is wanted for each sample: 2 for 60 samples"):
        judged.measure(images, labels, captions[:2])


def test_few_held_out_images_leave_the_score_alone(judge_of):
    pixels, captions = coloured(12)
    found = judge_of(1).measure(data.normalize(pixels), np.zeros(12), captions)
    assert found.metrics.keys() == found.held_out.keys() == {"clip_score"}
    assert found.held_out["clip_score"] == (pytest.approx(found.metrics["clip_score"].value, abs=5), 0, 100)


def test_what_a_network_or_a_run_does_not_allow_is_said(network):
    able = ["fid", "kid", "precision", "recall"]
    assert evaluate.known_measures([], network, captioned=True) == [*able, "clip_score"]
    assert evaluate.known_measures([], network) == able
    inception = network._replace(name="inception 0", classes=True, encode_captions=None)
    assert evaluate.known_measures([], inception, captioned=True) == [*able, "inception_score"]
    for name, judge, said in (
        ("clip_score", network, "samples of a run without text have no captions; leave it out"),
        ("clip_score", inception, "inception reads no captions; write --features clip --weights FOLDER"),
        ("inception_score", network, "clip knows no classes; write --features inception --weights FILE.npz"),
        ("label_agreement", network, "clip knows no labels of the data; write --features classifier"),
        ("score", network, "unknown; write some of fid, kid, precision, recall"),
    ):
        with pytest.raises(UserError, match=f"--metrics {name}: {said}"):
            evaluate.known_measures([name], judge)


WITHOUT = {  # what a folder is, and what is said of it
    "nothing": r"there is no .*nothing; write a folder or a file of weights, or OWNER/NAME of the Hugging Face hub",
    "text": r"text holds no image encoder of a CLIP; write the folder of a whole CLIP as transformers saves it, or OWNER/NAME",
    "image": r"image holds no text encoder of a CLIP; write the folder of a whole CLIP",
    "words": r"there is no tokenizer beside .*words; give the folder of one",
    "weights.npz": r"weights\.npz ",
}


@pytest.mark.parametrize("name", WITHOUT)
def test_what_is_no_whole_clip_is_said_in_one_line(name, folder, tmp_path):
    path = tmp_path / name
    np.savez(tmp_path / "weights.npz", x=np.zeros(3))
    if name in ("text", "image", "words"):
        shutil.copytree(folder, path, ignore=shutil.ignore_patterns(*(["vocab*", "merges*"] if name == "words" else [])))
    if name in ("text", "image"):
        kind, half = {"text": ("CLIPTextModelWithProjection", "text"), "image": ("CLIPVisionModelWithProjection", "vision")}[name]
        (path / "config.json").write_text(json.dumps({**RECORDED.config[f"{half}_config"], "architectures": [kind]}))
    with pytest.raises(UserError, match=WITHOUT[name]) as error:
        clip_score.clip(path)
    assert "\n" not in str(error.value)
