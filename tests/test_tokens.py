"""Tokens, against those of transformers (`make_tokens.py`)."""

import json
import logging

import numpy as np
import pytest
from published_weights import TEXTS, write_tokenizer

from jaxdiff.interop.tokens import tokenizer
from jaxdiff.io.errors import ConfigError, DataError

STRINGS = json.loads((TEXTS / "texts.json").read_text())


@pytest.mark.parametrize("padding", ["sd1", "sd2", "sdxl"])
def test_tokens_are_those_of_transformers(padding, tmp_path):
    with np.load(TEXTS / "tokens.npz") as recorded:
        published = recorded["sd1" if padding == "sd1" else "sd2"]
    assert len(STRINGS) == len(published) == 1000
    tokens = tokenizer(write_tokenizer(tmp_path / "published", padding))
    np.testing.assert_array_equal(tokens(STRINGS), published)
    assert tokens(STRINGS[:2]).dtype == np.int32
    assert tokens([]).shape == (0, 77)
    said = (tokens.begin, tokens.end, tokens.pad, tokens.length, tokens.vocabulary)
    assert said == (49406, 49407, 49407 if padding == "sd1" else 0, 77, 49408)
    tokens.save(tmp_path / "saved")
    assert [file.name for file in (tmp_path / "saved").iterdir()] == ["tokenizer.json"]
    again = tokenizer(tmp_path / "saved" / "tokenizer.json")
    assert (again.begin, again.end, again.pad, again.length, again.vocabulary) == said
    np.testing.assert_array_equal(again(STRINGS), published)


def test_length_and_padding_are_those_of_the_model(tmp_path):
    tokens = tokenizer(write_tokenizer(tmp_path / "short", "sd1", model_max_length=9))
    assert tokens.length == 9
    np.testing.assert_array_equal(tokens(["a dragon"])[0], [49406, 320, 5471, *[49407] * 6])
    assert tokenizer(write_tokenizer(tmp_path / "long", "sd1", model_max_length=10**30)).length == 77
    assert tokenizer(TEXTS).pad == 49407  # nothing is said beside it
    assert tokenizer(write_tokenizer(tmp_path / "zero", "sd1", pad_token="a")).pad == 64


def test_a_text_that_is_too_long_is_cut_and_says_so(caplog):
    tokens = tokenizer(TEXTS)
    with caplog.at_level(logging.WARNING):
        row = tokens(["a " * 75])[0]
    assert caplog.messages == []
    with caplog.at_level(logging.WARNING):
        long = tokens(["a cat", "a " * 75 + "red dragon", "a " * 99])
    np.testing.assert_array_equal(long[1], row)
    assert long[1, -1] == 49407
    assert caplog.messages == ["a text of 79 tokens is cut to 77, without 'red dragon', and 1 more text is cut"]


def test_a_tokenizer_by_words_is_read_from_its_file_alone(tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    vocabulary = {word: number for number, word in enumerate(("<pad>", "<begin>", "<end>", "<unknown>", "two", "sevens"))}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unknown>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(single="<begin> $A <end>", special_tokens=[("<begin>", 1), ("<end>", 2)])
    words.enable_padding(length=8, pad_id=0, pad_token="<pad>")
    words.save(str(tmp_path / "tokenizer.json"))
    tokens = tokenizer(tmp_path)
    assert (tokens.begin, tokens.end, tokens.pad, tokens.length, tokens.vocabulary) == (1, 2, 0, 8, 6)
    np.testing.assert_array_equal(tokens(["two sevens", "a two"]), [[1, 4, 5, 2, 0, 0, 0, 0], [1, 3, 4, 2, 0, 0, 0, 0]])


SMALL = {"a": 0, "b</w>": 1, "ab</w>": 2, "<|startoftext|>": 3, "<|endoftext|>": 4}
WORDS = {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ({}, "holds no tokenizer (it lacks vocab.json)"),
        ({"vocab.json": SMALL}, "holds no tokenizer (it lacks merges.txt)"),
        ({"vocab.json": [1], "merges.txt": ""}, "holds no tokenizer that can be read (Error while reading vocab"),
        ({"vocab.json": SMALL, "merges.txt": "a c\n"}, "Token `c` out of vocabulary"),
        ({"vocab.json": SMALL, "merges.txt": "abc\n"}, "Merges text file invalid at line 1"),
        ({"vocab.json": {"a": 0}, "merges.txt": ""}, "its vocabulary lacks <|startoftext|> or <|endoftext|>"),
        ({"vocab.json": SMALL, "merges.txt": "", "special_tokens_map.json": {"pad_token": [1]}}, "pad_token [1] must be a string"),
        ({"vocab.json": SMALL, "merges.txt": "", "tokenizer_config.json": []}, "tokenizer_config.json must hold an object"),
        ({"tokenizer.json": {}}, "holds no tokenizer that can be read (Model missing"),
        ({"tokenizer.json": {"model": WORDS}}, "puts 0 tokens around a text, and a text encoder wants a begin and an end"),
    ],
)
def test_a_tokenizer_that_is_none(written, words, tmp_path):
    for name, value in written.items():
        (tmp_path / name).write_text(value if isinstance(value, str) else json.dumps(value))
    with pytest.raises((ConfigError, DataError)) as error:
        tokenizer(tmp_path)
    assert words in str(error.value)
    assert str(tmp_path) in str(error.value)
    assert "\n" not in str(error.value)


def test_what_is_no_list_of_texts():
    tokens = tokenizer(TEXTS)
    for wrong in ("a cat", ["\ud800"], [3], [None]):
        with pytest.raises(ConfigError, match=r"is one text|is no text"):
            tokens(wrong)
