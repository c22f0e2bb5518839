"""Samplers against closed forms and against a peer's recorded trajectories."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import SCHEDULES, clouds

import jaxdiff as jd
from jaxdiff import oracles, process, samplers
from jaxdiff.samplers.exponential import exponential_moments

FOUR = ["cosine", "linear", "karras", "rectified_flow"]


@functools.cache
def compiled(sampler):
    """`(data, x, levels) -> x0` with the exact denoiser: a program for all schedules."""
    return jax.jit(lambda data, x, levels: jd.sample(sampler, oracles.denoiser(data), x, levels, jax.random.key(7)))


@functools.cache
def grids(schedule, numbers, t_min=None, uniform_logsnr=False):
    """The lists of a schedule by their numbers of steps, from one program."""
    pace = jd.uniform_logsnr(SCHEDULES[schedule]) if uniform_logsnr else SCHEDULES[schedule]
    return jax.tree.map(np.asarray, jax.jit(lambda: {n: jd.grid(pace, n, t_min) for n in numbers})())


# Sampler, its order, and the tolerance on it. UniPC-2's corrector brings order 3 (Zhao et al. 2023, theorem 3.1).
ORDERS = {
    "ddim": (jd.ddim(), 1, 0.1),
    "heun": (samplers.heun(), 2, 0.2),
    "heun_edm": (samplers.heun(samplers.edm_trapezoid), 2, 0.2),
    "dpmpp_2m": (samplers.dpmpp_2m(), 2, 0.2),
    "dpmpp_3m": (samplers.dpmpp_3m(), 3, 0.5),
    "unipc": (samplers.unipc(), 3, 0.2),
}


NUMBERS = (64, 128, 256, 768, 1536)


def measured_order(sampler, order, lists):
    """Slope of the median error over starts, against Richardson's extrapolation of the two finest runs."""
    x = np.asarray(jax.random.normal(jax.random.key(0), (64, 2)))
    *coarser, coarse, fine = (np.asarray(compiled(sampler)(clouds(), lists[n].sigma[0] * x, lists[n])) for n in NUMBERS)
    truth = fine + (fine - coarse) / (2**order - 1)
    errors = [np.median(np.linalg.norm(x0 - truth, axis=-1)) for x0 in coarser]
    return -np.polyfit(np.log(NUMBERS[:-2]), np.log(errors), 1)[0]


@pytest.mark.parametrize("schedule", FOUR)
@pytest.mark.parametrize("name", ORDERS)
def test_order_of_convergence(name, schedule, float64):
    sampler, order, tolerance = ORDERS[name]
    assert abs(measured_order(sampler, order, grids(schedule, NUMBERS, 0.0, uniform_logsnr=True)) - order) < tolerance


@pytest.mark.parametrize("schedule", [name for name in SCHEDULES if name != "lognormal"])
def test_ddim_converges_with_order_one_in_uniform_time(schedule, float64):
    assert abs(measured_order(ORDERS["ddim"][0], 1, grids(schedule, NUMBERS)) - 1) < 0.1


@pytest.mark.parametrize("schedule", FOUR)
def test_ddim_follows_the_flow_map_of_a_gaussian(schedule, float64):
    """For one Gaussian the probability-flow ODE is linear: `x0 = mean + std / std_1 (x - alpha_1 mean)`."""
    mean, std = jnp.array([0.5, -0.3]), jnp.array([0.4, 0.8])
    levels = grids(schedule, (2000,))[2000]
    start = levels.sigma[0] * jax.random.normal(jax.random.key(0), (32, 2))
    noisy_std = jnp.sqrt(levels.alpha[0] ** 2 * std**2 + levels.sigma[0] ** 2)
    exact = mean[None] + (std / noisy_std)[None] * (start - levels.alpha[0] * mean[None])
    np.testing.assert_allclose(compiled(ORDERS["ddim"][0])(oracles.gaussian(mean, std), start, levels), exact, atol=6e-3)


STOCHASTIC = {"ddpm": jd.ddpm(), "eta=0.5": jd.ddim(0.5), "large": jd.ddpm(process.forward_std)}


@pytest.mark.parametrize("schedule", ["cosine", "karras", "rectified_flow"])
@pytest.mark.parametrize("sampler", STOCHASTIC)
def test_stochastic_samplers_have_the_right_moments(schedule, sampler):
    num, levels = 2500, grids(schedule, (250,))[250]
    x = levels.sigma[0] * jax.random.normal(jax.random.key(3), (num, 2))
    x0 = np.asarray(compiled(STOCHASTIC[sampler])(clouds(), x, levels), np.float64)
    mean, covariance = (np.asarray(moment, np.float64) for moment in oracles.moments(clouds()))
    error = np.sqrt(np.diag(covariance) / num)
    assert (abs(x0.mean(0) - mean) < 4 * error + 3e-3).all()
    centred = x0 - mean
    products = centred[:, :, None] * centred[:, None, :]
    assert (abs(products.mean(0) - covariance) < 4 * products.std(0) / num**0.5 + 5e-3).all()


def test_ddpm_is_ddim_with_eta_one():
    x, (ddpm, ddim) = jax.random.normal(jax.random.key(0), (8, 2)), (compiled(kind) for kind in (jd.ddpm(), jd.ddim(1.0)))
    for schedule in FOUR:
        levels = grids(schedule, (10,))[10]
        ends = [sampled(clouds(), levels.sigma[0] * x, levels) for sampled in (ddpm, ddim)]
        np.testing.assert_allclose(*ends, rtol=1e-4, atol=1e-5)
    deterministic = [compiled(kind)(clouds(), x, levels) for kind in (jd.ddim(), jd.ddim(jnp.zeros(())))]
    np.testing.assert_allclose(*deterministic, atol=1e-6)


def test_gradients_through_a_sampler_are_finite():
    """With respect to eta too, up to its end, where the kept noise is the root of nothing."""
    levels = grids("cosine", (5,))[5]

    def end(x, eta):
        return jnp.sum(jd.sample(jd.ddim(eta), oracles.denoiser(clouds()), x, levels, jax.random.key(1)))

    graded = jax.jit(jax.grad(end, argnums=(0, 1)))
    for eta in (0.0, 0.5, 1.0):
        assert all(np.all(np.isfinite(gradient)) for gradient in graded(jnp.ones((3, 2)), jnp.float32(eta)))


def test_standard_deviations_equal_the_textbook(float64):
    """Ho et al. (2020), eq. 7, from betas."""
    betas = np.linspace(1e-4, 0.02, 1000)
    bars = np.cumprod(1 - betas)
    level = jd.Level(jnp.asarray(np.sqrt(bars)), jnp.asarray(np.sqrt(1 - bars)))
    t, s = level[1:], level[:-1]
    np.testing.assert_allclose(process.posterior_std(t, s) ** 2, betas[1:] * (1 - bars[:-1]) / (1 - bars[1:]), rtol=1e-9)
    np.testing.assert_allclose(process.forward_std(t, s) ** 2, betas[1:], rtol=1e-9)


# Sampler, and how far it may be from the peer. In float32 it holds the tables of DPM-Solver and UniPC, the differences of
# Heun's levels, and Euler's x (about 20 at first).
PEERS = {
    "ddim_leading": (jd.ddim(), 1e-12),
    "ddim_trailing_v": (jd.ddim(), 1e-12),
    "ddim_eta1": (jd.ddim(1.0), 1e-12),
    "ddpm": (jd.ddpm(), 1e-12),
    "ddpm_large": (jd.ddpm(process.forward_std), 1e-12),
    "dpmpp_1": (jd.ddim(), 1e-5),
    "dpmpp_2m": (samplers.dpmpp_2m(), 1e-5),
    "unipc_2": (samplers.unipc(), 1e-5),
    "euler_karras": (jd.ddim(), 5e-6),
    "heun_karras": (samplers.heun(samplers.edm_trapezoid), 1e-6),
    "lcm": (samplers.consistency(), 1e-12),
}


@pytest.mark.parametrize("name", PEERS)
def test_follows_the_peers_trajectory(name, float64):
    """Every recorded state, from the one before it, with the recorded noise in the place of ours."""
    recorded = np.load(f"tests/data/{name}.npz")
    sampler, tolerance = PEERS[name]
    stages = 2 if name == "heun_karras" else 1  # it records the states inside a step too
    states, noises, levels = recorded["x"], recorded["noise"], peers_levels(recorded, stages)
    states = np.concatenate([states[:-1:stages], states[-1:]])
    denoise = oracles.denoiser(oracles.mixture(recorded["weights"], recorded["means"], recorded["stds"]))
    denoise = lcm_boundary(denoise, recorded) if name == "lcm" else denoise
    x = jnp.asarray(states[0], jnp.float64)
    memory = sampler.init(x)
    for number in range(levels.sigma.size - 1):
        noise = jnp.asarray(noises[number]) if number < len(noises) else jnp.zeros_like(x)
        x, memory = with_noise(sampler, denoise, x, memory, levels[number], levels[number + 1], noise)
        np.testing.assert_allclose(x, states[number + 1], rtol=0, atol=tolerance)


def peers_levels(recorded, stages):
    if "karras" in str(recorded["spec"]):  # in the coordinates x / alpha
        sigma = recorded["sigmas"].astype(np.float64)
        sigma = np.append(sigma[:-1:stages], 0.0)
        return jd.Level(jnp.ones(len(sigma)), jnp.asarray(sigma))
    bars = recorded["alphas_cumprod"][recorded["timesteps"].astype(int)]
    return jd.Level(jnp.asarray(np.append(np.sqrt(bars), 1.0)), jnp.asarray(np.append(np.sqrt(1 - bars), 0.0)))


def lcm_boundary(denoise, recorded):
    """Luo et al. (2023), section 4.1: `c_skip x + c_out D`, from the time step times ten, sigma_data 0.5."""
    sigmas = jnp.asarray(np.sqrt(1 - recorded["alphas_cumprod"]))

    def consistent(x, level):
        time = 10.0 * jnp.argmin(jnp.abs(sigmas - level.sigma)).astype(x.dtype)
        return 0.25 / (time**2 + 0.25) * x + time / jnp.sqrt(time**2 + 0.25) * denoise(x, level)

    return consistent


def with_noise(sampler, denoise, x, memory, t, s, noise):
    """The step with this noise: a step is linear in its noise, so two steps with noises that are known tell it."""
    keys = jax.random.split(jax.random.key(0), 2)
    (one, after), (two, _) = (sampler.step(denoise, x, memory, t, s, key) for key in keys)
    z_one, z_two = (jax.random.normal(key, x.shape, x.dtype) for key in keys)
    std = (one - two) / (z_one - z_two)
    return one + std * (noise - z_one), after


def half(x, level):
    return 0.5 * x


def test_trajectory_keeps_every_kth_state():
    levels, x = grids("cosine", (6,))[6], jnp.ones((3, 2))
    for kind in (jd.ddpm(), jd.unipc()):
        whole, some = (jd.trajectory(kind, half, x, levels, jax.random.key(1), every=k) for k in (1, 3))
        np.testing.assert_array_equal(some, whole[::3])
    with pytest.raises(ValueError, match="every must divide the number of steps, 6, got 4"):
        jd.trajectory(jd.ddim(), half, x, levels, jax.random.key(1), every=4)


@pytest.mark.parametrize("kind", [jd.heun(), jd.dpmpp_2m(), jd.dpmpp_3m(), jd.unipc()], ids=["heun", "2m", "3m", "unipc"])
def test_equal_levels_and_pure_noise_at_first_are_harmless(kind):
    """Clipped schedules repeat a level; a chain with zero terminal SNR begins at alpha = 0."""
    plain, coarse = (jd.from_timesteps(jd.zero_terminal_snr(np.linspace(1e-4, 0.02, 1000)), n) for n in (40, 20))
    twice = jax.tree.map(lambda leaf: np.append(np.repeat(leaf[:-1], 2), leaf[-1]), coarse)
    row = np.array([*range(20), 19, *range(21, 41)])
    among_others = jax.tree.map(lambda leaf: np.asarray(leaf)[row], plain)
    x = jax.random.normal(jax.random.key(0), (64, 2))
    for levels in (plain, twice, among_others):
        with jax.debug_nans(True):
            x0 = compiled(kind)(clouds(), x, levels)
        assert np.quantile(np.linalg.norm(x0, axis=-1), 0.9) < 2


def test_a_sampler_with_a_callback_reports_each_step_and_changes_nothing():
    seen = []
    levels, x = grids("cosine", (4,))[4], jnp.ones((3, 2))
    kind = jd.with_callback(jd.unipc(), lambda number, x: seen.append((int(number), x.shape)))
    plain, reporting = (
        jax.jit(lambda x, levels, kind=kind: jd.sample(kind, oracles.denoiser(clouds()), x, levels, jax.random.key(0)))
        for kind in (jd.unipc(), kind)
    )
    np.testing.assert_array_equal(reporting(x, levels), plain(x, levels))
    jax.effects_barrier()
    assert sorted(seen) == [(1, (3, 2)), (2, (3, 2)), (3, (3, 2)), (4, (3, 2))]
    assert "callback" in reporting.lower(x, levels).as_text()
    assert "callback" not in plain.lower(x, levels).as_text()


def test_levels_of_numpy_are_taken_and_of_another_dtype_refused(float64):
    levels, x = jd.grid(jd.cosine(), 4), jnp.ones((3, 2))
    plain = jd.sample(jd.heun(), half, x, levels, jax.random.key(0))
    np.testing.assert_array_equal(jd.sample(jd.heun(), half, x, jax.tree.map(np.asarray, levels), jax.random.key(0)), plain)
    with pytest.raises(TypeError, match="sample: x is float32, levels float64; give both in one dtype"):
        jd.sample(jd.heun(), half, x.astype(jnp.float32), levels, jax.random.key(0))


def test_churn_refuses_a_sampler_that_remembers():
    with pytest.raises(ValueError, match="churn: only samplers without memory"):
        jd.sample(jd.churn(jd.unipc()), oracles.denoiser(clouds()), jnp.ones((3, 2)), jd.grid(jd.cosine(), 4), jax.random.key(0))


def test_churn_is_the_papers_algorithm(float64):
    """Karras et al. (2022), algorithm 2, written out in their own coordinates, with the same noise."""
    t, s, key = jd.Level(jnp.ones(()), jnp.array(2.0)), jd.Level(jnp.ones(()), jnp.array(1.5)), jax.random.key(3)
    x, denoise = jnp.array([[0.3, -2.0], [1.7, 0.4]]), oracles.denoiser(clouds())
    z = jax.random.normal(jax.random.split(key)[0], x.shape, x.dtype)
    hat = 2.0 * 1.2
    x_hat = x + np.sqrt(hat**2 - 4) * 1.003 * z
    slope = (x_hat - denoise(x_hat, jd.Level(1.0, hat))) / hat
    euler = x_hat + (1.5 - hat) * slope
    expected = x_hat + (1.5 - hat) * (slope / 2 + (euler - denoise(euler, s)) / 3)
    heun = jd.heun(samplers.edm_trapezoid)
    for size in (jnp.hypot, lambda alpha, sigma: alpha):  # D knows the level: x / alpha is the same
        kind = jd.churn(heun, 0.2, sigma_min=1.0, sigma_max=3.0, noise=1.003, size=size)
        np.testing.assert_allclose(kind.step(denoise, x, (), t, s, key)[0], expected, rtol=1e-9)
    outside = jd.churn(heun, 0.2, sigma_min=3.0)
    np.testing.assert_allclose(outside.step(denoise, x, (), t, s, key)[0], heun.step(denoise, x, (), t, s, key)[0])


def test_euler_maruyama_is_the_papers_rule_in_small_steps(float64):
    """Song et al. (2021), eq. 11 and 32: `x + (beta x / 2 + beta score) dt + sqrt(beta dt) z` on their linear schedule."""
    schedule, dt, key = jd.linear(), 1e-5, jax.random.key(0)
    x, z = jnp.array([[0.3, -2.0]]), jax.random.normal(key, (1, 2))
    for time in (0.2, 0.9):
        beta = 0.1 + time * 19.9
        expected = x + (beta * x / 2 + beta * oracles.score(clouds())(x, schedule(time))) * dt + np.sqrt(beta * dt) * z
        moved, _ = jd.euler_maruyama().step(oracles.denoiser(clouds()), x, (), schedule(time), schedule(time - dt), key)
        np.testing.assert_allclose((moved - x) / dt, (expected - x) / dt, rtol=1e-3)


def count_calls(sampled, jit=False):
    """How often `sampled(denoise)` calls its denoiser when it runs, by default without jit: nothing is compiled."""
    calls = []

    def denoise(x, level):
        jax.debug.callback(lambda: calls.append(None))
        return 0.5 * x

    with jax.disable_jit(not jit):
        jax.block_until_ready(sampled(denoise))
    jax.effects_barrier()
    return len(calls)


@pytest.mark.parametrize("num_steps", [1, 2, 6])
def test_heun_calls_the_denoiser_once_in_its_last_step(num_steps):
    """Karras et al. (2022), section 3: 2 N - 1 calls, and as many where other functions make samplers of it."""
    levels, x, key = grids("cosine", (num_steps,))[num_steps], jnp.ones((1, 4)), jax.random.key(0)
    for kind in (
        jd.heun(),
        jd.heun(samplers.edm_trapezoid),
        jd.churn(jd.heun(), 0.1),
        jd.with_callback(jd.heun(), lambda number, x: None),
        jd.editing.inpaint(jd.heun(), jnp.zeros((1, 4)), jnp.arange(4)[None] < 2),
    ):
        assert count_calls(lambda denoise, kind=kind: jd.sample(kind, denoise, x, levels, key)) == 2 * num_steps - 1
    for every in {1, num_steps}:
        calls = count_calls(lambda denoise, every=every: jd.trajectory(jd.heun(), denoise, x, levels, key, every), jit=True)
        assert calls == 2 * num_steps - 1
    repeated = jd.editing.resampled(jd.heun(), 3)
    assert count_calls(lambda denoise: jd.sample(repeated, denoise, x, levels, key)) == 3 * (2 * num_steps - 1)


def test_last_is_the_step_to_clean_in_fewer_calls():
    levels, x = grids("cosine", (4,))[4], jnp.array([[0.3, -2.0]])
    for kind in (jd.heun(), jd.churn(jd.heun(), 0.1), jd.editing.resampled(jd.heun(), 2)):
        plain = kind._replace(last=None)  # as a sampler of two functions
        one, two = (compiled(each)(clouds(), x, levels) for each in (kind, plain))
        np.testing.assert_allclose(one, two, rtol=1e-6)
        assert count_calls(lambda denoise, plain=plain: jd.sample(plain, denoise, x, levels, jax.random.key(0))) > count_calls(
            lambda denoise, kind=kind: jd.sample(kind, denoise, x, levels, jax.random.key(0))
        )


def test_heun_is_exact_where_x0_is_linear_in_logsnr(float64):
    """The exponential integrator's own property, in a step of any length; EDM's rule has it in short ones alone."""
    t, s, x = jd.cosine()(0.98), jd.cosine()(0.3), jnp.array([[0.7]])

    def denoise(x, level):
        return jnp.full_like(x, 0.2) + 0.05 * level.logsnr

    lam = np.linspace(*(float(level.logsnr) / 2 for level in (t, s)), 100_001)
    integral = np.trapezoid(np.exp(lam) * (0.2 + 0.1 * lam), lam)
    exact = s.sigma / t.sigma * x + s.sigma * integral
    np.testing.assert_allclose(jd.heun().step(denoise, x, (), t, s, None)[0], exact, rtol=1e-7)
    assert float(jnp.abs(jd.heun(samplers.edm_trapezoid).step(denoise, x, (), t, s, None)[0] - exact)[0, 0]) > 1


def test_exponential_moments_equal_the_integrals(float64):
    """On both sides of the step size at which the series takes over, and for steps upwards."""
    nodes, weights = np.polynomial.legendre.leggauss(40)
    u = (nodes + 1) / 2
    for h in (-3.0, -0.0999, 1e-9, 0.05, 0.0999, 0.1001, 1.0, 8.0):
        density = weights * np.exp(h * u)
        expected = [np.sum(density * u**power) / np.sum(density) for power in (1, 2)]
        np.testing.assert_allclose(exponential_moments(jnp.asarray(h)), expected, rtol=1e-10)


def test_a_thousand_steps_need_no_more_memory_than_ten():
    def memory(num_steps):
        def sample(x, levels):
            return jd.sample(jd.ddpm(), oracles.denoiser(clouds()), x, levels, jax.random.key(0))

        x, steps = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((1024, 2), (num_steps + 1,)))
        return jax.jit(sample).lower(x, jd.Level(*[steps] * 2)).compile().memory_analysis().temp_size_in_bytes

    assert memory(1000) <= memory(10) + 1024 * 2 * 4  # less than one more state
