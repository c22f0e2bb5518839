"""Samplers against closed forms and against a peer's recorded trajectories."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import SCHEDULES, clouds

import jaxdiff as jd
from jaxdiff import oracles, samplers

FOUR = ["cosine", "linear", "karras", "rectified_flow"]


def ends(sampler, schedule, num_steps, x, data):
    sample = jax.jit(lambda x, levels: jd.sample(sampler, oracles.denoiser(data), x, levels, jax.random.key(7)))
    levels = jd.grid(SCHEDULES[schedule], num_steps)
    return sample(levels.sigma[0] * x, levels)


@pytest.mark.parametrize("schedule", [name for name in SCHEDULES if name != "lognormal"])
def test_ddim_converges_with_order_one(schedule, float64):
    """Median error over starts, against Richardson's extrapolation of twice the finest run."""
    x = jax.random.normal(jax.random.key(0), (64, 2))
    coarse, fine = (ends(jd.ddim(), schedule, n, x, clouds()) for n in (4096, 8192))
    truth = 2 * fine - coarse
    numbers = [64, 128, 256, 512]
    errors = [jnp.median(jnp.linalg.norm(ends(jd.ddim(), schedule, n, x, clouds()) - truth, axis=-1)) for n in numbers]
    order = -np.polyfit(np.log(numbers), np.log(np.array(errors)), 1)[0]
    assert 0.9 < order < 1.1


@pytest.mark.parametrize("schedule", FOUR)
def test_ddim_follows_the_flow_map_of_a_gaussian(schedule, float64):
    """For one Gaussian the probability-flow ODE is linear: `x0 = mean + std / std_1 (x - alpha_1 mean)`."""
    mean, std = jnp.array([0.5, -0.3]), jnp.array([0.4, 0.8])
    levels = jd.grid(SCHEDULES[schedule], 1)
    x = jax.random.normal(jax.random.key(0), (32, 2))
    start = levels.sigma[0] * x
    noisy_std = jnp.sqrt(levels.alpha[0] ** 2 * std**2 + levels.sigma[0] ** 2)
    exact = mean[None] + (std / noisy_std)[None] * (start - levels.alpha[0] * mean[None])
    np.testing.assert_allclose(ends(jd.ddim(), schedule, 2000, x, oracles.gaussian(mean, std)), exact, atol=6e-3)


@pytest.mark.parametrize("schedule", FOUR)
@pytest.mark.parametrize("sampler", ["ddpm", "eta=0.5", "eta=1", "large"])
def test_stochastic_samplers_have_the_right_moments(schedule, sampler):
    kind = {"ddpm": jd.ddpm(), "eta=0.5": jd.ddim(0.5), "eta=1": jd.ddim(1.0), "large": jd.ddpm(samplers.forward_std)}[sampler]
    num = 10_000
    x0 = np.asarray(ends(kind, schedule, 500, jax.random.normal(jax.random.key(3), (num, 2)), clouds()), np.float64)
    mean, covariance = (np.asarray(moment, np.float64) for moment in oracles.moments(clouds()))
    error = np.sqrt(np.diag(covariance) / num)
    assert (abs(x0.mean(0) - mean) < 4 * error + 3e-3).all()
    centred = x0 - mean
    products = centred[:, :, None] * centred[:, None, :]
    assert (abs(products.mean(0) - covariance) < 4 * products.std(0) / num**0.5 + 5e-3).all()


def test_ddpm_is_ddim_with_eta_one():
    levels = jd.grid(jd.cosine(), 10)
    x = jax.random.normal(jax.random.key(0), (8, 2))
    ends = [jd.sample(kind, oracles.denoiser(clouds()), x, levels, jax.random.key(1)) for kind in (jd.ddpm(), jd.ddim(1.0))]
    np.testing.assert_allclose(*ends, atol=1e-5)
    deterministic = [
        jd.sample(kind, oracles.denoiser(clouds()), x, levels, jax.random.key(1)) for kind in (jd.ddim(), jd.ddim(jnp.zeros(())))
    ]
    np.testing.assert_allclose(*deterministic, atol=1e-6)


def test_gradients_through_a_sampler_are_finite():
    """With respect to eta too, up to its end, where the kept noise is the root of nothing."""
    levels = jd.grid(jd.cosine(), 5)

    def end(x, eta):
        return jnp.sum(jd.sample(jd.ddim(eta), oracles.denoiser(clouds()), x, levels, jax.random.key(1)))

    for eta in (0.0, 0.5, 1.0):
        gradients = jax.grad(end, argnums=(0, 1))(jnp.ones((3, 2)), jnp.float32(eta))
        assert all(bool(jnp.all(jnp.isfinite(gradient))) for gradient in gradients)


def test_standard_deviations_equal_the_textbook(float64):
    """Ho et al. (2020), eq. 7, from betas."""
    betas = np.linspace(1e-4, 0.02, 1000)
    bars = np.cumprod(1 - betas)
    level = jd.Level(jnp.asarray(np.sqrt(bars)), jnp.asarray(np.sqrt(1 - bars)))
    t, s = level[1:], level[:-1]
    np.testing.assert_allclose(samplers.posterior_std(t, s) ** 2, betas[1:] * (1 - bars[:-1]) / (1 - bars[1:]), rtol=1e-9)
    np.testing.assert_allclose(samplers.forward_std(t, s) ** 2, betas[1:], rtol=1e-9)


@pytest.mark.parametrize("name", ["ddim_leading", "ddim_trailing_v", "ddim_eta1", "ddpm", "ddpm_large"])
def test_follows_the_peers_trajectory(name, float64):
    """Every recorded state from the one before it, with the recorded noise in the place of ours."""
    recorded = np.load(f"tests/data/{name}.npz")
    sampler = {"ddim_leading": jd.ddim(), "ddim_trailing_v": jd.ddim(), "ddim_eta1": jd.ddim(1.0), "ddpm": jd.ddpm(),
               "ddpm_large": jd.ddpm(samplers.forward_std)}[name]  # fmt: skip
    bars = recorded["alphas_cumprod"][recorded["timesteps"].astype(int)]
    levels = jd.Level(jnp.asarray(np.append(np.sqrt(bars), 1.0)), jnp.asarray(np.append(np.sqrt(1 - bars), 0.0)))
    denoise = oracles.denoiser(oracles.mixture(recorded["weights"], recorded["means"], recorded["stds"]))
    x = jnp.asarray(recorded["x"][0])
    for number in range(len(bars)):
        noise = jnp.asarray(recorded["noise"][number]) if number < len(recorded["noise"]) else jnp.zeros_like(x)
        x = with_noise(sampler, denoise, x, levels[number], levels[number + 1], noise)
        np.testing.assert_allclose(x, recorded["x"][number + 1], atol=1e-6)


def with_noise(sampler, denoise, x, t, s, noise):
    """The step with this noise: a step is linear in its noise, so two steps with noises that are known tell it."""
    keys = jax.random.split(jax.random.key(0), 2)
    one, two = (sampler.step(denoise, x, sampler.init(x), t, s, key)[0] for key in keys)
    z_one, z_two = (jax.random.normal(key, x.shape, x.dtype) for key in keys)
    std = (one - two) / (z_one - z_two)
    return one + std * (noise - z_one)


def test_a_thousand_steps_need_no_more_memory_than_ten():
    def memory(num_steps):
        def sample(x, levels):
            return jd.sample(jd.ddpm(), oracles.denoiser(clouds()), x, levels, jax.random.key(0))

        x = jnp.zeros((1024, 2))
        return jax.jit(sample).lower(x, jd.grid(jd.cosine(), num_steps)).compile().memory_analysis().temp_size_in_bytes

    assert memory(1000) <= memory(10) + 1024 * 2 * 4  # less than one more state
