"""Published networks as functions: their params, denoiser, noise schedule and autoencoder."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.tree_util import Partial
from jax.typing import DTypeLike

from jaxdiff import process
from jaxdiff.denoiser import Denoiser, Parameterization, edm, predict_noise, predict_v, predict_velocity, predict_x0
from jaxdiff.denoiser import denoiser as denoiser_of
from jaxdiff.interop import autoencoder_names, dit_names, inferred, params, text_names, unet_names
from jaxdiff.interop.autoencoder_names import CODES
from jaxdiff.interop.chains import Chain
from jaxdiff.interop.modules import module, unet_shapes
from jaxdiff.interop.parts import Found, Part, find
from jaxdiff.interop.unet_names import Row
from jaxdiff.io import few
from jaxdiff.io.errors import ConfigError, DataError, first_line
from jaxdiff.models import autoencoder as autoencoders
from jaxdiff.models import unet as unets
from jaxdiff.models.given import GIVEN
from jaxdiff.objectives import codebook

PREDICTIONS: dict[str, Parameterization] = {
    "noise": predict_noise,
    "v": predict_v,
    "x0": predict_x0,
    "velocity": predict_velocity,
}
TRAINING = ("loss.", "model_ema.")  # what CompVis' autoencoders were trained with
LATENT = ("latent", "codebook")  # params beside encoder and decoder, which published files have otherwise


class Loaded(NamedTuple):
    """A published UNet: float32 params, its options, and what makes a denoiser of it.

    `network(params, x, logsnr, given)` returns what the file's network predicts, with a learned variance behind it if it has one.
    """

    params: Any
    config: dict[str, Any]
    network: Callable[..., Array]
    schedule: process.Schedule
    parameterization: Parameterization


def load(path: pathlib.Path | str, param_dtype: DTypeLike = np.float32, **options: Any) -> Loaded:
    """The UNet at a path: of diffusers (a pipeline or its unet), CompVis or OpenAI; params are of `param_dtype`.

    Options, such as `head_channels=32`, replace what the file's names and shapes do not say.

    Raises:
        ConfigError: there is no such file, or no UNet in it.
        DataError: a file is damaged, or does not fit its network, or is of a network that jaxdiff does not have.
    """
    found = find(path)
    part, chain = with_options(_unet_of(found, path), options), _chain_of(found, path)
    tree, config = jax.tree.map(partial(np.asarray, dtype=param_dtype), unet_params(part)), {**part.options, **chain.told}
    return Loaded(tree, config, network(part, chain), schedule_of(chain), parameterization(chain))


def denoiser(path: pathlib.Path | str, **more: Any) -> Denoiser:
    """The denoiser of the UNet at a path, `(x, level) -> x0`, of latents where the model has them.

    More is what the network is given (`models.given.GIVEN`): a label `[B]`, context `[B, T, D]`, pooled and sizes; and options, as
    `load` takes them. It is a `jax.tree_util.Partial`: passed to a compiled function as an argument, its params are arguments too.

    Raises:
        ConfigError: there is no such file, or no UNet in it.
        DataError: a file is damaged, or does not fit its network, or is of a network that jaxdiff does not have.
    """
    loaded = load(path, **{name: value for name, value in more.items() if name not in GIVEN})
    given = {name: jnp.asarray(value) for name, value in more.items() if name in GIVEN}
    if loaded.config.get("num_classes") and "label" not in given:
        raise ConfigError(f"{path} is of {loaded.config['num_classes']} classes; give labels [B], label=")

    def denoise(params: Any, given: Mapping[str, Array], x: Array, level: process.Level) -> Array:
        def predict(x: Array, logsnr: Array) -> Array:
            return loaded.network(params, x, logsnr, given)[..., : x.shape[-1]]

        return denoiser_of(predict, loaded.parameterization)(x, level)

    return Partial(denoise, loaded.params, given)


def schedule(path: pathlib.Path | str) -> process.Schedule:
    """The noise schedule at a path, where t = (i + 1) / T is the published time step i.

    Raises:
        ConfigError: there is no such file, or no UNet in it.
        DataError: a file is damaged, or of a schedule that jaxdiff does not know.
    """
    return schedule_of(_chain_of(find(path), path))


def autoencoder(path: pathlib.Path | str) -> tuple[Callable[[Array], Array], Callable[[Array], Array]]:
    """The functions encode and decode of the autoencoder at a path, between images in [-1, 1] and latents as its UNet sees them.

    Encode returns the mean.

    Raises:
        ConfigError: there is no such file, or no autoencoder in it.
        DataError: a file is damaged, or does not fit its network, or is of a network that jaxdiff does not have.
    """
    part = find(path).autoencoder
    if part is None:
        raise ConfigError(f"{path} holds no autoencoder")
    encoder, decoder = autoencoder_modules(part.options)
    tree = jax.tree.map(np.asarray, autoencoder_params(part))
    encode, decode = autoencoders.encode(encoder), autoencoders.decode(decoder)
    shift, scale = (tree["latent"][name][None, None, None] for name in ("shift", "scale"))

    def to_latents(tree: Any, x0: Array) -> Array:
        return (encode(tree, x0)[0] - shift) / scale

    def to_images(tree: Any, z: Array) -> Array:
        z = z * scale + shift
        return decode(tree, _nearest(tree, z) if "codebook" in tree else z)

    return Partial(to_latents, tree), Partial(to_images, tree)


def with_options(part: Part, options: Mapping[str, Any]) -> Part:
    """The part with other options in place of those that its file does not say."""
    if wrong := [name for name in options if name not in part.options]:
        raise ConfigError(f"{part.where} has no option {wrong[0]!r}; it has {', '.join(part.options)}")
    return part._replace(options={**part.options, **options})


def rows(part: Part) -> list[Row]:
    """The table of names of a part."""
    if part.options["kind"] == "autoencoder":
        return autoencoder_names.table(part.options, part.column)
    if part.options["kind"] in ("text", "image"):
        return text_names.table(part.options, part.column)
    if part.options["kind"] == "dit":
        return dit_names.table(part.options, part.column)
    new_order = part.options.get("new_order", False)
    return unet_names.table(part.options, part.column, part.options["linear_projection"], new_order)


def unet_params(part: Part) -> Any:
    """The lazy params of a UNet."""
    return lazy_params(part, unet_shapes)


def autoencoder_modules(options: Mapping[str, Any]) -> tuple[autoencoders.Encoder, autoencoders.Decoder]:
    """Encoder and decoder of such options."""
    kinds = (autoencoders.Encoder, autoencoders.Decoder)
    named = [{name: options[name] for name in kind.__dataclass_fields__ if name in options} for kind in kinds]
    moments = 1 if options["codebook"] else 2
    return autoencoders.Encoder(**named[0], moments=moments), autoencoders.Decoder(**named[1], out_channels=options["in_channels"])


def autoencoder_shapes(options: Mapping[str, Any]) -> Any:
    """The shapes of the params of an autoencoder, of encoder and decoder."""
    encoder, decoder = autoencoder_modules(options)
    size = 2 ** len(options["multipliers"])
    codes = jnp.zeros((1, 2, 2, options["latent_channels"]))
    shapes = {"encoder": params.shapes_of(encoder.init, jnp.zeros((1, size, size, options["in_channels"])))}
    return shapes | {"decoder": params.shapes_of(decoder.init, codes)}


def autoencoder_params(part: Part) -> Any:
    """The lazy params of an autoencoder, with the shift and scale of its latents, and its codes."""
    options = part.options
    tree = lazy_params(part, autoencoder_shapes)
    width = options["latent_channels"]
    shift, scale = np.full(width, options["shift_factor"], np.float32), np.full(width, 1 / options["scaling_factor"], np.float32)
    tree["latent"] = {"shift": shift, "scale": scale}
    if options["codebook"]:
        codes = np.asarray(part.arrays[CODES], np.float32) if CODES in part.arrays else np.zeros((0, 0), np.float32)
        if codes.shape != (wanted := (options["codebook"], width)):
            raise DataError(f"{part.where} does not fit its network: {CODES} is {list(codes.shape)}, not {list(wanted)}")
        share = np.full(len(codes), 1 / len(codes), np.float32)
        tree["codebook"] = {"share": share, "sum": codes * share[:, None]}
    return tree


def lazy_params(part: Part, shapes_of: Callable[[Mapping[str, Any]], Any]) -> Any:
    """Params by the table of names, of a file that holds these and no others; `shapes_of` gives their shapes of options.

    Raises:
        DataError: the file holds others, or no network can be made of its options.
    """
    try:
        table, shapes = rows(part), shapes_of(part.options)
    except (ValueError, TypeError, ArithmeticError, LookupError, AssertionError) as error:
        raise DataError(f"{part.where} has options of which no network can be made ({first_line(error)})") from error
    tree = params.load(table, shapes, part.arrays, part.where, _hint(part))
    unknown = params.unknown(table, shapes, part.arrays)
    codes = [CODES] if part.options.get("codebook") else []
    if more := [name for name in unknown if name not in codes and not name.startswith(TRAINING)]:
        raise DataError(f"{part.where} does not fit its network, which has no place for {few(more)}")
    return tree


def _nearest(tree: Any, z: Array) -> Array:
    return codebook.quantized(tree["codebook"], z).code


def network(part: Part, chain: Chain) -> Callable[..., Array]:
    """The UNet as a function `(params, x, logsnr, given)`, told of logsnr what it was trained to be told."""
    apply, step = unets.network(module(part.options)), process.timestep_of(chain.values())

    def told(logsnr: Array) -> Array:  # 250 log sigma (Song et al. 2023, published code), alpha of rectified flow, or a time step
        if chain.straight:
            return jax.nn.sigmoid(logsnr / 2)
        return -chain.told["told_scale"] / 2 * logsnr if chain.consistency else step(logsnr)

    return lambda params, x, logsnr, given: apply(params, x, told(logsnr), given)


def schedule_of(chain: Chain) -> process.Schedule:
    """The schedule of a chain; that of consistency models is EDM's."""
    if chain.straight:
        return process.rectified_flow()
    return process.karras() if chain.consistency else process.from_betas(chain.values())


def parameterization(chain: Chain) -> Parameterization:
    """What the networks of a chain predict."""
    return edm(sigma_min=chain.consistency) if chain.consistency else PREDICTIONS[chain.prediction]


def _unet_of(found: Found, path: pathlib.Path | str) -> Part:
    if found.unet is None:
        opens = "text_encoder" if found.texts else "image_encoder" if found.image else "autoencoder"
        raise ConfigError(f"{path} holds no UNet; jaxdiff.interop.{opens} opens it")
    return found.unet


def _chain_of(found: Found, path: pathlib.Path | str) -> Chain:
    if found.chain is None:
        raise ConfigError(f"{path} holds no noise schedule")
    return found.chain


def _hint(part: Part) -> str:
    known = inferred.family(part.arrays)
    return f"its names look like {known}" if known else ""
