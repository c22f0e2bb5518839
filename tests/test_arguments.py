"""What factories and denoisers are given wrongly is said in one line, at the factory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdiff as jd
from jaxdiff import editing, guidance, likelihood, losses, objectives, process
from jaxdiff.denoiser import bounded, clip
from jaxdiff.objectives import level_pairs

WRONG = {
    "ddim: must have 0 <= eta <= 1, got eta = -1": lambda: jd.ddim(eta=-1),
    "ddim: must have 0 <= eta <= 1, got eta = 1.5": lambda: jd.ddim(eta=1.5),
    "dpmpp_2m_sde: must have 0 <= eta <= 1, got eta = nan": lambda: jd.samplers.dpmpp_2m_sde(eta=float("nan")),
    "churn: must have gamma >= 0, got gamma = -0.1": lambda: jd.churn(jd.heun(), -0.1),
    "churn: must have noise >= 0, got noise = -1": lambda: jd.churn(jd.heun(), noise=-1),
    "churn: must have 0 <= sigma_min < sigma_max, got sigma_min = 2, sigma_max = 1": lambda: jd.churn(
        jd.heun(), sigma_min=2, sigma_max=1
    ),
    "shifted: must have factor > 0, got factor = -1": lambda: jd.shifted(jd.cosine(), -1),
    "karras: must have 0 < sigma_min < sigma_max, got sigma_min = 2, sigma_max = 1": lambda: jd.karras(2, 1),
    "karras: must have rho > 0, got rho = 0": lambda: jd.karras(rho=0),
    "karras_spaced: must have rho > 0, got rho = -7": lambda: jd.karras_spaced(jd.cosine(), -7),
    "cosine: must have logsnr_min < logsnr_max, got logsnr_min = 15, logsnr_max = -15": lambda: jd.cosine(15, -15),
    "rectified_flow: must have logsnr_min < logsnr_max, got logsnr_min = 0, logsnr_max = 0": lambda: jd.rectified_flow(0, 0),
    "linear_logsnr: must have logsnr_min < logsnr_max, got logsnr_min = 20, logsnr_max = 13.3": lambda: process.linear_logsnr(20),
    "linear: must have 0 <= beta_min <= beta_max, beta_max > 0, got beta_min = 20, beta_max = 0.1": lambda: jd.linear(20, 0.1),
    "lognormal: must have std > 0 and 0 < tail < 0.5, got std = -1, tail = 1e-05": lambda: jd.lognormal(std=-1),
    "grid: num_steps must be a whole number of at least 1, got 2.5": lambda: jd.grid(jd.cosine(), 2.5),
    "edm: must have sigma_data > 0 and sigma_min >= 0, got sigma_data = 0, sigma_min = 0": lambda: jd.edm(0),
    "bounded: must have sigma_data > 0 and sigma_min >= 0, got sigma_data = 0.5, sigma_min = -1": lambda: bounded(jd.predict_v, -1),
    "clip: must have low < high, got low = 1, high = -1": lambda: clip(lambda x, level: x, 1, -1),
    "min_snr: must have gamma > 0, got gamma = 0": lambda: losses.min_snr(0),
    "edm_weight: must have sigma_data > 0, got sigma_data = -1": lambda: losses.edm_weight(-1),
    "pseudo_huber: must have c > 0, got c = 0": lambda: losses.pseudo_huber(0),
    "interval: must have sigma_min < sigma_max, got sigma_min = 1, sigma_max = 0.5": lambda: guidance.interval(None, None, 1, 0.5),
    "rescaled: must have 0 <= share <= 1, got share = 2": lambda: guidance.rescaled(None, None, 2),
    "resampled: times must be a whole number of at least 1, got 1.5": lambda: editing.resampled(jd.ddpm(), 1.5),
    "labels: must have 0 <= dropout <= 1, got dropout = 1.1": lambda: objectives.labels(10, 1.1),
    "constant: num must be a whole number of at least 1, got 0": lambda: level_pairs.constant(0),
    "square_root: first must be a whole number of at least 1, got 0": lambda: level_pairs.square_root(0, 10, 100),
    "hutchinson: num_probes must be a whole number of at least 1, got 0": lambda: likelihood.hutchinson(0),
}


@pytest.mark.parametrize("message", WRONG)
def test_a_senseless_number_is_said_at_the_factory(message):
    with pytest.raises(ValueError) as raised:  # noqa: PT011
        WRONG[message]()
    assert str(raised.value) == message


def test_arrays_may_be_traced():
    np.testing.assert_allclose(jax.jit(lambda factor: jd.shifted(jd.cosine(), factor)(0.5).logsnr)(2.0), -2 * np.log(2), rtol=1e-5)
    assert jd.ddim(np.float32(0.5)).step is not None
    jd.ddim(jnp.asarray(2.0))  # an array's value is not looked at


@pytest.mark.parametrize(("channels", "ending"), [(1, ""), (6, "; of a network that learns the variance too, give the first half")])
def test_a_networks_output_of_another_shape_is_refused(channels, ending):
    """It would be broadcast: one channel for three."""
    denoise = jd.denoiser(lambda x, logsnr: jnp.zeros((*x.shape[:-1], channels)), jd.predict_v)
    with pytest.raises(ValueError, match=rf"returned shape \(2, 8, 8, {channels}\) for x of shape \(2, 8, 8, 3\){ending}"):
        denoise(jnp.zeros((2, 8, 8, 3)), jd.cosine()(0.5))
