"""`verify` passes what is right and names what is wrong."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import SAMPLERS

import jaxdiff as jd
from jaxdiff import oracles, process
from jaxdiff.oracles import properties

CONSISTENCY = {"consistency", "consistency_excess"}
ORDERS = {"dpmpp_2m": 2.0, "dpmpp_3m": 3.0, "unipc": 3.0}
FEW_STEPS = "error over DDIM's, 5, 10, 20 steps"
SOLVERS = {"heun", "dpmpp_2m", "dpmpp_3m", "unipc"}
TWICE = {"ddpm", "unipc"}
NUM = 1500
KEY = jax.random.key(0)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in SAMPLERS if name != "heun_edm"])  # which is tested below
def test_every_sampler_passes(name, compilations):
    """Solvers above order 1 in few steps too, of which no others are asked. What is verified again compiles nothing."""
    truth = oracles.flow_map if name in CONSISTENCY else oracles.denoiser
    verify = functools.partial(oracles.verify, SAMPLERS[name], ORDERS.get(name), denoiser=truth, num=NUM)
    report = verify()
    compilations.clear()
    assert name not in TWICE or str(verify()) == str(report)
    assert name not in TWICE or not compilations
    assert report.passed, f"\n{report}"
    assert (FEW_STEPS in str(report)) == (name in SOLVERS)


@pytest.fixture
def standard_promotion():
    """As `verify` runs a sampler."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def loop(step):
    """Somebody else's sampler, a function of x and all levels, from `step(denoise, x, t, s, key) -> x`."""

    def sampler(denoise, x, levels, key):
        keys = jax.random.split(key, levels.sigma.size - 1)

        def body(x, inputs):
            t, s, key = inputs
            return step(denoise, x, t, s, key), None

        return jax.lax.scan(body, x, (levels[:-1], levels[1:], keys))[0]

    return sampler


def plain(denoise, x, t, s, key):
    return jd.transfer(x, denoise(x, t), t, s)


def alpha_of_the_wrong_time(denoise, x, t, s, key):
    return jd.transfer(x, denoise(x, t), t, process.Level(jnp.where(s.sigma > 0, t.alpha, s.alpha), s.sigma))


def slope_reused(denoise, x, t, s, key):
    euler = jd.transfer(x, denoise(x, t), t, s)
    again = denoise(x, t)  # where Heun's rule asks for denoise(euler, s)
    return 0.5 * euler + 0.5 * jd.transfer(x, again, t, s)


def noise_removed_and_none_added(denoise, x, t, s, key):
    return jd.transfer(x, denoise(x, t), t, process.Level(s.alpha, 0.7 * s.sigma))


def noise_not_renewed(denoise, x, t, s, key):
    return jd.ddpm().step(denoise, x, (), t, s, jax.random.key(0))[0]


def noise_added_twice(denoise, x, t, s, key):
    return plain(denoise, x, t, s, key) + jd.process.posterior_std(t, s) * jax.random.normal(key, x.shape, x.dtype)


def right_where_variance_is_preserved_alone(denoise, x, t, s, key):
    """Ho et al. (2020), eq. 7, with beta = 1 - alpha_t^2 / alpha_s^2."""
    beta = 1 - t.alpha**2 / s.alpha**2
    mean = s.alpha * beta / t.sigma**2 * denoise(x, t) + t.alpha / s.alpha * s.sigma**2 / t.sigma**2 * x
    return mean + jnp.sqrt(beta) * s.sigma / t.sigma * jax.random.normal(key, x.shape, x.dtype)


def noise_in_the_last_step(denoise, x, t, s, key):
    moved, _ = jd.ddpm().step(denoise, x, (), t, s, key)
    return moved + jnp.where(s.sigma > 0, 0, jd.process.forward_std(t, s)) * jax.random.normal(key, x.shape, x.dtype)


def no_last_step(denoise, x, t, s, key):
    return jnp.where(s.sigma > 0, plain(denoise, x, t, s, key), x)


def divides_by_the_last_sigma(denoise, x, t, s, key):
    return x * s.sigma / t.sigma + denoise(x, t) * (s.alpha * s.sigma / s.sigma - t.alpha * s.sigma / t.sigma)


def raised_to_float64(denoise, x, levels, key):
    return loop(plain)(denoise, x, levels, key) * jnp.ones((), jax.dtypes.canonicalize_dtype(float))


def order(step):
    return properties.orders(loop(step))


def law(step):
    return [properties.convergence_in_law(loop(step), oracles.denoiser, 4 * NUM, KEY)]


def last_step(step):
    return [properties.last_step(loop(step), jnp.ones((8, 2)))]


def finite(step):
    return [properties.not_finite(compiled(step), jax.random.normal(KEY, (8, 2)))]


def bias(step):
    return moments(step, properties.easy_levels())


def bias_karras(step):
    return moments(step, properties.families()["karras"])


def moments(step, levels):
    return oracles.compare(properties.ends(compiled(step), properties.clouds(), levels, NUM, KEY), properties.clouds(), KEY)


def compiled(step):
    return jax.jit(functools.partial(loop(step), oracles.denoiser(properties.clouds())))


# The checks of `verify` that each fails, and how these lines begin.
BROKEN = {
    alpha_of_the_wrong_time: {order: "order of convergence", bias: "bias of mean"},
    slope_reused: {order: "order of convergence"},
    noise_removed_and_none_added: {order: "order of convergence", bias: "bias of covariance"},
    noise_not_renewed: {bias: "bias of covariance"},
    noise_added_twice: {law: "convergence in law", bias: "bias of covariance"},
    right_where_variance_is_preserved_alone: {bias_karras: "bias of covariance"},
    noise_in_the_last_step: {last_step: "last step"},
    no_last_step: {last_step: "last step"},
    divides_by_the_last_sigma: {finite: "not finite"},
}


def failed(lines):
    return {line.name for line in lines if not line.passed}


@pytest.mark.parametrize("step", BROKEN, ids=lambda step: step.__name__)
def test_a_broken_sampler_fails_by_name(step, standard_promotion):
    for check, line in BROKEN[step].items():
        assert line in failed(check(step))


def test_the_published_rule_of_heun_fails_in_few_steps():
    """Its weight has no bound in the first steps of most schedules, which are long in logsnr."""
    report = oracles.verify(SAMPLERS["heun_edm"], num=NUM)
    assert failed(report.checks) == {FEW_STEPS}
    assert str(report).count("FAILS") == 1
    (line,) = [check for check in report.checks if check.name == FEW_STEPS]
    assert "(cosine, linear logsnr, karras, rectified flow)" in line.measured


def test_a_function_of_ones_own_passes_and_a_dtype_that_drifts_fails():
    report = oracles.verify(raised_to_float64, num=NUM)
    assert failed(report.checks) == {"dtype of float32"}, f"\n{report}"
    assert "order of convergence" in str(report)


def test_another_x0_of_the_same_key_fails():
    """A sampler that draws on the host while it is traced: another noise in each program."""
    random = np.random.default_rng(0)

    def sampler(denoise, x, levels, key):
        return loop(plain)(denoise, x, levels, key) + jnp.float32(random.normal())

    denoise = oracles.denoiser(properties.clouds())
    compiled = jax.jit(functools.partial(sampler, denoise))
    _, key, _ = properties.key_and_compilations(sampler, denoise, compiled, jnp.ones((8, 2)))
    assert not key.passed


def test_levels_read_on_the_host_fail():
    """A sampler that looks at its levels with numpy compiles anew for each list, if at all."""

    def sampler(denoise, x, levels, key):
        return loop(plain)(denoise, x, jax.tree.map(lambda leaf: jnp.asarray(leaf.tolist()), levels), key)

    with pytest.raises(jax.errors.ConcretizationTypeError):
        oracles.verify(sampler)


def test_a_multistep_weight_for_equal_steps_alone_fails(standard_promotion):
    def step(denoise, x, memory, t, s, key):
        x0 = denoise(x, t)
        before, number = memory
        weight = jnp.where((number > 0) & (s.sigma > 0), 0.5, 0.0).astype(x.dtype)
        return jd.transfer(x, x0 + weight * (x0 - before), t, s), (x0, number + 1)

    equal_steps = jd.Sampler(lambda x: (jnp.zeros_like(x), 0), step)
    order, *_ = properties.orders(functools.partial(jd.sample, equal_steps), 2.0)
    assert not order.passed


def test_what_cannot_be_verified_is_said():
    with pytest.raises(ValueError, match="an order can be claimed only for a sampler that does not use its key"):
        oracles.verify(jd.ddpm(), 2.0)
    with pytest.raises(ValueError, match=r"must return x0, an array of x's shape \(8, 2\), got \("):
        oracles.verify(lambda denoise, x, levels, key: (x, x))  # pyright: ignore[reportArgumentType]


def test_a_claim_of_a_higher_order_fails(standard_promotion):
    order, few_steps = properties.orders(functools.partial(jd.sample, jd.dpmpp_2m()), 3.0)
    assert not order.passed
    assert few_steps.passed
