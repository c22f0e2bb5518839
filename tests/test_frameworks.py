"""A network of any framework is a function: the same weights give the same samples."""

from functools import partial

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxdiff as jd

WIDTH, SIZE = 16, 2


def weights():
    keys = jax.random.split(jax.random.key(0), 2)
    return [(jax.random.normal(k, shape) / shape[0], jnp.ones(shape[1:])) for k, shape in zip(keys, shapes(), strict=True)]


def shapes():
    return (SIZE + 1, WIDTH), (WIDTH, SIZE)


def inputs(x, logsnr):
    return jnp.concatenate([x, logsnr[..., None] / 15], axis=-1)


def plain(params, x, logsnr):
    (first, shift), (second, last) = params
    return jax.nn.silu(inputs(x, logsnr) @ first + shift[None]) @ second + last[None]


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x, logsnr):
        return nn.Dense(SIZE, name="second")(nn.silu(nn.Dense(WIDTH, name="first")(inputs(x, logsnr))))


def linen():
    params = {n: {"kernel": k, "bias": b} for n, (k, b) in zip(("first", "second"), weights(), strict=True)}
    return {"params": params}, Linen().apply


class Nnx(nnx.Module):
    def __init__(self, rngs):
        self.first, self.second = (nnx.Linear(*shape, rngs=rngs) for shape in shapes())

    def __call__(self, x, logsnr):
        return self.second(nnx.silu(self.first(inputs(x, logsnr))))


def with_nnx():
    model = Nnx(nnx.Rngs(0))
    for layer, (kernel, bias) in zip((model.first, model.second), weights(), strict=True):
        layer.kernel.set_value(kernel)
        layer.bias.set_value(bias)
    graph, state = nnx.split(model)
    return state, lambda state, x, logsnr: nnx.merge(graph, state)(x, logsnr)


class Equinox(eqx.Module):
    first: eqx.nn.Linear
    second: eqx.nn.Linear

    def __call__(self, x, logsnr):  # of one example
        return self.second(jax.nn.silu(self.first(inputs(x, logsnr))))


def equinox():
    layers = [eqx.nn.Linear(*shape, key=jax.random.key(0)) for shape in shapes()]
    layers = [
        eqx.tree_at(lambda layer: (layer.weight, layer.bias), layer, (kernel.T, bias))
        for layer, (kernel, bias) in zip(layers, weights(), strict=True)
    ]
    return Equinox(*layers), lambda model, x, logsnr: jax.vmap(model)(x, logsnr)


def end_and_gradient(network, params):
    """The sum of squares of samples of the network, and its gradient."""
    levels, x = jd.grid(jd.cosine(), 8), jax.random.normal(jax.random.key(1), (4, SIZE))

    def end(params):
        denoise = jd.denoiser(partial(network, params), jd.predict_v)
        return jnp.sum(jd.sample(jd.dpmpp_2m(), denoise, x, levels, jax.random.key(2)) ** 2)

    return jax.jit(jax.value_and_grad(end))(params)


@pytest.fixture(scope="module")
def expected():
    return end_and_gradient(plain, weights())


@pytest.mark.parametrize("framework", [linen, with_nnx, equinox])
def test_the_same_weights_give_the_same_samples_and_gradients(framework, expected):
    params, network = framework()
    found, gradient = end_and_gradient(network, params)
    np.testing.assert_allclose(found, expected[0], rtol=1e-5)
    sizes = [sorted(float(np.linalg.norm(leaf)) for leaf in jax.tree.leaves(tree)) for tree in (gradient, expected[1])]
    np.testing.assert_allclose(*sizes, rtol=1e-4)
