"""Functions of the core called without jit: a second call of the same program compiles nothing."""

import functools
import gc
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdiff as jd
from jaxdiff import cascade, editing, guidance, likelihood, oracles, process
from jaxdiff.cascade import Stage
from jaxdiff.likelihood import vae

DATA = oracles.mixture([0.5, 0.5], [[1.0, 1.0], [-1.0, -1.0]], [0.3, 0.4])
KEY = jax.random.key(1)
DENOISE = oracles.denoiser(DATA)
FLOW = oracles.flow_map(oracles.gaussian([0.5, -0.3], [0.4, 0.8]))
X = np.linspace(-1, 1, 8, dtype=np.float32).reshape(4, 2)


@functools.cache
def levels():
    return jax.jit(lambda: jd.grid(jd.uniform_logsnr(jd.cosine()), 6, t_min=0.0))()


def stages():
    def half(given):
        return lambda x, level: x / 2

    return [
        Stage(half, jd.ddim(), levels(), (2, 2, 1)),
        Stage(half, jd.ddim(), levels(), (4, 4, 1), factor=2, augmentation=jd.cosine()(0.2)),
    ]


def encode(x0):
    return x0 / 2, jnp.ones_like(x0)


def decode(z, x0):
    return likelihood.gaussian(x0, z, jnp.ones(()))


CALLS = {
    **{
        name: lambda sampler=sampler: jd.sample(sampler(), DENOISE, X, levels(), KEY)
        for name, sampler in {
            "ddim": jd.ddim,
            "ddpm": jd.ddpm,
            "heun": jd.heun,
            "unipc": jd.unipc,
            "churn": lambda: jd.churn(jd.heun()),
            "overshoot": lambda: jd.samplers.overshoot(levels()),
            "inpaint": lambda: editing.resampled(editing.inpaint(jd.ddpm(), X, jnp.array([True, False])), 2),
        }.items()
    },
    "consistency": lambda: jd.sample(jd.consistency(), FLOW, X, levels(), KEY),
    "trajectory": lambda: jd.trajectory(jd.ddim(), DENOISE, X, levels(), KEY),
    "guided": lambda: jd.sample(jd.ddim(), jd.guide(DENOISE, FLOW, 2.0), X, levels(), KEY),
    "interval": lambda: guidance.interval(DENOISE, FLOW, 0.1, 2.0)(X, jd.cosine()(0.5)),
    "sdedit": lambda: editing.sdedit(jd.ddpm(), DENOISE, X, levels(), KEY),
    "invert": lambda: editing.invert(jd.ddim(), DENOISE, X, levels(), KEY),
    "posterior_guide": lambda: editing.posterior_guide(DENOISE, lambda x: x, X, 0.1)(X, jd.cosine()(0.5)),
    "discrete_bound": lambda: likelihood.discrete_bound(DENOISE, X, levels(), KEY, likelihood.gaussian),
    "continuous_bound": lambda: likelihood.continuous_bound(DENOISE, X, jd.cosine(), KEY, likelihood.gaussian),
    "flow": lambda: likelihood.flow_log_density(DENOISE, X, levels(), KEY, jd.dpmpp_3m(), likelihood.exact()),
    "elbo": lambda: vae.elbo(encode, decode, X, KEY),
    "importance_bound": lambda: vae.importance_bound(encode, decode, X, KEY),
    "cascade": lambda: cascade.sample(stages(), KEY, 2),
    "cascade.trajectory": lambda: cascade.trajectory(stages(), KEY, 2, [1, 6]),
    "grid": lambda: jd.grid(jd.uniform_logsnr(jd.cosine()), 6, t_min=0.0),
    "karras_spaced": lambda: process.karras_spaced(jd.cosine())(0.5),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_second_call_compiles_nothing_and_gives_the_same(name, compilations):
    first = CALLS[name]()
    compilations.clear()
    second = CALLS[name]()
    assert not compilations
    jax.tree.map(np.testing.assert_array_equal, first, second)


def test_other_params_of_the_same_shape_are_used_and_compile_nothing(compilations):
    """Arrays in a denoiser's closure are arguments of the program; what a function reads anew in each call is not kept."""
    box = {}

    def network(x, logsnr):
        return jnp.tanh(x @ box["w"])

    denoise = jd.denoiser(network, jd.predict_v)
    for number in range(3):
        box["w"] = jnp.full((2, 2), 0.1 * number)
        expected = jax.jit(functools.partial(jd.sample, jd.ddim(), jd.denoiser(network, jd.predict_v)))(X, levels(), KEY)
        compilations.clear()
        np.testing.assert_allclose(jd.sample(jd.ddim(), denoise, X, levels(), KEY), expected, rtol=1e-5)
        assert len(compilations) == (number == 0)


def test_inside_transforms_it_is_the_plain_function():
    def total(x):
        return jd.sample(jd.ddim(), DENOISE, x, levels(), KEY).sum()

    for transformed in (jax.grad(total), jax.vmap(lambda x: total(x[None]))):
        np.testing.assert_allclose(transformed(X), jax.jit(transformed)(X), rtol=1e-5)
    scaled = jax.grad(lambda scale: jd.sample(jd.ddim(), lambda x, level: scale * DENOISE(x, level), X, levels(), KEY).sum())(1.0)
    assert np.isfinite(scaled)
    assert scaled != 0


def test_an_error_is_the_users_own():
    def network(x, logsnr):
        raise RuntimeError("of the network")

    with pytest.raises(RuntimeError, match="of the network"):
        jd.sample(jd.ddim(), jd.denoiser(network, jd.predict_v), X, levels(), KEY)


def test_calls_take_no_memory():
    resident = pathlib.Path("/proc/self/statm")
    if not resident.exists():
        pytest.skip("reads the process's memory from /proc")

    def megabytes():
        gc.collect()
        return int(resident.read_text().split()[1]) * 4096 / 1e6

    def calls(num):
        for _ in range(num):
            jd.sample(jd.ddim(), lambda x, level: x / 2, X, levels(), KEY)

    def grows():
        before = megabytes()
        calls(50)
        return megabytes() - before >= 1

    calls(10)
    assert not all(grows() for _ in range(3))  # once it may, by what else is in the process
