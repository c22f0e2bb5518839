"""Samplers as users run them: one compilation, gradients, a sharded batch, a file that needs no jaxdiff."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import SAMPLERS, clouds
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jaxdiff as jd
from jaxdiff import guidance, oracles


def labelled(label):
    """A denoiser of the cloud that each example's label `[B]` names."""
    data = clouds()

    def denoise(x, level):
        alone = [oracles.denoiser(oracles.conditional(data, jnp.arange(3) == k))(x, level) for k in range(3)]
        return jnp.select([label[:, None] == k for k in range(3)], alone)

    return denoise


def test_schedule_scale_eta_and_labels_compile_nothing_anew():
    traces = []

    @jax.jit
    def sample(x, levels, label, scale, eta, share, key):
        traces.append(None)
        denoise = guidance.rescaled(jd.guide(labelled(label), oracles.denoiser(clouds()), scale), labelled(label), share)
        return jd.sample(jd.churn(jd.ddim(eta), 0.1 * eta), jd.clip(denoise), x, levels, key)

    x, near = jnp.ones((6, 2)), []
    for number, schedule in enumerate((jd.cosine(), jd.linear(), jd.karras_spaced(jd.cosine()))):
        label = (jnp.arange(6) + number) % 3
        levels, of = jd.grid(schedule, 12), jnp.float32
        x0 = sample(x, levels, label, of(1 + number), of(0.5 * number), of(0.1 * number), jax.random.key(number))
        near.append(jnp.linalg.norm(x0 - clouds().means[label], axis=-1))
    assert len(traces) == 1
    assert float(jnp.median(jnp.stack(near))) < 0.6  # and the labels were heard


def test_gradient_through_a_checkpointed_sampler_is_the_same_in_less_memory():
    weights = jax.random.normal(jax.random.key(0), (2, 512)) / 10
    levels, x = jd.grid(jd.cosine(), 64), jax.random.normal(jax.random.key(1), (256, 2))

    def end(weights, checkpoint):
        def denoise(x, level):
            return jnp.tanh(x @ weights) @ weights.T

        denoise = jax.checkpoint(denoise) if checkpoint else denoise
        return jnp.sum(jd.sample(jd.heun(), denoise, x, levels, jax.random.key(2)) ** 2)

    plain, saved = (jax.jit(jax.grad(lambda w, c=c: end(w, c))).lower(weights).compile() for c in (False, True))
    np.testing.assert_allclose(plain(weights), saved(weights), rtol=1e-4, atol=1e-4)
    sizes = [compiled.memory_analysis().temp_size_in_bytes for compiled in (plain, saved)]
    assert sizes[1] < 0.1 * sizes[0]


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_sharded_batch_gives_the_same_bits(name):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    levels, x = jd.grid(jd.cosine(-10.0), 12), jax.random.normal(jax.random.key(1), (64, 2))
    denoise = lambda x, level: jnp.tanh(level.alpha * x)  # noqa: E731
    sample = jax.jit(lambda x, levels: jd.sample(SAMPLERS[name], denoise, x, levels, jax.random.key(0)))
    spread = sample(jax.device_put(x, sharding), levels)
    assert len(spread.sharding.device_set) == 8
    np.testing.assert_array_equal(spread, sample(x, levels))


def test_an_exported_sampler_runs_where_there_is_no_jaxdiff(tmp_path):
    """For CPU, CUDA and TPU, and a batch of any size, from a file."""
    batch = jax.export.symbolic_shape("b")[0]
    levels = jd.grid(jd.cosine(), 10)

    def sample(x, seed):
        return jd.sample(jd.dpmpp_2m_sde(), oracles.denoiser(clouds()), x, levels, jax.random.key(seed))

    exported = jax.export.export(jax.jit(sample), platforms=("cpu", "cuda", "tpu"))(
        jax.ShapeDtypeStruct((batch, 2), jnp.float32), jax.ShapeDtypeStruct((), jnp.int32)
    )
    (tmp_path / "sampler").write_bytes(exported.serialize())
    x = jax.random.normal(jax.random.key(1), (5, 2))
    np.save(tmp_path / "x.npy", x)
    code = """
import sys
sys.modules["jaxdiff"] = None
import jax, numpy as np
folder = sys.argv[1]
sampler = jax.export.deserialize(open(folder + "/sampler", "rb").read())
np.save(folder + "/x0.npy", sampler.call(np.load(folder + "/x.npy"), np.int32(3)))
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(np.load(tmp_path / "x0.npy"), jax.jit(sample)(x, 3), rtol=1e-4, atol=1e-5)
