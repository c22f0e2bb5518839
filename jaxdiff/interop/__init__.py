"""Published weights, in and out: of diffusers, CompVis and OpenAI, read without PyTorch and without running what they hold."""

from jaxdiff.interop.hub import fetch, is_hub_name
from jaxdiff.interop.loading import Loaded, autoencoder, denoiser, load, schedule
from jaxdiff.interop.lora import Adapters, load_lora, save_lora
from jaxdiff.interop.saving import Network, save_network, save_pipeline
from jaxdiff.interop.tensors import Tensors, open_tensors, save_tensors
from jaxdiff.io.lazy import Lazy

__all__ = [
    "Adapters",
    "Lazy",
    "Loaded",
    "Network",
    "Tensors",
    "autoencoder",
    "denoiser",
    "fetch",
    "is_hub_name",
    "load",
    "load_lora",
    "open_tensors",
    "save_lora",
    "save_network",
    "save_pipeline",
    "save_tensors",
    "schedule",
]
