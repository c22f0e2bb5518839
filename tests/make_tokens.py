"""Writes data/texts: 1,000 texts and their tokens by transformers' CLIP tokenizer, with a vocabulary cut to what they use.

python -m venv peer && peer/bin/pip install torch==2.14.1 transformers==5.24.0 open-clip-torch==3.3.0 -e .
peer/bin/python tests/make_tokens.py

The real vocabulary is that of open-clip-torch. With it, all texts have the same tokens by jaxdiff and by transformers, for the
three ways in which Stable Diffusion pads: this is checked here.
"""

import gzip
import itertools
import json
import pathlib
import random
import tempfile

import numpy as np
import open_clip
import transformers
from published_weights import TEXTS, special_tokens

from jaxdiff.interop.tokens import BEGIN, END, clip, tokenizer

NUM, LENGTH = 1000, 77
WORDS = """
a photo of an astronaut riding horse on mars in the style of van gogh oil painting highly detailed 4k trending artstation cat
dog portrait woman man child old young cinematic lighting sunset over mountains lake forest river city street night rain snow
red blue green yellow castle dragon knight robot futuristic cyberpunk watercolor sketch pencil drawing of two sevens left
right three eight empty place and one with without under above black white sharp focus bokeh 35mm f/1.8 masterpiece best
quality lowres blurry don't it's I'm we've they'll she'd can't o'clock rock'n'roll unbelievably internationalization
antidisestablishmentarianism hello world naïve café Zürich façade jalapeño Ångström München smörgåsbord coöperate résumé Łódź
İstanbul groß ﬁne straße ΑΘΗΝΑ Москва привет мир день ночь красный 日本 東京 猫 犬 中国 北京 한국 고양이 สวัสดี שלום مرحبا नमस्ते &amp;
&lt;b&gt; &#39; &nbsp; http://example.com/a?b=c&d=e user@mail.org #hashtag @name C++ $9.99 50% 3.14159 1,000,000 2023-10-05
12:30 ½ ² Ⅷ € £ ™ © … — “quoted” «double» (brackets) [square] {curly} <tag> a_b snake_case kebab-case CamelCase UPPER lower
MiXeD !! ?? !? ... ;-) :) 👍 😀 👩‍👩‍👧‍👦 🏳️‍🌈 🇫🇷 ❤️ ☕ ∑ √ ∞ ≠ → ½cup x² H₂O <|endoftext|> <|startoftext|> <|EndOfText|> 's 't
're "it" it's' ''s
""".split()  # noqa: SIM905
SPACES = (" ", " ", " ", " ", " ", " ", "  ", "\t", "\n", "\r\n", "\u00a0", "\u3000", "\u2009", "", ", ", "-", ".")
RANGES = ((0x20, 0x7F), (0x00, 0x20), (0xA0, 0x180), (0x300, 0x330), (0x370, 0x400), (0x400, 0x460), (0x5D0, 0x5EB))
RANGES += ((0x600, 0x630), (0xE01, 0xE30), (0x1E00, 0x1E40), (0x2000, 0x2040), (0x3040, 0x3080), (0x4E00, 0x4E40))
RANGES += ((0xAC00, 0xAC20), (0x1F600, 0x1F640))  # scripts of Unicode
CHOSEN = (
    "",
    " ",
    "\n\t ",
    "!",
    "!!!",
    "hello!",
    "e\u0301",
    "\u00e9",
    "\u212b",
    "\ufeffmark",
    "\u200b",
    "\x00",
    "a\x00b",
    "İ",
    "ǅ",
    "ß",
)
CHOSEN += (
    "a " * 74,
    "a " * 75,
    "a " * 76,
    "a " * 200,
    "x" * 400,
    "😀" * 40,
    "é" * 100,
    "1234567890" * 10,
    "a photo of " * 25 + "END",
)


def main():
    texts, (vocabulary, merges) = strings(), real_vocabulary()
    tokens = {padding: compared(vocabulary, merges, padding, texts) for padding in ("sd1", "sd2", "sdxl")}
    assert np.array_equal(tokens["sd2"], tokens["sdxl"])
    used = used_merges(texts, merges)
    kept = {*map("".join, used), BEGIN, END}
    cut = {token: number for token, number in vocabulary.items() if number < 512 or token in kept}
    for padding in ("sd1", "sd2", "sdxl"):
        assert np.array_equal(compared(cut, used, padding, texts), tokens[padding])
    write_tokenizer(TEXTS, cut, used)
    (TEXTS / "texts.json").write_text(json.dumps(texts, ensure_ascii=False, indent=0) + "\n")
    np.savez_compressed(TEXTS / "tokens.npz", **{name: tokens[name].astype(np.uint16) for name in ("sd1", "sd2")})
    lengths = (tokens["sd1"] != vocabulary[END]).sum(1) + 1
    print(f"{len(texts)} texts of {lengths.mean():.0f} tokens, {len(used)} merges; {(lengths == LENGTH).sum()} are cut")


def compared(vocabulary, merges, padding, texts):
    """The tokens of texts by transformers, which are those by jaxdiff."""
    with tempfile.TemporaryDirectory() as folder:
        write_tokenizer(pathlib.Path(folder), vocabulary, merges)
        for name, values in special_tokens(padding).items():
            (pathlib.Path(folder) / name).write_text(json.dumps(values))
        published, ours = transformers.CLIPTokenizer.from_pretrained(folder), tokenizer(folder)
        tokens = published(texts, padding="max_length", max_length=LENGTH, truncation=True, return_tensors="np").input_ids
        assert np.array_equal(ours(texts), tokens), padding
    return tokens


def strings():
    """The texts: chosen ones, words of many kinds, and characters of many scripts."""
    draw = random.Random(0)
    texts = list(CHOSEN)
    while len(texts) < 800:
        most = 110 if len(texts) % 40 == 0 else 14
        texts.append("".join(draw.choice(WORDS) + draw.choice(SPACES) for _ in range(draw.randint(1, most))))
    while len(texts) < NUM:
        scripts = draw.sample(RANGES, 3)
        texts.append("".join(chr(draw.randrange(*draw.choice(scripts))) for _ in range(draw.randint(1, 24))))
    return texts


def real_vocabulary():
    """CLIP's byte pairs: tokens by number, and merges (Radford et al. 2021, published code)."""
    file = pathlib.Path(open_clip.__file__).parent / "bpe_simple_vocab_16e6.txt.gz"
    merges = [tuple(line.split()) for line in gzip.decompress(file.read_bytes()).decode().split("\n")[1 : 49152 - 256 - 2 + 1]]
    letters = list(open_clip.tokenizer.bytes_to_unicode().values())
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *map("".join, merges), BEGIN, END]
    return {token: number for number, token in enumerate(tokens)}, merges


def write_tokenizer(folder, vocabulary, merges):
    folder.mkdir(exist_ok=True, parents=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False, separators=(",", ":")))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{' '.join(merge)}\n" for merge in merges))


def used_merges(texts, merges):
    """Those that the byte pair encoding of the texts takes, in their order."""
    ranks, used = {merge: rank for rank, merge in enumerate(merges)}, set()
    backend = clip({BEGIN: 0, END: 1}, [])
    apart = [text.replace(BEGIN, " ").replace(END, " ") for text in texts]  # special tokens, as the padding "!" is, divide words
    for text in [*texts, *apart, *(text.replace("!", " ") for text in apart)]:
        for word, _ in backend.pre_tokenizer.pre_tokenize_str(backend.normalizer.normalize_str(text)):
            parts = [*word[:-1], f"{word[-1]}</w>"]
            while pairs := [pair for pair in itertools.pairwise(parts) if pair in ranks]:
                best = min(pairs, key=ranks.get)
                used.add(best)
                at = next(i for i in range(len(parts)) if tuple(parts[i : i + 2]) == best)
                parts[at : at + 2] = ["".join(best)]
    return sorted(used, key=ranks.get)


if __name__ == "__main__":
    main()
