"""Compression: the autoencoder of latent diffusion, trained with a perceptual and an adversarial loss (Esser et al. 2021)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxdiff.likelihood.vae import Posterior, channel_kl, reparameterized
from jaxdiff.objectives import codebook
from jaxdiff.objectives.rng import batch_key, keys_of
from jaxdiff.objectives.types import Objective, Params

Terms = dict[str, Array]
Bottleneck = Callable[[Params, Any, Mapping[str, Array], Array], tuple[Array, Array, Terms]]
# (params, state, batch, key) -> latents [B, h, w, C], penalty [], terms to report
Decode = Callable[[Params, Array], Array]  # (params, latents) -> images [B, H, W, C]
Distance = Callable[[Any, Array, Array], Array]  # (frozen, x0, reconstruction) -> distance []


class Adversary(NamedTuple):
    """The discriminator and how its loss enters.

    Attributes:
        discriminate: `(params, images [B, H, W, C]) -> scores` of patches, high for real ones.
        last_layer: path in the params of the decoder's last kernel, at which gradients are balanced.
        weight: of the adversarial loss, relative to the balance.
        start: step from which the discriminator is trained and used. Adam counts the steps before as well, as in the paper's code,
            so its first updates are a few times the learning rate.
    """

    discriminate: Callable[[Params, Array], Array]
    last_layer: Sequence[str]
    weight: float = 0.5
    start: int = 0


def compression(bottleneck: Bottleneck, decode: Decode, distance: Distance, adversary: Adversary | None = None) -> Objective:
    """`distance + penalty + weight * balance * -score(x_hat) + hinge`: generator and discriminator in one loss.

    Rombach et al. (2022), eq. 25. The gradient of each is stopped at the other's params, so that one step trains both. The
    hinge loss is that of Lim & Ye (2017), the balance that of Esser et al. (2021), eq. 7: the ratio of the norms of the two
    gradients at the decoder's last kernel. It is computed from the rows of one program: under jit from the whole
    batch on every mesh, under pmap from each device's rows.
    """

    def objective(params: Params, state: Any, batch: Mapping[str, Array], key: Array) -> tuple[Array, Terms]:
        x0 = batch["image"]
        z, penalty, terms = bottleneck(params, state, batch, key)
        reconstruction = decode(params, z)
        gap = distance(state.frozen, x0, reconstruction)
        terms = {"reconstruction": gap, "penalty": penalty, "psnr": jnp.mean(psnr(x0, reconstruction)), **terms}
        if adversary is None:
            return gap + penalty, terms
        on = (state.step >= adversary.start).astype(gap.dtype)
        balance = on * adversary.weight * _balance(adversary, decode, partial(distance, state.frozen, x0), params, z)
        adversarial = -jnp.mean(adversary.discriminate(jax.lax.stop_gradient(params), reconstruction))
        hinge = on * _hinge(adversary, params, x0, jax.lax.stop_gradient(reconstruction))
        generator = gap + penalty + balance * adversarial
        terms |= {"generator": generator, "discriminator": hinge, "fooling": adversarial, "balance": balance}
        return generator + hinge, terms

    return objective


def kl_bottleneck(encode: Callable[[Params, Array], Posterior | tuple[Array, Array]], weight: float = 1e-6) -> Bottleneck:
    """Latents drawn from a Gaussian, at `weight * KL(q(z | x0) || N(0, I))` nats per dimension of x0 (Rombach et al. 2022, G)."""

    def bottleneck(params: Params, state: Any, batch: Mapping[str, Array], key: Array) -> tuple[Array, Array, Terms]:
        x0 = batch["image"]
        posterior = Posterior(*encode(params, x0))
        kl = jnp.mean(jnp.sum(channel_kl(posterior), axis=-1)) / math.prod(x0.shape[1:])
        return reparameterized(posterior, keys_of(key, batch["index"])), weight * kl, {"kl": kl}

    return bottleneck


def codebook_bottleneck(
    encode: Callable[[Params, Array], Array], commitment: float = 0.25, decay: float = 0.99, revive_until: int | None = None
) -> Bottleneck:
    """Latents replaced by the nearest code, with a straight-through gradient from decoder to encoder.

    van den Oord et al. (2017), eq. 3 without its second term: the codes of `params["codebook"]` are running means (see
    `codebook`), with a learning rate of `1 - decay` in their own optimizer.

    Args:
        encode: `(params, x0) -> latents [B, h, w, C]`.
        commitment: weight of the mean squared distance of latents from their codes.
        decay: of the running means.
        revive_until: step after which dead codes are not replaced, so that averaged params settle; None: always replaced.
    """

    def bottleneck(params: Params, state: Any, batch: Mapping[str, Array], key: Array) -> tuple[Array, Array, Terms]:
        z = encode(params, batch["image"])
        code, chosen = codebook.quantized(params["codebook"], z)
        revive = True if revive_until is None else state.step < revive_until
        key = batch_key(key, batch["index"])
        followed = codebook.following(params["codebook"], z, chosen, key, decay, revive)
        committed = commitment * jnp.mean((z - code) ** 2)
        straight = z + jax.lax.stop_gradient(code - z)
        return straight, committed + followed, codebook.usage(chosen, len(params["codebook"]["share"]))

    return bottleneck


def pixel_distance(norm: Callable[[Array], Array] = jnp.abs) -> Distance:
    """The mean of `norm(x0 - x_hat)` over all pixels, by default L1."""
    return lambda frozen, x0, reconstruction: jnp.mean(norm(x0 - reconstruction))


def perceptual_distance(features: Callable[[Any, Array], Sequence[Array]]) -> Distance:
    """The squared distance of features `[B, h, w, C]`, mean over positions, summed over layers (Zhang et al. 2018, eq. 1).

    Args:
        features: `(frozen, images) -> activations` of several layers, each a unit vector over channels.
    """

    def distance(frozen: Any, x0: Array, reconstruction: Array) -> Array:
        pairs = zip(features(frozen, x0), features(frozen, reconstruction), strict=True)
        return sum((jnp.mean(jnp.sum((a - b) ** 2, axis=-1)) for a, b in pairs), jnp.zeros(()))

    return distance


def weighted(*parts: tuple[float, Distance]) -> Distance:
    """The sum of distances, each times its weight."""
    return lambda frozen, x0, x_hat: sum((weight * part(frozen, x0, x_hat) for weight, part in parts), jnp.zeros(()))


def psnr(x0: Array, reconstruction: Array) -> Array:
    """The peak signal-to-noise ratio `10 log10(2^2 / mean squared error)` of each image in [-1, 1], in dB, `[B]`."""
    error = jnp.mean((x0 - jnp.clip(reconstruction, -1, 1)) ** 2, axis=tuple(range(1, x0.ndim)))
    return 10 * jnp.log10(4 / jnp.maximum(error, 1e-10))


def _hinge(adversary: Adversary, params: Params, x0: Array, reconstruction: Array) -> Array:
    real, fake = (adversary.discriminate(params, images) for images in (x0, reconstruction))
    return (jnp.mean(jax.nn.relu(1 - real)) + jnp.mean(jax.nn.relu(1 + fake))) / 2


def _balance(adversary: Adversary, decode: Decode, gap: Callable[[Array], Array], params: Params, z: Array) -> Array:
    params, z = jax.lax.stop_gradient((params, z))
    kernel = params
    for name in adversary.last_layer:
        kernel = kernel[name]
    reconstruction, pull = jax.vjp(lambda k: decode(_replaced(params, adversary.last_layer, k), z), kernel)
    adversarial = jax.grad(lambda images: -jnp.mean(adversary.discriminate(params, images)))
    of_gap, of_adversarial = (
        jnp.linalg.norm(jnp.ravel(pull(gradient(reconstruction))[0])) for gradient in (jax.grad(gap), adversarial)
    )
    return jnp.clip(of_gap / (of_adversarial + 1e-4), 0, 1e4)


def _replaced(tree: Any, path: Sequence[str], leaf: Array) -> Any:
    first, *rest = path
    return {**tree, first: _replaced(tree[first], rest, leaf) if rest else leaf}
