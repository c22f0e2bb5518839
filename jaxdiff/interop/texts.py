"""Published text and image encoders as functions: of CLIP, by transformers, OpenCLIP and CompVis."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.tree_util import Partial
from jax.typing import DTypeLike

from jaxdiff.interop import loading, params
from jaxdiff.interop.parts import Found, Part, find
from jaxdiff.interop.text_configs import ACTIVATIONS
from jaxdiff.interop.tokens import Tokenizer, tokenizer
from jaxdiff.io import count
from jaxdiff.io.errors import ConfigError
from jaxdiff.models.text import TextEncoder
from jaxdiff.models.vision import ImageEncoder, normalised


class Encoded(NamedTuple):
    """Texts as a UNet is given them: context `[N, T, D]`, and the pooled vector `[N, P]` that Stable Diffusion XL takes besides."""

    context: Array
    pooled: Array


def text_encoder(path: pathlib.Path | str, *tokenizers: pathlib.Path | str) -> Callable[[Sequence[str]], Array]:
    """The text encoder at a path as a function of texts, `list of str -> context [N, T, D]`.

    Of a pipeline with two encoders, their states one behind the other. Tokenizers are folders, one for each encoder, where there
    are none beside the weights: a checkpoint of one file has none. It is a `jax.tree_util.Partial`, whose params are arguments of
    a compiled function that it is passed to.

    Raises:
        ConfigError: there is no such file, no text encoder in it, or no tokenizer beside it.
        DataError: a file is damaged, does not fit its network, or is of a network or tokenizer that jaxdiff does not have.
    """
    return _function(path, tokenizers, lambda encoded: encoded.context)


def pooled_text_encoder(path: pathlib.Path | str, *tokenizers: pathlib.Path | str) -> Callable[[Sequence[str]], Encoded]:
    """The same, with the pooled vector of the last encoder: `list of str -> Encoded(context, pooled)`.

    Raises:
        ConfigError: there is no such file, no text encoder in it, or no tokenizer beside it.
        DataError: a file is damaged, does not fit its network, or is of a network or tokenizer that jaxdiff does not have.
    """
    return _function(path, tokenizers, lambda encoded: encoded)


def image_encoder(path: pathlib.Path | str) -> Callable[[Array], Array]:
    """The image encoder of a CLIP as a function of images in [-1, 1], `[B, H, W, 3] -> [B, P]`, in the space of pooled texts.

    Images are resized so that the shorter side fits, and cropped to the middle square (Radford et al. 2021, published code).

    Raises:
        ConfigError: there is no such file, or no image encoder in it.
        DataError: a file is damaged, or does not fit its network, or is of a network that jaxdiff does not have.
    """
    part = find(path).image
    if part is None:
        raise ConfigError(f"{path} holds no image encoder; write the folder of a CLIP")
    module = image_module(part.options)

    @jax.jit
    def encode(tree: Any, images: Array) -> Any:
        return module.apply({"params": tree}, normalised(images, module.size))

    return Partial(encode, jax.tree.map(np.asarray, image_params(part)))


def _function(
    path: pathlib.Path | str, tokenizers: Sequence[pathlib.Path | str], of: Callable[[Encoded], Any]
) -> Callable[..., Any]:
    found = find(path)
    if not found.texts:
        raise ConfigError(f"{path} holds no text encoder; write the folder of a pipeline or of its text encoder")
    tokens, apply = text_tokenizers(found, *tokenizers), encoder(found.texts)
    compiled = jax.jit(lambda trees, ids: of(apply(trees, ids)))

    def encode(trees: Any, texts: Sequence[str]) -> Any:
        return compiled(trees, tuple(jnp.asarray(each(texts)) for each in tokens))

    return Partial(encode, tuple(jax.tree.map(np.asarray, text_params(part)) for part in found.texts))


def text_tokenizers(found: Found, *tokenizers: pathlib.Path | str) -> tuple[Tokenizer, ...]:
    """The tokenizers of the text encoders of what was found, in their order: those beside them, or of these folders.

    Raises:
        ConfigError: there is none beside an encoder, and none given.
        DataError: a tokenizer is damaged, or of another vocabulary.
    """
    if len(tokenizers) not in (0, len(found.texts)):
        raise ConfigError(
            f"{count(len(found.texts), 'tokenizer')} are wanted, one a text encoder, and {len(tokenizers)} were given"
        )
    opened = []
    for part, given in zip(found.texts, tokenizers or [part.tokenizer for part in found.texts], strict=True):
        if given is None:
            raise ConfigError(
                f"there is no tokenizer beside {part.where}; give the folder of one, with tokenizer.json or vocab.json"
            )
        opened.append(tokenizer(given))
        opened[-1].check(part.options["vocabulary"], part.options["positions"], part.where)
    return tuple(opened)


def encoder(texts: Sequence[Part], dtype: DTypeLike = jnp.float32) -> Callable[[Any, tuple[Array, ...]], Encoded]:
    """A pure function `(params, tokens) -> Encoded` of text encoders; params and tokens `[N, T]` are tuples, one of each encoder.

    Raises:
        ConfigError: there is no text encoder.
    """
    modules = [text_module(part.options, dtype) for part in texts]
    if not modules:
        raise ConfigError("no text encoder was given")

    def encode(trees: Any, tokens: tuple[Array, ...]) -> Encoded:
        each: list[Any] = [module.apply({"params": tree}, ids) for module, tree, ids in zip(modules, trees, tokens, strict=True)]
        return Encoded(jnp.concatenate([states for states, _ in each], axis=-1), each[-1][1])

    return encode


def text_module(options: Mapping[str, Any], dtype: DTypeLike = jnp.float32) -> TextEncoder:
    """The text encoder of such options (`text_configs.options`)."""
    return TextEncoder(**_fields(TextEncoder, options), dtype=dtype)


def image_module(options: Mapping[str, Any], dtype: DTypeLike = jnp.float32) -> ImageEncoder:
    """The image encoder of such options (`text_configs.options`)."""
    return ImageEncoder(**_fields(ImageEncoder, options), dtype=dtype)


def text_shapes(options: Mapping[str, Any]) -> Any:
    """The shapes of the params of a text encoder."""
    return params.shapes_of(text_module(options).init, jnp.zeros((1, 1), jnp.int32))


def image_shapes(options: Mapping[str, Any]) -> Any:
    """The shapes of the params of an image encoder."""
    return params.shapes_of(image_module(options).init, jnp.zeros((1, options["size"], options["size"], 3)))


def text_params(part: Part) -> Any:
    """The lazy params of a text encoder."""
    return loading.lazy_params(part, text_shapes)


def image_params(part: Part) -> Any:
    """The lazy params of an image encoder."""
    return loading.lazy_params(part, image_shapes)


def _fields(kind: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    named = {name: options[name] for name in kind.__dataclass_fields__ if name in options}
    return named | {"activation": ACTIVATIONS[options["activation"]]}
