"""Learned variances in the DDPM sampler: a peer's chain, the limits, the exact chain of one Gaussian, and calls of the network."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdiff as jd
from jaxdiff import guidance, oracles, process
from jaxdiff.app import build, cli, config
from jaxdiff.app.build import networks

MEAN, STD = np.array([0.3, -0.2]), np.array([0.5, 0.8])


def moved(sampler, denoise, x, t, s):
    """`(without its noise, std of the noise)` of a step, which is linear in its noise."""
    keys = jax.random.split(jax.random.key(0), 2)
    one, two = (sampler.step(denoise, x, (), t, s, key)[0] for key in keys)
    z_one, z_two = (jax.random.normal(key, x.shape, x.dtype) for key in keys)
    std = (one - two) / (z_one - z_two)
    return one - std * z_one, std


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_follows_the_peers_chain(spacing, float64):
    """Ten of 1000 steps by outputs of chance. In the last one diffusers adds noise of std 1e-10 where its time is not 0."""
    recorded = np.load("tests/data/learned_variance.npz")
    states, outputs, noises = (recorded[f"{spacing}_{name}"].astype(np.float64) for name in "xon")
    levels = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), jd.from_timesteps(recorded["betas"], 10, spacing))
    x, last = jnp.asarray(states[0]), 10 if spacing == "leading" else 9
    for number in range(last):
        kernel = jd.with_variance(lambda x, logsnr: jnp.asarray(outputs[number]), jd.predict_noise)  # noqa: B023
        mean, std = moved(jd.ddpm_learned(), kernel, x, levels[number], levels[number + 1])
        x = mean + std * noises[number]
        np.testing.assert_allclose(x, states[number + 1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("v", "std"), [(-1.0, process.posterior_std), (1.0, process.forward_std)])
def test_at_its_ends_it_is_ddpm_of_the_small_and_of_the_large_variance(v, std):
    cosine, x = jd.grid(jd.cosine(), 5), jax.random.normal(jax.random.key(0), (4, 2))
    kernel = jd.with_variance(lambda x, logsnr: jnp.concatenate([jnp.tanh(x), jnp.full_like(x, v)], -1), jd.predict_v)
    plain = jd.denoiser(lambda x, logsnr: jnp.tanh(x), jd.predict_v)
    got, wanted = (
        jd.sample(sampler, denoise, x, cosine, jax.random.key(1))
        for sampler, denoise in ((jd.ddpm_learned(), kernel), (jd.ddpm(std), plain))
    )
    np.testing.assert_allclose(got, wanted, rtol=1e-6, atol=1e-6)


def optimal(x, t, s):
    """The exact kernel of one Gaussian: the std of q(x_s given x_t) (Bao et al. 2022, theorem 1)."""
    x0 = oracles.denoiser(oracles.gaussian(MEAN, STD))(x, t)
    variance = (t.sigma * STD) ** 2 / ((t.alpha * STD) ** 2 + t.sigma**2)
    gain = s.alpha - s.sigma**2 * t.alpha**2 / (t.sigma**2 * s.alpha)
    return x0, jnp.broadcast_to(jnp.sqrt(process.posterior_std(t, s) ** 2 + gain**2 * variance), x.shape)


def variances(sampler, denoise, levels):
    """The variance of x at each level but the last, from that of the data's noised at the first."""
    var = [np.asarray(levels.alpha[0]) ** 2 * STD**2 + np.asarray(levels.sigma[0]) ** 2]
    for t, s in zip(range(levels.sigma.size - 2), range(1, levels.sigma.size - 1), strict=True):
        zero, one = (moved(sampler, denoise, jnp.full((1, 2), value), levels[t], levels[s]) for value in (0.0, 1.0))
        var.append(np.asarray((one[0] - zero[0])[0]) ** 2 * var[-1] + np.asarray(zero[1])[0] ** 2)
    return np.array(var)


def test_a_kernel_of_the_exact_std_has_the_exact_marginals_in_few_steps(float64):
    """Where those of ddpm() and of ddpm(forward_std) are wrong; its std lies between the two."""
    levels = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), jd.grid(jd.cosine(), 6))
    exact = np.asarray(levels.alpha)[:-1, None] ** 2 * STD**2 + np.asarray(levels.sigma)[:-1, None] ** 2
    np.testing.assert_allclose(variances(jd.ddpm_learned(), optimal, levels), exact, rtol=1e-9)
    plain = oracles.denoiser(oracles.gaussian(MEAN, STD))
    assert (variances(jd.ddpm(), plain, levels)[-1] / exact[-1] < 0.9).all()
    assert (variances(jd.ddpm(process.forward_std), plain, levels)[-1] / exact[-1] > 1.05).all()
    t, s = levels[1], levels[2]
    std = optimal(jnp.zeros((1, 2)), t, s)[1]
    assert ((process.posterior_std(t, s) < std) & (std < process.forward_std(t, s))).all()


def test_from_noise_to_data_in_a_sampler():
    levels, num = jd.grid(jd.cosine(), 6), 20_000
    x = levels.sigma[0] * jax.random.normal(jax.random.key(0), (num, 2))
    states = jd.trajectory(jd.ddpm_learned(), optimal, x, levels, jax.random.key(1))
    wanted = np.sqrt(levels.alpha[-2] ** 2 * STD**2 + levels.sigma[-2] ** 2)
    np.testing.assert_allclose(states[-2].std(0), wanted, rtol=4 / np.sqrt(2 * num))
    np.testing.assert_allclose(states[-2].mean(0), levels.alpha[-2] * MEAN, atol=4 * wanted.max() / np.sqrt(num))


def known(x, t, s):
    return 3 * jnp.tanh(x), 0.1 + x**2


def test_guidance_is_carried_over_in_one_call_and_the_std_stays():
    calls, x, (t, s) = [], jnp.array([[0.7, -0.4]]), (jd.cosine()(0.6), jd.cosine()(0.4))

    def kernel(*given):
        calls.append(given)
        return known(*given)

    def reference(x, level):
        return x / 2

    guided = jd.carried(lambda denoise: jd.clip(guidance.rescaled(jd.guide(denoise, reference, 2.0), denoise)), kernel)
    x0, std = guided(x, t, s)
    assert len(calls) == 1
    alone = jd.clip(guidance.rescaled(jd.guide(lambda x, t: known(x, t, s)[0], reference, 2.0), lambda x, t: known(x, t, s)[0]))
    np.testing.assert_array_equal(x0, alone(x, t))
    np.testing.assert_array_equal(std, known(x, t, s)[1])


def test_a_classifier_moves_the_mean_as_documented():
    x, (t, s), scale = jnp.array([[0.7, -0.4]]), (jd.cosine()(0.6), jd.cosine()(0.5)), 3.0
    gradient = jnp.array([1.5, -0.5])

    def log_prob(x, level):
        return x @ gradient

    guided = jd.carried(lambda denoise: jd.classifier_guide(denoise, log_prob, scale), known)
    (plain, std), (shifted, same) = (moved(jd.ddpm_learned(), kernel, x, t, s) for kernel in (known, guided))
    np.testing.assert_allclose(std, same, rtol=1e-5)
    by = scale * s.alpha / t.alpha * process.forward_std(t, s) ** 2 * gradient
    np.testing.assert_allclose(shifted - plain, by[None], rtol=1e-4)


def test_it_compiles_once_keeps_the_dtype_uses_the_key_and_maps_over_examples():
    levels, x = jd.grid(jd.cosine(), 4), jax.random.normal(jax.random.key(0), (3, 2))
    calls = []

    def kernel(x, t, s):
        calls.append(x.dtype)
        return known(x, t, s)

    draw = jax.jit(functools.partial(jd.sample, jd.ddpm_learned(), kernel))
    one = draw(x, levels, jax.random.key(1))
    traced = len(calls)
    assert (one != draw(x, levels, jax.random.key(2))).any()
    assert len(calls) == traced
    half = jd.sample(
        jd.ddpm_learned(), kernel, *jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), (x, levels)), jax.random.key(1)
    )
    assert half.dtype == jnp.bfloat16
    assert set(calls) == {jnp.dtype("float32")}
    mapped = jax.vmap(lambda x: jd.sample(jd.ddpm_learned(), known, x[None], levels, jax.random.key(1))[0])(x)
    alone = [jd.sample(jd.ddpm_learned(), known, row[None], levels, jax.random.key(1))[0] for row in x]
    np.testing.assert_allclose(mapped, jnp.stack(alone), rtol=1e-6, atol=1e-6)


def test_a_network_that_learned_no_variance_is_refused():
    kernel = jd.with_variance(lambda x, logsnr: x, jd.predict_v)
    with pytest.raises(ValueError, match=r"with_variance: the network returned shape \(1, 2\) for x of shape \(1, 2\), not twice"):
        kernel(jnp.zeros((1, 2)), jd.cosine()(0.5), jd.cosine()(0.4))


ADM = config.Experiment(
    data=config.Data(image_shape=(8, 8, 1)),
    model=config.Model(channels=8, multipliers=(1,), blocks=1, head_channels=8),
    published=config.Published(learned_variance=True, told="step"),
    diffusion=config.Diffusion(schedule="betas", prediction="noise"),
    sampling=config.Sampling(sampler="ddpm_learned", steps=2, spacing="trailing", guidance=2.0, clip=False),
)


@pytest.mark.parametrize(("scale", "calls"), [(1.0, 1), (2.0, 2), (0.0, 1)])
def test_a_config_calls_its_network_once_a_step_and_twice_when_guided(scale, calls, monkeypatch):
    """Its x0 is that of its denoiser; its std lies between the two variances, and is that of the labelled call."""
    counted, plain = [], networks.network

    def counting(module):
        apply = plain(module)
        return lambda *args: (counted.append(args[3]["label"]), apply(*args))[1]

    made = dataclasses.replace(ADM, sampling=dataclasses.replace(ADM.sampling, guidance=scale))
    params = jax.tree.map(lambda leaf: leaf + 0.1, build.init(made, jax.random.key(0)).params)
    monkeypatch.setattr(networks, "network", counting)
    stage = build.cascade_stages(made, params, {"label": jnp.array([3])}, {}, {})[0]
    x, (t, s) = jax.random.normal(jax.random.key(1), (1, 8, 8, 1)), (stage.levels[0], stage.levels[1])
    stage.sampler.step(stage.called({}), x, (), t, s, jax.random.key(0))
    assert len(counted) == calls
    x0, std = stage.called({})(x, t, s)
    np.testing.assert_allclose(x0, stage.denoiser({})(x, t), rtol=1e-6)
    own = networks.conditional_kernel(made, params, {"label": jnp.array([3 if scale else 10])})(x, t, s)[1]
    np.testing.assert_allclose(std, own, rtol=1e-6)
    images = build.image_generator(made)(params, jax.random.key(0), {"index": jnp.arange(1), "label": jnp.array([3])}, {})
    assert np.isfinite(images).all()


def test_a_run_without_it_says_so(capsys):
    status = cli.main(["train", "configs/digits.py", "--sampling.sampler", "ddpm_learned"])
    assert status == 1
    assert "sampling.sampler must be another: ddpm_learned wants published.learned_variance" in capsys.readouterr().err
