"""A tokenizer of whole words, made of captions: for a text encoder that is trained on them alone."""

from __future__ import annotations

from collections.abc import Iterable

import tokenizers
from tokenizers import models, normalizers, pre_tokenizers, processors, trainers

from jaxdiff.interop.tokens import Tokenizer

SPECIAL = ("[pad]", "[begin]", "[end]", "[unknown]")  # tokens 0 to 3


def word_tokenizer(captions: Iterable[str], vocabulary: int, length: int) -> Tokenizer:
    """The most frequent words of captions as at most so many tokens, in lower case and without punctuation marks of their own.

    Token 0 pads, 1 begins, 2 ends, and 3 is a word that is not known.

    >>> made = word_tokenizer(["a red cube", "a blue cube"], vocabulary=16, length=6)
    >>> made(["A blue cube", "a green one"]).tolist()
    [[1, 4, 6, 5, 2, 0], [1, 4, 3, 3, 2, 0]]
    """
    backend = tokenizers.Tokenizer(models.WordLevel(unk_token=SPECIAL[3]))
    backend.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.WordLevelTrainer(vocab_size=vocabulary, special_tokens=list(SPECIAL), show_progress=False)
    backend.train_from_iterator(captions, trainer)
    around = [(SPECIAL[1], 1), (SPECIAL[2], 2)]
    backend.post_processor = processors.TemplateProcessing(single=f"{SPECIAL[1]} $A {SPECIAL[2]}", special_tokens=around)
    return Tokenizer(backend, 1, 2, 0, length, backend.get_vocab_size(), "the captions")
