"""Chains that end in pure noise: every weight, sampler and prediction is finite at their last level."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdiff as jd
from jaxdiff import losses, process
from jaxdiff.app import build, config
from jaxdiff.io.errors import ConfigError

SCHEDULE = jd.linear_zero_snr()
BETAS = jd.zero_terminal_snr(np.linspace(1e-4, 0.02, 1000))
DIVIDES = ("noise", "score")  # predictions whose x0 divides by alpha
LISTS = {"clipped": jd.grid(SCHEDULE, 4), "alpha 0": jd.from_timesteps(BETAS, 4)}


def predictions(levels):
    """All of them; without those that divide by alpha where it is 0."""
    return {name: each(0.0) for name, each in build.PARAMETERIZATIONS.items() if levels.alpha[0] > 0 or name not in DIVIDES}


def stacked(levels):
    """A denoiser of a batch that holds an example of each prediction: one program for all."""
    parameterizations = predictions(levels).values()

    def denoise(x, level):
        level = jax.tree.map(jnp.ravel, level)
        parts = [each(level) for each in parameterizations]
        skip, out, scale = (jnp.stack(part).reshape(-1, 1) for part in zip(*parts, strict=True))
        return skip * x + out * jnp.tanh(scale * x)

    return denoise


def test_the_schedule_is_that_of_the_rescaled_betas():
    times = jnp.array([0, 0.25, 0.5, 0.75])
    chain = jd.from_timesteps(BETAS, 4)[::-1]
    np.testing.assert_allclose(SCHEDULE(times)[1:].alpha, chain[1:-1].alpha, rtol=1e-5)
    assert float(SCHEDULE(1.0).logsnr) == pytest.approx(-15, abs=0.01)
    for wrong in ({"beta_min": 0.0}, {"beta_max": 1.0}, {"beta_min": 0.03}):
        with pytest.raises(ValueError, match=r"linear_zero_snr: wants 0 < beta_min <= beta_max < 1|linear_zero_snr: .*beta_min"):
            jd.linear_zero_snr(**wrong)


@pytest.mark.parametrize("levels", LISTS.values(), ids=LISTS)
@pytest.mark.parametrize(
    "name", [name for name in build.SAMPLERS if name not in config.KERNELS]
)  # which test_learned_variance.py tests
def test_every_sampler_leaves_pure_noise_with_every_prediction(name, levels):
    if name == "euler_maruyama" and levels.alpha[0] == 0:
        pytest.skip("fails where alpha = 0, as its docstring says")
    num = len(predictions(levels))
    x = jax.random.normal(jax.random.key(0), (num, 3))
    samples = jd.sample(build.SAMPLERS[name](0.0, levels), stacked(levels), x, levels, jax.random.key(1))
    assert np.isfinite(samples).all(), dict(zip(predictions(levels), samples, strict=True))


@pytest.mark.parametrize("levels", LISTS.values(), ids=LISTS)
def test_every_weight_of_every_prediction_is_finite_at_the_end(levels):
    """So are the gradients that the network gets."""
    elbo = [losses.elbo_weight(SCHEDULE)] if levels.alpha[0] > 0 else []  # defined at the schedule's own levels alone
    weights = [*build.WEIGHTS.values(), *elbo]
    denoise, x0 = stacked(levels), jnp.ones((len(predictions(levels)), 3))

    def weighted(gain):
        args = (lambda x, level: gain * denoise(x, level), jd.targets.data(x0), x0, levels[0], jax.random.key(0))
        return jnp.stack([losses.regression_loss(*args, weight) for weight in weights])

    losses_and_gradients = jax.jit(lambda gain: jax.jvp(weighted, (gain,), (1.0,)))(1.0)
    assert np.isfinite(losses_and_gradients).all()


@pytest.mark.parametrize("place", ["schedule", "sampling_schedule"])
def test_a_config_refuses_predicted_noise_there(place):
    made = config.Diffusion(**{place: "linear_zero_snr"})
    assert config.validated(config.Experiment(diffusion=made))
    for prediction in build.PARAMETERIZATIONS:
        asked = config.Experiment(diffusion=dataclasses.replace(made, prediction=prediction))
        if prediction in DIVIDES:
            with pytest.raises(
                ConfigError, match="prediction must be v, x0, velocity or edm on linear_zero_snr: at its end x is noise"
            ):
                config.validated(asked)
        else:
            assert config.validated(asked) == asked
    assert build.SCHEDULES["linear_zero_snr"](config.Betas())(1.0) == process.linear_zero_snr()(1.0)
