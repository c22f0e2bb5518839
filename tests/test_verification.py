"""`verify` passes what is right and names what is wrong."""

from functools import partial

import jax
import jax.numpy as jnp
import pytest
from cases import SAMPLERS

import jaxdiff as jd
from jaxdiff import oracles, process
from jaxdiff.oracles.few_steps import few_steps

CONSISTENCY = {"consistency", "consistency_excess"}
ORDERS = {"dpmpp_2m": 2.0, "dpmpp_3m": 3.0, "unipc": 3.0}
verify = partial(oracles.verify, num=4_000)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in SAMPLERS if name != "heun_edm"])  # which is tested below
def test_every_sampler_passes(name):
    truth = oracles.flow_map if name in CONSISTENCY else oracles.denoiser
    report = verify(SAMPLERS[name], ORDERS.get(name), denoiser=truth)
    assert report.passed, f"\n{report}"


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


BROKEN = {
    alpha_of_the_wrong_time: ("order of convergence", "bias of mean"),
    slope_reused: ("order of convergence",),
    noise_removed_and_none_added: ("order of convergence", "bias of covariance"),
    noise_not_renewed: ("bias of covariance",),
    noise_added_twice: ("convergence in law", "bias of covariance"),
    right_where_variance_is_preserved_alone: ("bias of covariance, karras",),
    noise_in_the_last_step: ("last step",),
    no_last_step: ("last step",),
    divides_by_the_last_sigma: ("not finite",),
}


def failed(report):
    return {check.name for check in report.checks if not check.passed}


FEW_STEPS = "error over DDIM's, 5, 10, 20 steps"


@pytest.mark.parametrize("name", ["heun", "dpmpp_2m", "dpmpp_3m", "unipc"])
def test_solvers_are_no_worse_than_ddim_in_few_steps(name, float64):
    line = few_steps(partial(jd.sample, SAMPLERS[name]))
    assert line.passed, line


def test_the_published_rule_of_heun_fails_in_few_steps():
    """Its weight has no bound in the first steps of most schedules, which are long in logsnr."""
    report = verify(jd.heun(jd.samplers.edm_trapezoid))
    assert failed(report) == {FEW_STEPS}
    (line,) = [check for check in report.checks if check.name == FEW_STEPS]
    assert "(cosine, linear logsnr, karras, rectified flow)" in line.measured


def test_few_steps_are_asked_of_solvers_above_order_one_alone():
    assert FEW_STEPS not in str(verify(jd.ddim()))


def test_a_function_of_ones_own_passes():
    report = verify(loop(plain))
    assert report.passed, f"\n{report}"
    assert "order of convergence" in str(report)


@pytest.mark.parametrize("step", BROKEN, ids=lambda step: step.__name__)
def test_a_broken_sampler_fails_by_name(step):
    report = verify(loop(step))
    assert set(BROKEN[step]) <= failed(report), f"\n{report}"
    assert "FAILS" in str(report)


def test_a_dtype_that_drifts_fails():
    assert "dtype of float32" in failed(verify(raised_to_float64))


def test_levels_read_on_the_host_fail():
    """A sampler that looks at its levels with numpy compiles anew for each list, if at all."""

    def sampler(denoise, x, levels, key):
        return loop(plain)(denoise, x, jax.tree.map(lambda leaf: jnp.asarray(leaf.tolist()), levels), key)

    with pytest.raises(jax.errors.ConcretizationTypeError):
        verify(sampler)


def test_a_multistep_weight_for_equal_steps_alone_fails():
    def step(denoise, x, memory, t, s, key):
        x0 = denoise(x, t)
        before, number = memory
        weight = jnp.where((number > 0) & (s.sigma > 0), 0.5, 0.0).astype(x.dtype)
        return jd.transfer(x, x0 + weight * (x0 - before), t, s), (x0, number + 1)

    equal_steps = jd.Sampler(lambda x: (jnp.zeros_like(x), 0), step)
    assert failed(verify(equal_steps, 2.0)) == {"order of convergence"}


def test_what_cannot_be_verified_is_said():
    with pytest.raises(ValueError, match="an order can be claimed only for a sampler that does not use its key"):
        verify(jd.ddpm(), 2.0)
    with pytest.raises(ValueError, match=r"must return x0, an array of x's shape \(8, 2\), got \("):
        verify(lambda denoise, x, levels, key: (x, x))


def test_a_claim_of_a_higher_order_fails():
    assert failed(verify(jd.dpmpp_2m(), 3.0)) == {"order of convergence"}
