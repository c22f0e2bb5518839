"""CLIP: features of images and of captions in one space, and how near they are."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxdiff import interop
from jaxdiff.evaluate.feature_cache import cached_arrays, digest
from jaxdiff.evaluate.features import Network, extract
from jaxdiff.interop import parts, texts
from jaxdiff.io import files
from jaxdiff.io.errors import ConfigError

CAPTIONS = 256  # encoded at once
WHOLE = "write the folder of a whole CLIP as transformers saves it, or OWNER/NAME of the Hugging Face hub"


def clip(source: pathlib.Path | str) -> Network:
    """The CLIP in a folder, or of OWNER/NAME of the hub: features are its image encoder's, and captions have some in their space.

    They are the projected vectors as they are, of any length: so are those of clean-fid's Frechet distance by CLIP (Parmar et al.
    2022, published code; Kynkaanniemi et al. 2023). It sees grey images as three equal colours, and the middle square of wide ones.

    Raises:
        ConfigError: it lacks one of the two encoders, or a tokenizer.
        DataError: a file is damaged, or of a network that jaxdiff does not have.
    """
    folder = interop.fetch(str(source)) if interop.is_hub_name(str(source)) else pathlib.Path(source).expanduser()
    found = parts.find(folder)
    halves = {"image": found.image is not None, "text": len(found.texts) == 1}
    if missing := [name for name, there in halves.items() if not there]:
        raise ConfigError(f"{source} holds no {' and no '.join(missing)} encoder of a CLIP; {WHOLE}")
    (tokens,), (text,) = texts.text_tokenizers(found), found.texts
    see, read, params = interop.image_encoder(folder), texts.encoder([text]), jax.tree.map(np.asarray, texts.text_params(text))

    def apply_image(see: Any, images: Array) -> tuple[Array, Array]:
        if images.shape[-1] not in (1, 3):
            raise ConfigError(f"CLIP sees images of 1 or 3 channels, got {images.shape[-1]}; write --features classifier")
        features = see(jnp.broadcast_to(images, (*images.shape[:-1], 3)))
        return features, features[:, :0]

    def apply_text(params: Any, tokens: Array) -> tuple[Array, Array]:
        features = read((params,), (tokens,)).pooled
        return features, features[:, :0]

    name = f"clip image encoder, {digest(*(np.asarray(leaf) for leaf in jax.tree.leaves((see, params))))}"
    encoder = Network(f"{name}, captions", "none", apply_text, params, labels=False)

    def encode(captions: Sequence[str]) -> np.ndarray:
        ids = tokens(captions)
        return extract(encoder, lambda rows: ids[rows], len(ids), CAPTIONS, "captions").features

    size = found.image.options["size"] if found.image else 0
    resize = f"{size}x{size}, cubic, the middle square"
    return Network(name, resize, apply_image, see, labels=False, classes=False, encode_captions=encode)


def caption_features(network: Network, captions: Sequence[str]) -> np.ndarray:
    """Those of captions, `[N, F]`, each encoded once however often it stands there; read from the cache where they are known.

    Raises:
        ConfigError: the network does not read captions.
    """
    if network.encode_captions is None:
        raise ConfigError(f"{network.name} reads no captions; write --features clip --weights FOLDER")
    encode, (unique, places) = network.encode_captions, np.unique(np.asarray(captions, object), return_inverse=True)
    path = files.cache_dir() / "captions" / f"{digest(network.name, list(unique))}.npz"
    return cached_arrays(path, lambda: {"features": encode(list(unique))})["features"][places]


def clip_scores(images: np.ndarray, captions: np.ndarray) -> np.ndarray:
    """`100 max(cos(image, caption), 0)` of features `[N, F]` of images and of their captions: `[N]`, from 0 to 100.

    Hessel et al. (2021), equation 1, with 100 in place of their 2.5, as torchmetrics and most papers on text to image write it.
    Below 0 is each cosine clipped; torchmetrics clips their mean alone, which is the same of any CLIP that was trained.
    """
    images, captions = (np.asarray(each, np.float64) for each in (images, captions))
    lengths = np.linalg.norm(images, axis=1) * np.linalg.norm(captions, axis=1)
    return 100 * np.clip(np.sum(images * captions, axis=1) / np.where(lengths > 0, lengths, 1), 0, 1)
