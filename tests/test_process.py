import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import SCHEDULES

import jaxdiff as jd
from jaxdiff import process
from jaxdiff.process import from_logsnr


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_are_finite_and_get_noisier(name):
    level = SCHEDULES[name](jnp.linspace(0, 1, 1001))
    assert level.alpha.dtype == level.sigma.dtype == jnp.float32
    assert bool(jnp.all(level.sigma > 0))
    assert bool(jnp.all(level.alpha > 0))
    logsnr = np.asarray(level.logsnr)
    assert np.isfinite(logsnr).all()
    assert (np.diff(logsnr) <= 0).all()
    assert logsnr[0] > logsnr[-1] + 9


@pytest.mark.parametrize("name", SCHEDULES)
def test_times_may_be_integers(name):
    with jax.numpy_dtype_promotion("standard"):
        for time in (0, 1):
            np.testing.assert_allclose(SCHEDULES[name](time).alpha, SCHEDULES[name](float(time)).alpha)
            np.testing.assert_allclose(SCHEDULES[name](jnp.array(time)).sigma, SCHEDULES[name](float(time)).sigma)


@pytest.mark.parametrize("name", ["cosine", "linear", "from_betas", "shifted"])
def test_variance_preserving_schedules_preserve_variance(name):
    level = SCHEDULES[name](jnp.linspace(0, 1, 101))
    np.testing.assert_allclose(level.alpha**2 + level.sigma**2, 1, atol=1e-6)


def test_schedules_at_known_times():
    half = jd.cosine()(0.5)
    np.testing.assert_allclose([half.alpha, half.sigma], np.sqrt(0.5), rtol=1e-6)
    np.testing.assert_allclose([jd.cosine()(0.0).logsnr, jd.cosine()(1.0).logsnr], [15, -15], rtol=1e-5)
    np.testing.assert_allclose(jd.linear()(1.0).alpha, np.exp(-0.5 * (0.1 + 19.9 / 2)), rtol=1e-6)
    np.testing.assert_allclose([jd.karras()(0.0).sigma, jd.karras()(1.0).sigma], [0.002, 80], rtol=1e-5)
    quarter = jd.rectified_flow()(0.25)
    assert (float(quarter.alpha), float(quarter.sigma)) == (0.75, 0.25)
    np.testing.assert_allclose(jd.rectified_flow()(0.0).logsnr, 15, rtol=1e-4)


def test_lognormal_levels_have_the_papers_moments():
    log_sigma = jnp.log(jd.lognormal()(jnp.linspace(1e-4, 1 - 1e-4, 20001)).sigma)
    np.testing.assert_allclose([jnp.mean(log_sigma), jnp.std(log_sigma)], [-1.2, 1.2], atol=5e-3)


def test_from_betas_follows_the_peers_table(float64):
    """The recorded alphas_cumprod of a peer's linear betas, at every state of the chain."""
    table = np.load("tests/data/ddpm.npz")["alphas_cumprod"]
    betas = np.linspace(1e-4, 0.02, 1000)
    level = jd.from_betas(jnp.asarray(betas))(jnp.arange(1, 1001) / 1000)
    np.testing.assert_allclose(level.alpha**2, table, rtol=2e-5)  # the peer's table was made in float32
    np.testing.assert_allclose(level.alpha**2, np.cumprod(1 - betas), rtol=1e-9)


@pytest.mark.parametrize(("name", "size"), [("cosine", jnp.hypot), ("rectified_flow", jnp.add), ("karras", lambda a, s: a)])
def test_shifted_multiplies_noise_to_signal_and_keeps_the_size(name, size):
    times = jnp.linspace(0, 1, 11)
    plain, shifted = SCHEDULES[name](times), jd.shifted(SCHEDULES[name], 4.0, size)(times)
    np.testing.assert_allclose(shifted.sigma / shifted.alpha, 4 * plain.sigma / plain.alpha, rtol=1e-5)
    np.testing.assert_allclose(size(shifted.alpha, shifted.sigma), size(plain.alpha, plain.sigma), rtol=1e-6)


@pytest.mark.parametrize("name", SCHEDULES)
def test_grid_is_uniform_in_time_and_ends_clean(name):
    levels = jd.grid(SCHEDULES[name], 10)
    assert levels.sigma.shape == (11,)
    assert (float(levels.alpha[-1]), float(levels.sigma[-1])) == (1, 0)
    np.testing.assert_allclose(levels.sigma[:-1], SCHEDULES[name](jnp.arange(10, 0, -1) / 10).sigma, rtol=1e-5)
    halved = levels[::2]
    np.testing.assert_allclose(halved.sigma, jd.grid(SCHEDULES[name], 5).sigma, rtol=1e-5, atol=1e-6)


def test_grid_down_to_zero_is_edms_list():
    """Karras et al. (2022), eq. 5, as it is printed."""
    i, n = np.arange(18), 18
    expected = (80 ** (1 / 7) + i / (n - 1) * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    levels = jd.grid(jd.karras(), n, t_min=0)
    np.testing.assert_allclose(levels.sigma, np.append(expected, 0), rtol=2e-5)
    schedule = jd.karras_spaced(jd.from_betas(np.linspace(1e-4, 0.02, 1000)))
    spaced = jax.tree.map(np.asarray, jax.jit(lambda: jd.grid(schedule, n, t_min=0))())
    first, last = (spaced.sigma / spaced.alpha)[[0, -2]]
    expected = (first ** (1 / 7) + i / (n - 1) * (last ** (1 / 7) - first ** (1 / 7))) ** 7
    np.testing.assert_allclose((spaced.sigma / spaced.alpha)[:-1], expected, rtol=1e-3)
    np.testing.assert_allclose(jnp.hypot(spaced.alpha, spaced.sigma), 1, rtol=1e-6)


@pytest.mark.parametrize("name", SCHEDULES)
def test_uniform_logsnr_is_uniform_and_keeps_the_ends_and_the_family(name, float64):
    schedule = SCHEDULES[name]
    level = jax.jit(jd.uniform_logsnr(schedule))(np.linspace(0, 1, 33))
    first, last = schedule(jnp.array([0.0, 1.0])).logsnr
    np.testing.assert_allclose(level.logsnr, np.linspace(first, last, 33), rtol=1e-9, atol=1e-9)
    if name in ("cosine", "linear", "from_betas", "shifted"):
        np.testing.assert_allclose(jnp.hypot(level.alpha, level.sigma), 1, rtol=1e-9)


def test_a_respaced_schedule_has_its_gradients(float64):
    """In t, and in what the schedule is made of: cosine's logsnr, walked uniformly, has the slope of its two ends."""

    def logsnr(t, logsnr_max):
        def schedule(t):
            return from_logsnr(logsnr_max - t**2 * (logsnr_max + 10.0))

        return jd.uniform_logsnr(schedule)(t).logsnr

    np.testing.assert_allclose(jax.jit(jax.grad(logsnr, argnums=(0, 1)))(0.3, 12.0), [-22, 0.7], rtol=1e-9)

    def sigma(t):
        return jd.karras_spaced(jd.cosine())(t).sigma

    times = np.array([0.2, 0.5])
    slope = jax.jit(jax.vmap(jax.grad(sigma)))(times)
    above, below = np.split(jax.jit(sigma)(np.concatenate([times + 1e-6, times - 1e-6])), 2)
    np.testing.assert_allclose(slope, (above - below) / 2e-6, rtol=1e-5)


def test_quadratic_is_uniform_in_the_root_of_time():
    np.testing.assert_allclose(jd.quadratic(jd.rectified_flow())(0.5).sigma, 0.25)


BETAS = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2


@pytest.mark.parametrize(
    ("spacing", "first", "last"),  # Lin et al. (2023), table 2, for T = 1000 and S = 10
    [("leading", 901, 1), ("linspace", 1000, 1), ("trailing", 1000, 100)],
)
def test_timesteps_are_those_of_the_table(spacing, first, last, float64):
    levels = jd.from_timesteps(BETAS, 10, spacing)
    bars = np.cumprod(1 - BETAS)
    assert levels.sigma.shape == (11,)
    np.testing.assert_allclose(levels.alpha[jnp.array([0, -2, -1])] ** 2, [bars[first - 1], bars[last - 1], 1], rtol=1e-9)
    np.testing.assert_allclose(levels.alpha**2 + levels.sigma**2, 1, rtol=1e-12)
    assert (np.diff(levels.sigma) < 0).all()


@pytest.mark.parametrize(("name", "spacing"), [("ddim_leading", "leading"), ("ddim_trailing_v", "trailing")])
def test_timesteps_are_those_of_the_peer(name, spacing, float64):
    recorded = np.load(f"tests/data/{name}.npz")
    bars = recorded["alphas_cumprod"]
    betas = 1 - bars / np.append(1.0, bars[:-1])
    expected = np.sqrt(bars[recorded["timesteps"].astype(int)])
    np.testing.assert_allclose(jd.from_timesteps(betas, 10, spacing).alpha[:-1], expected, rtol=1e-12)


def test_zero_terminal_snr_ends_in_pure_noise_and_begins_as_before(float64):
    betas = jd.zero_terminal_snr(BETAS)
    levels = jd.from_timesteps(betas, 10)
    assert (float(levels.alpha[0]), float(levels.sigma[0])) == (0, 1)
    np.testing.assert_allclose([betas[0], betas[-1]], [BETAS[0], 1], rtol=1e-9)
    alpha = np.sqrt(np.cumprod(1 - BETAS))  # shifted and scaled: linear in the old alpha
    np.testing.assert_allclose(np.sqrt(np.cumprod(1 - betas)), (alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1]), atol=1e-9)


def test_grid_says_what_is_wrong():
    with pytest.raises(ValueError, match=r"no spacing 'leadin'; write one of leading, linspace, trailing"):
        jd.from_timesteps(BETAS, 10, "leadin")
    with pytest.raises(ValueError, match=r"num_steps must lie in 1..1000, got 1001"):
        jd.from_timesteps(BETAS, 1001)
    for betas in ([1.0, 0.5], [0.5]):
        with pytest.raises(ValueError, match=r"zero_terminal_snr: betas must be a vector with at least two values in \(0, 1\)"):
            jd.zero_terminal_snr(betas)
    with pytest.raises(ValueError, match=r"from_timesteps: betas must be a vector with values in \(0, 1\], got 0 at index 0"):
        jd.from_timesteps([0.0, 0.1], 2)
    for num_steps in (0, 2.5):
        with pytest.raises(ValueError, match=f"grid: num_steps must be a whole number of at least 1, got {num_steps}"):
            jd.grid(jd.cosine(), num_steps)
    with pytest.raises(ValueError, match="grid: must have 0 <= t_min < 1, got t_min = 1"):
        jd.grid(jd.cosine(), 10, t_min=1)
    with pytest.raises(ValueError, match=r"from_betas: betas must be a vector with values in \[0, 1\], got 1.5 at index 1"):
        jd.from_betas(jnp.array([0.5, 1.5]))
    with pytest.raises(ValueError, match=r"from_betas: betas must be a vector .*, got shape \(2, 2\)"):
        jd.from_betas(np.full((2, 2), 0.1))


TIMED = {
    **SCHEDULES,
    "karras_spaced": jd.karras_spaced(jd.cosine()),
    "uniform_logsnr": jd.uniform_logsnr(jd.rectified_flow()),
    "quadratic": process.quadratic(jd.cosine()),
    "shifted": jd.shifted(jd.cosine(), 2.0),
    "zero terminal snr": jd.from_betas(jd.zero_terminal_snr(BETAS)),
}


@pytest.mark.parametrize("name", TIMED)
def test_outside_of_0_to_1_a_schedule_stays_at_its_ends_whose_rates_are_one_sided(name, float64):
    @jax.jit
    def values(t):
        level, rate = process.level_and_rate(TIMED[name], t)
        return level.alpha, level.sigma, rate

    alpha, sigma, rate = values(jnp.array([0.0, -0.1, -5.0, 1.0, 1.1, 7.0, 1e-7, 1 - 1e-7]))
    for end, beyond in ((0, slice(1, 3)), (3, slice(4, 6))):
        np.testing.assert_allclose(alpha[beyond], alpha[end], rtol=1e-12)
        np.testing.assert_allclose(sigma[beyond], sigma[end], rtol=1e-12)
    if name not in ("lognormal", "rectified_flow", "linear"):  # clipped within [0, 1] too, where a rate is 0
        np.testing.assert_allclose(rate[3], rate[7], rtol=1e-3)
    assert np.all(np.isfinite(rate))


def test_zero_terminal_snr_goes_to_pure_noise_and_fits_all_of_process():
    """Lin et al. (2023): the last level is clipped where `cosine` ends, and the rescaled betas are their own."""
    betas = jd.zero_terminal_snr(BETAS)
    schedule = jd.from_betas(betas)
    np.testing.assert_allclose(schedule(1.0).logsnr, -15, rtol=1e-4)
    np.testing.assert_allclose(schedule(0.5).alpha ** 2, np.prod(1 - betas[: len(BETAS) // 2]), rtol=1e-4)
    np.testing.assert_allclose(jd.zero_terminal_snr(betas), betas, rtol=1e-9)
    composed = (
        schedule,
        jd.shifted(schedule, 2.0),
        jd.karras_spaced(schedule),
        jd.uniform_logsnr(schedule),
        process.quadratic(schedule),
    )
    for levels in (*(jd.grid(each, 10) for each in composed), jd.from_timesteps(betas, 10)):
        assert levels.sigma[-1] == 0
        assert np.all(np.isfinite(levels.alpha))
        assert np.all(np.diff(levels.sigma) < 0)


@pytest.mark.parametrize("name", SCHEDULES)
def test_transfer_keeps_the_noise_and_implied_x0_inverts_it(name, float64):
    keys = jax.random.split(jax.random.key(0), 2)
    x0, noise = jax.random.normal(keys[0], (64, 3)), jax.random.normal(keys[1], (64, 3))
    t, s = (SCHEDULES[name](jnp.linspace(a, b, 64)).expand(2) for a, b in ((0.1, 1.0), (0.02, 0.8)))
    x = jd.diffuse(x0, noise, t)
    x_s = jd.transfer(x, x0, t, s)
    np.testing.assert_allclose(x_s, jd.diffuse(x0, noise, s), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(jd.implied_x0(x, x_s, t, s), x0, rtol=1e-6, atol=1e-6)
    clean = jd.Level(jnp.ones(()), jnp.zeros(()))
    np.testing.assert_array_equal(jd.transfer(x, x0, t, clean), x0)


def test_level_is_a_pytree_that_indexes_and_broadcasts():
    levels = jd.grid(jd.cosine(), 4)
    assert len(jax.tree.leaves(levels)) == 2
    assert levels[1:3].alpha.shape == (2,)
    assert levels[:-1].expand(4).sigma.shape == (4, 1, 1, 1)
    np.testing.assert_allclose(from_logsnr(levels[:-1].logsnr).alpha, levels[:-1].alpha, rtol=1e-5)
