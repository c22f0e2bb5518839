"""What the contract tables run over, and the mixture that is their truth."""

import jax.numpy as jnp
import numpy as np

import jaxdiff as jd
from jaxdiff import guidance, losses, oracles, process, samplers

SCHEDULES = {
    "cosine": jd.cosine(),
    "linear": jd.linear(),
    "linear_logsnr": jd.linear_logsnr(),
    "karras": jd.karras(),
    "rectified_flow": jd.rectified_flow(),
    "from_betas": jd.from_betas(np.linspace(1e-4, 0.02, 1000)),
    "shifted": jd.shifted(jd.cosine(), 2.0),
    "shifted_flow": jd.shifted(jd.rectified_flow(), 3.0, size=jnp.add),
    "lognormal": jd.lognormal(),
}

# Parameterization, its own weight, and the network output that is exactly right, from x0, noise, alpha, sigma.
PARAMETERIZATIONS = {
    "x0": (jd.predict_x0, losses.x0_weight, lambda x0, noise, a, s: x0),
    "noise": (jd.predict_noise, losses.noise_weight, lambda x0, noise, a, s: noise),
    "score": (jd.predict_score, losses.score_weight, lambda x0, noise, a, s: -noise / s),
    "v": (jd.predict_v, losses.v_weight, lambda x0, noise, a, s: a * noise - s * x0),
    "velocity": (jd.predict_velocity, losses.velocity_weight, lambda x0, noise, a, s: noise - x0),
    "edm": (jd.edm(), losses.edm_weight(), lambda x0, noise, a, s: edm_target(x0, noise, s / a)),
}

SAMPLERS = {
    "ddim": jd.ddim(),
    "ddim_eta": jd.ddim(0.5),
    "ddpm": jd.ddpm(),
    "ddpm_large": jd.ddpm(process.forward_std),
    "euler_maruyama": jd.euler_maruyama(),
    "heun": jd.heun(),
    "dpmpp_2m": jd.dpmpp_2m(),
    "dpmpp_2m_sde": jd.dpmpp_2m_sde(),
    "dpmpp_3m": jd.dpmpp_3m(),
    "unipc": jd.unipc(),
    "churn": jd.churn(jd.heun(), 0.1),
    "consistency": jd.consistency(),
    "latent_consistency": jd.consistency(noise=samplers.full_std),
}
DETERMINISTIC = {"ddim", "heun", "dpmpp_2m", "dpmpp_3m", "unipc"}

# From a denoiser with a label, one without, log p(label | x) and a scale that is 1 where nothing is guided.
GUIDANCES = {
    "guide": lambda label, plain, log_prob, scale: jd.guide(label, plain, scale),
    "projected": lambda label, plain, log_prob, scale: guidance.projected_guide(label, plain, scale, eta=0.1, radius=2.0),
    "rescaled": lambda label, plain, log_prob, scale: guidance.rescaled(jd.guide(label, plain, scale), label),
    "interval": lambda label, plain, log_prob, scale: guidance.interval(jd.guide(label, plain, scale), label, 0.1, 3.0),
    "classifier": lambda label, plain, log_prob, scale: jd.classifier_guide(plain, log_prob, scale),
    "composed": lambda label, plain, log_prob, scale: jd.clip(
        guidance.interval(jd.classifier_guide(jd.guide(label, plain, scale), log_prob, scale - 1), label, 0.1, 3.0)
    ),
}


def edm_target(x0, noise, sigma, sigma_data=0.5):
    """Karras et al. (2022), eq. 8 and table 1, in their own coordinates y = x0 + sigma noise."""
    skip = sigma_data**2 / (sigma**2 + sigma_data**2)
    out = sigma * sigma_data / jnp.sqrt(sigma**2 + sigma_data**2)
    return (x0 - skip * (x0 + sigma * noise)) / out


def clouds():
    """The mixture that the peer's trajectories were recorded on."""
    return oracles.mixture([0.2, 0.5, 0.3], [[-1.0, 0.5], [0.8, 0.9], [0.3, -1.2]], [0.2, 0.1, 0.35])
