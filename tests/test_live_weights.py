"""Networks go to diffusers and come from it, where PyTorch and diffusers are installed: each computes what the other does."""

import jax
import jax.numpy as jnp
import numpy as np
import published_configs
import pytest

from jaxdiff import interop
from jaxdiff.interop import chains, loading
from jaxdiff.interop.parts import find

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

CONFIGS = {
    "sd1": ("UNet2DConditionModel", published_configs.SD1),
    "sd2": ("UNet2DConditionModel", published_configs.SD2),
    "sdxl": ("UNet2DConditionModel", published_configs.SDXL),
    "ddpm": ("UNet2DModel", published_configs.DDPM),
    "consistency": ("UNet2DModel", published_configs.CONSISTENCY_DIFFUSERS),
}
STEPS = np.array([3, 871])


def with_drawn_params(module):
    """The module with params of which none is zero."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for param in module.parameters():
            param += 0.02 * torch.randn(param.shape, generator=generator)
    return module.eval()


def given_to(options):
    draws = np.random.RandomState(0)
    given = {}
    if options.get("context_channels"):
        given["context"] = draws.normal(size=(2, 7, options["context_channels"])).astype(np.float32)
    if options.get("pooled_channels"):
        given["pooled"] = draws.normal(size=(2, options["pooled_channels"])).astype(np.float32)
        given["sizes"] = np.float32([[64, 64, 0, 0, 64, 64], [32, 64, 8, 0, 64, 64]])
    if options["num_classes"]:
        given["label"] = np.array([0, 2])
    return given


def published_output(module, x, given):
    tensors = {name: torch.tensor(value) for name, value in given.items()}
    named = {"encoder_hidden_states": tensors["context"]} if "context" in tensors else {}
    if "pooled" in tensors:
        named["added_cond_kwargs"] = {"text_embeds": tensors["pooled"], "time_ids": tensors["sizes"]}
    if "label" in tensors:
        named["class_labels"] = tensors["label"]
    with torch.no_grad():
        return np.moveaxis(module(torch.tensor(np.moveaxis(x, -1, 1)), torch.tensor(STEPS), **named).sample.numpy(), 1, -1)


def own_output(params, options, x, given):
    alpha2 = np.cumprod(1 - chains.DDPM.values())[STEPS]
    chain = chains.DDPM
    part = loading.Part(options, {}, 1, "")
    apply = jax.jit(loading.network(part, chain))
    return apply(params, jnp.asarray(x), jnp.asarray(np.log(alpha2 / (1 - alpha2)), jnp.float32), given)


@pytest.mark.parametrize("name", CONFIGS)
def test_unets_to_diffusers_and_from_it(name, tmp_path):
    kind, settings = CONFIGS[name]
    module = with_drawn_params(getattr(diffusers, kind).from_config(settings))
    module.save_pretrained(tmp_path / "theirs")
    part = find(tmp_path / "theirs").unet
    params = interop.load(tmp_path / "theirs").params
    x = np.random.RandomState(1).normal(size=(2, 16, 16, part.options["in_channels"])).astype(np.float32)
    given = given_to(part.options)
    theirs = published_output(module, x, given)
    ours = own_output(params, part.options, x, given)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * np.abs(theirs).max())
    moved = jax.tree.map(lambda leaf: (leaf + 0.01).astype(np.float32), params)
    interop.save_network(tmp_path / "ours", interop.Network(moved, part.options, (16, 16)))
    again = getattr(diffusers, kind).from_pretrained(tmp_path / "ours").eval()
    ours = own_output(moved, part.options, x, given)
    np.testing.assert_allclose(published_output(again, x, given), ours, rtol=0, atol=1e-5 * np.abs(ours).max())


@pytest.mark.parametrize(("kind", "settings"), [("AutoencoderKL", published_configs.KL), ("VQModel", published_configs.VQ)])
def test_autoencoders_to_diffusers_and_from_it(kind, settings, tmp_path):
    module = with_drawn_params(getattr(diffusers, kind).from_config(settings))
    module.save_pretrained(tmp_path / "theirs")
    part = find(tmp_path / "theirs").autoencoder
    options, params = part.options, jax.tree.map(np.asarray, loading.autoencoder_params(part))
    interop.save_network(tmp_path / "ours", interop.Network(params, options, (16, 16)))
    encode, decode = interop.autoencoder(tmp_path / "theirs")
    images = np.random.RandomState(1).normal(size=(2, 16, 16, 3)).astype(np.float32)
    again = getattr(diffusers, kind).from_pretrained(tmp_path / "ours").eval()
    with torch.no_grad():
        coded = again.encode(torch.tensor(np.moveaxis(images, -1, 1)))
        mean = (coded.latent_dist.mean if kind == "AutoencoderKL" else coded.latents).numpy()
        decoded = again.decode(torch.tensor(mean)).sample.numpy()
    latents = encode(jnp.asarray(images)) / options["scaling_factor"]
    np.testing.assert_allclose(latents, np.moveaxis(mean, 1, -1), rtol=0, atol=1e-5 * np.abs(mean).max())
    ours = decode(jnp.asarray(np.moveaxis(mean, 1, -1)) * options["scaling_factor"])
    np.testing.assert_allclose(ours, np.moveaxis(decoded, 1, -1), rtol=0, atol=1e-5 * np.abs(decoded).max())
