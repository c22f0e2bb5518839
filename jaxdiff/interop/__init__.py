"""Published weights, in and out: of diffusers, CompVis and OpenAI, read without PyTorch and without running what they hold."""

from jaxdiff.interop.hub import fetch, is_hub_name
from jaxdiff.interop.loading import Loaded, autoencoder, denoiser, load, schedule
from jaxdiff.interop.lora import Adapters, load_lora, save_lora
from jaxdiff.interop.saving import Network, save_network, save_pipeline
from jaxdiff.interop.tensors import Tensors, open_tensors, save_tensors
from jaxdiff.interop.text_saving import TextNetwork
from jaxdiff.interop.texts import Encoded, image_encoder, pooled_text_encoder, text_encoder
from jaxdiff.interop.tokens import Tokenizer, tokenizer
from jaxdiff.interop.words import word_tokenizer
from jaxdiff.io.lazy import Lazy

__all__ = [
    "Adapters",
    "Encoded",
    "Lazy",
    "Loaded",
    "Network",
    "Tensors",
    "TextNetwork",
    "Tokenizer",
    "autoencoder",
    "denoiser",
    "fetch",
    "image_encoder",
    "is_hub_name",
    "load",
    "load_lora",
    "open_tensors",
    "pooled_text_encoder",
    "save_lora",
    "save_network",
    "save_pipeline",
    "save_tensors",
    "schedule",
    "text_encoder",
    "tokenizer",
    "word_tokenizer",
]
