"""Texts as the tokens of a model: its own tokenizer.json, or CLIP's vocab.json and merges.txt."""

from __future__ import annotations

import dataclasses
import logging
import pathlib
import reprlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from jaxdiff.interop import documents
from jaxdiff.io import count, files, paths
from jaxdiff.io.errors import ConfigError, DataError, first_line

log = logging.getLogger(__name__)

FILE = "tokenizer.json"
BEGIN, END = "<|startoftext|>", "<|endoftext|>"  # of CLIP
LENGTH, MOST = 77, 1 << 16  # CLIP's tokens of a text; lengths above the second say that there is no limit
WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
NAMED = ("bos_token", "eos_token", "unk_token", "pad_token")  # as transformers calls special tokens
AGAIN = "copy or download the tokenizer again"


@dataclasses.dataclass(frozen=True, eq=False)
class Tokenizer:
    """A function of texts to tokens, int32 `[N, length]`: begin, the text's own, end, and padding.

    Attributes:
        backend: of the tokenizers package; it neither cuts nor pads.
        begin: the token before a text.
        end: the token after it.
        pad: the token behind that.
        length: how many tokens a text has.
        vocabulary: one more than the largest token.
        where: where it was read.
    """

    backend: tokenizers.Tokenizer = dataclasses.field(repr=False)
    begin: int
    end: int
    pad: int
    length: int
    vocabulary: int
    where: str

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """The tokens `[N, length]` of texts; those that are too long are cut before their end, of which a warning tells.

        Raises:
            ConfigError: a text is no string of Unicode characters.
        """
        if isinstance(texts, str):
            raise ConfigError(f"a list of texts is wanted, and {reprlib.repr(texts)} is one text; write [text]")
        tokens = np.full((len(texts), self.length), self.pad, np.int32)
        cut: list[str] = []
        for row, text in zip(tokens, texts, strict=True):
            try:
                encoding = self.backend.encode(text)
            except (TypeError, UnicodeError) as error:
                raise ConfigError(f"{ascii(text)[:60]} is no text ({first_line(error)}); write Unicode characters") from error
            ids = encoding.ids
            if len(ids) > self.length:
                lost = text[encoding.offsets[self.length - 1][0] :]
                cut.append(f"a text of {count(len(ids), 'token')} is cut to {self.length}, without {reprlib.repr(lost)}")
                ids = [*ids[: self.length - 1], self.end]
            row[: len(ids)] = ids
        if cut:
            more = len(cut) - 1
            log.warning("%s%s", cut[0], f", and {count(more, 'more text')} {'is' if more == 1 else 'are'} cut" if more else "")
        return tokens

    def check(self, vocabulary: int, positions: int, where: str) -> None:
        """Checks that it is of a text encoder that knows so many tokens and positions.

        Raises:
            DataError: it is not.
        """
        if self.vocabulary > vocabulary:
            raise DataError(
                f"{self.where} has tokens up to {self.vocabulary - 1}, and {where} knows {vocabulary}; give its own tokenizer"
            )
        if self.length > positions:
            raise DataError(
                f"{self.where} makes {self.length} tokens of a text, and {where} takes {positions}; give its own tokenizer"
            )

    def save(self, folder: pathlib.Path | str) -> None:
        """Writes tokenizer.json, which says all, into a folder."""
        backend = tokenizers.Tokenizer.from_str(self.backend.to_str())
        backend.enable_truncation(self.length)
        backend.enable_padding(length=self.length, pad_id=self.pad, pad_token=backend.id_to_token(self.pad) or "")
        files.write_text(paths.path(folder) / FILE, backend.to_str(pretty=False) + "\n")


def tokenizer(path: pathlib.Path | str) -> Tokenizer:
    """The tokenizer in a folder: of its tokenizer.json, or else of vocab.json and merges.txt, which are read as CLIP's.

    Length and padding are those of tokenizer.json; where it says none, those of special_tokens_map.json and tokenizer_config.json
    beside it; else 77, and the end token.

    Raises:
        ConfigError: there is none.
        DataError: a file is damaged, or puts no token before and after a text.
    """
    folder = paths.path(path)
    if folder.name == FILE:
        folder = folder.parent
    settings = _settings(folder)
    try:
        backend = _backend(folder)
        special = [_added(settings[name], name, folder) for name in NAMED if settings.get(name) is not None]
        if not (folder / FILE).is_file():
            backend.post_processor = _clip_processor(backend)
            backend.add_special_tokens(special)
        backend.encode_special_tokens = False
        padding, truncation = backend.padding or {}, backend.truncation or {}
        backend.no_padding()
        backend.no_truncation()
        around = backend.encode("").ids
        vocabulary = backend.get_vocab(with_added_tokens=True)
    except (ConfigError, DataError):
        raise
    except Exception as error:  # of which the package raises plain ones
        raise DataError(f"{folder} holds no tokenizer that can be read ({first_line(error)}); {AGAIN}") from error
    if len(around) != 2:
        raise DataError(f"{folder} puts {count(len(around), 'token')} around a text, and a text encoder wants a begin and an end")
    pad = padding.get("pad_id", around[1])
    if not padding and settings.get("pad_token") is not None:
        pad = vocabulary.get(_added(settings["pad_token"], "pad_token", folder).content, around[1])
    length = padding.get("length") or truncation.get("max_length") or settings.get("model_max_length")
    length = length if type(length) is int and 2 <= length <= MOST else LENGTH
    begin, end = around
    return Tokenizer(backend, begin, end, pad, length, 1 + max(*vocabulary.values(), begin, end, pad), str(folder))


def is_there(folder: pathlib.Path) -> bool:
    """Whether a folder holds a tokenizer that `tokenizer` reads."""
    return any((folder / name).is_file() for name in (FILE, "vocab.json"))


def _backend(folder: pathlib.Path) -> tokenizers.Tokenizer:
    """The tokenizer of the files, without what settings beside them say."""
    if (folder / FILE).is_file():
        return tokenizers.Tokenizer.from_str((folder / FILE).read_text(encoding="utf-8"))
    names = [folder / name for name in ("vocab.json", "merges.txt")]
    if missing := [name for name in names if not name.is_file()]:
        what = "there is no such folder" if not folder.is_dir() else f"it lacks {missing[0].name}"
        raise ConfigError(f"{folder} holds no tokenizer ({what}); give a folder with {FILE}, or with vocab.json and merges.txt")
    vocabulary, merges = models.BPE.read_file(*map(str, names))
    return clip(vocabulary, merges)


def clip(vocabulary: Mapping[str, int], merges: Sequence[tuple[str, str]]) -> tokenizers.Tokenizer:
    """CLIP's lower-cased byte pairs (Radford et al. 2021, section 2.4), without begin and end."""
    suffix = {"continuing_subword_prefix": "", "end_of_word_suffix": "</w>"}
    backend = tokenizers.Tokenizer(models.BPE(dict(vocabulary), list(merges), unk_token=END, **suffix))
    space = normalizers.Replace(tokenizers.Regex(r"\s+"), " ")
    backend.normalizer = normalizers.Sequence([normalizers.NFC(), space, normalizers.Lowercase()])
    words = pre_tokenizers.Split(tokenizers.Regex(WORDS), behavior="removed", invert=True)
    backend.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    backend.decoder = decoders.ByteLevel()
    return backend


def _clip_processor(backend: tokenizers.Tokenizer) -> Any:
    """What puts CLIP's begin and end around a text."""
    begin, end = backend.token_to_id(BEGIN), backend.token_to_id(END)
    if begin is None or end is None:
        raise ValueError(f"its vocabulary lacks {BEGIN} or {END}")
    return processors.RobertaProcessing((END, end), (BEGIN, begin), trim_offsets=False, add_prefix_space=False)


def _settings(folder: pathlib.Path) -> dict[str, Any]:
    """What tokenizer_config.json says, and special_tokens_map.json; the latter counts, unless the former lists added tokens."""
    config, special = (_document(folder / name) for name in ("tokenizer_config.json", "special_tokens_map.json"))
    added = config.get("added_tokens_decoder")
    if not isinstance(added, dict):
        named = {"bos_token": BEGIN, "eos_token": END, "unk_token": END, "pad_token": END}
        return named | config | special
    by_content = {token["content"]: token for token in added.values() if isinstance(token, dict) and "content" in token}
    return config | {name: by_content.get(token, token) for name, token in config.items() if isinstance(token, str)}


def _document(path: pathlib.Path) -> dict[str, Any]:
    return documents.read(path) if path.is_file() else {}


def _added(value: Any, name: str, folder: pathlib.Path) -> tokenizers.AddedToken:
    """A special token, which is a string, or a dict that says how it is looked for in a text."""
    given = value if isinstance(value, dict) else {"content": value}
    settings = {key: given[key] for key in ("lstrip", "rstrip", "normalized", "single_word") if type(given.get(key)) is bool}
    if not isinstance(given.get("content"), str):
        raise DataError(f"{folder}: {name} {reprlib.repr(value)} must be a string; {AGAIN}")
    return tokenizers.AddedToken(given["content"], special=True, **settings)
