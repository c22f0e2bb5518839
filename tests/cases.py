"""What the contract tables run over, and the mixture that is their truth."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

import jaxdiff as jd
from jaxdiff import guidance, losses, objectives, oracles, process, samplers

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


def of_denoisers(sampler):
    """A sampler of average denoisers, given denoisers that do not hear where the step goes."""

    def step(denoise, x, memory, t, s, key):
        return sampler.step(lambda x, t, s: denoise(x, t), x, memory, t, s, key)

    return sampler._replace(step=step)


SAMPLERS = {
    "ddim": jd.ddim(),
    "ddim_eta": jd.ddim(0.5),
    "ddpm": jd.ddpm(),
    "ddpm_large": jd.ddpm(process.forward_std),
    "euler_maruyama": jd.euler_maruyama(),
    "heun": jd.heun(),
    "heun_edm": jd.heun(samplers.edm_trapezoid),
    "dpmpp_2m": jd.dpmpp_2m(),
    "dpmpp_2m_sde": jd.dpmpp_2m_sde(),
    "dpmpp_3m": jd.dpmpp_3m(),
    "unipc": jd.unipc(),
    "churn": jd.churn(jd.heun(), 0.1),
    "consistency": jd.consistency(),
    "consistency_excess": jd.consistency(samplers.excess_std),
    "jumps": of_denoisers(samplers.flow_map()),
}

DETERMINISTIC = {"ddim", "jumps", "heun", "heun_edm", "dpmpp_2m", "dpmpp_3m", "unipc"}

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


MEAN, STD = np.array([0.3, -0.2]), np.array([0.5, 0.8])  # of one Gaussian


def ddim_end(x, t, s):
    """Where one DDIM step with the Gaussian's exact denoiser ends, by hand: levels `[...]`, x `[..., 2]`."""
    var = STD**2
    a, b, c, d = (np.asarray(value, np.float64)[..., None] for value in (t.alpha, t.sigma, s.alpha, s.sigma))
    return c * MEAN + (a * c * var + b * d) / (a**2 * var + b**2) * (x - a * MEAN)


def rows(levels, level, beyond=0):
    """The levels so many steps beyond those given, `[B, 1]` or `[]`, in a list; the last where there are no more."""
    row = jnp.argmin(jnp.abs(levels.sigma[None] - jnp.ravel(level.sigma)[:, None]), axis=1)
    return levels[jnp.minimum(row + beyond, levels.sigma.size - 1)].expand(2)


def along(data, levels, steps=1):
    """The denoiser with which one step of DDIM, so many levels on, goes along the exact flow of one Gaussian."""

    def denoise(x, t):
        s = rows(levels, t, steps)
        return jd.implied_x0(x, oracles.flow_map(data)(x, t, s), t, s)

    return denoise


class Method(NamedTuple):
    """A training method on vectors of two values, and a teacher and a student at which its loss is zero.

    Where there is no teacher, its loss is zero at data of one point.
    """

    objective: Callable  # (student, teacher, schedule) -> objective; both are given a guidance scale [B]
    teacher: Callable | None
    best: Callable  # (x, level, scale) -> x0


POINT = (0.5, -0.25)
PICKED = (1.0, 0.2, 0.0)  # a label's likelihood in the components of the clouds
SCALES = objectives.guidance_scales(1.0, 3.0)


def eight():
    return jd.grid(jd.cosine(), 8)


def guided_clouds(given):
    """Guidance of the clouds towards a label, by each example's scale."""
    label = oracles.denoiser(oracles.conditional(clouds(), PICKED))
    return jd.guide(label, oracles.denoiser(clouds()), given[:, None])


def follows(steps):
    return lambda given: along(oracles.gaussian(MEAN, STD), eight(), steps)


def flows(x, level, given):
    return oracles.flow_map(oracles.gaussian(MEAN, STD))(x, level)


def point(x, *levels_and_given):
    return jnp.broadcast_to(jnp.array(POINT)[None], x.shape)


def diffusion(student, teacher, schedule):
    def network(params, x, logsnr, given, key):
        return student(params, given, key)(x, process.from_logsnr(logsnr).expand(2))

    return objectives.diffusion(network, schedule, jd.predict_x0, losses.v_weight, condition=SCALES)


def progressive(student, teacher, schedule):
    return objectives.progressive(student, teacher, eight(), losses.truncated_snr, condition=SCALES)


def progressive_everywhere(student, teacher, schedule):
    return objectives.progressive(
        student, teacher, eight(), losses.truncated_snr, condition=SCALES, halvings=lambda step: step // 3, every_level=True
    )


def consistency_distillation(student, teacher, schedule):
    pairs = objectives.steps_of(eight())
    return objectives.consistency(student, teacher, pairs, objectives.inverse_gap, condition=SCALES, target_ema="ema")


def consistency_training(student, teacher, schedule):
    pairs = objectives.steps_of(eight(), objectives.doubling(2, 8, 6), measure=objectives.lognormal_measure())
    distance = losses.pseudo_huber(0.01)
    return objectives.consistency(student, None, pairs, objectives.inverse_gap, condition=SCALES, distance=distance)


def easy_consistency(student, teacher, schedule):
    pairs = objectives.shrinking(schedule, 2)
    return objectives.consistency(student, None, pairs, objectives.of_noisier(losses.v_weight), condition=SCALES)


def latent_consistency(student, teacher, schedule):
    pairs, weight = objectives.steps_of(eight(), skip=2), objectives.of_noisier(losses.x0_weight)
    on_latents = objectives.consistency(student, teacher, pairs, weight, condition=SCALES, target_ema="ema")
    return objectives.latent(on_latents, lambda frozen, batch: (frozen["encoder"] * batch["image"], jnp.full((), 0.1)))


def continuous_distillation(student, teacher, schedule):
    return objectives.continuous_consistency(student, teacher, schedule, condition=SCALES, warmup_steps=2)


def of_teacher(teacher):
    """A frozen denoiser whose flow a flow map learns; without one, the data's."""
    return (lambda params, frozen, given, x0: teacher(frozen, given)) if teacher else objectives.of_data


def flow_of(method, intervals, taught=True, **options):
    """The objective of flow maps by one method, of a teacher's flow or of the data's."""

    def build(student, teacher, schedule):
        source = of_teacher(teacher if taught else None)
        own = options if "distance" in options else {"weight": losses.v_weight}
        return objectives.flow_map(student, method, intervals(schedule), condition=SCALES, teacher=source, **own)

    return build


def halved(schedule):
    return objectives.any_intervals(schedule, equal=0.25, share=lambda step: 0.5)


def whole(schedule):
    return objectives.any_intervals(schedule, equal=0.25, times=objectives.logit_normal())


def averages(x, t, s, given):
    return oracles.average_denoiser(oracles.gaussian(MEAN, STD))(x, t, s)


def exact(given):
    return oracles.denoiser(oracles.gaussian(MEAN, STD))


ADAPTIVE = {"weight": losses.x0_weight, "distance": losses.adaptive_error()}


def continuous_training(student, teacher, schedule):
    return objectives.continuous_consistency(student, None, schedule, condition=SCALES)


def distribution_matching(student, teacher, schedule):
    """Without its terms; both players have the same params."""
    players, levels = objectives.Players(student, student), jd.grid(jd.cosine(), 2)
    both = objectives.distribution_matching(players, teacher, levels, schedule, losses.v_weight, condition=SCALES, every=1)
    return lambda *inputs: both(*inputs)[0]


METHODS = {
    "diffusion": Method(diffusion, None, point),
    "guided": Method(
        lambda student, teacher, schedule: objectives.guided(student, teacher, schedule, losses.v_weight, condition=SCALES),
        guided_clouds,
        lambda x, level, given: oracles.guided(clouds(), PICKED, given)(x, level),
    ),
    "progressive": Method(progressive, follows(1), lambda x, level, given: follows(2)(given)(x, level)),
    "progressive_everywhere": Method(progressive_everywhere, follows(1), lambda x, level, given: follows(2)(given)(x, level)),
    "consistency_distillation": Method(consistency_distillation, follows(1), flows),
    "consistency_training": Method(consistency_training, None, point),
    "easy_consistency": Method(easy_consistency, None, point),
    "latent_consistency": Method(latent_consistency, follows(2), flows),
    "continuous_distillation": Method(continuous_distillation, lambda given: oracles.denoiser(oracles.gaussian(MEAN, STD)), flows),
    "continuous_training": Method(continuous_training, None, point),
    "shortcut": Method(flow_of(objectives.shortcut, halved), exact, averages),
    "alpha_flow": Method(flow_of(objectives.alpha_flow, halved, False, **ADAPTIVE), None, point),
    "mean_flow": Method(flow_of(objectives.mean_flow(), whole), exact, averages),
    "improved_mean_flow": Method(flow_of(objectives.improved_mean_flow(), whole), exact, averages),
    "distribution_matching": Method(distribution_matching, lambda given: lambda x, level: point(x, level, given), point),
}
JUMPS = {"shortcut", "alpha_flow", "mean_flow", "improved_mean_flow"}  # flow maps
AVERAGED = {"consistency_distillation", "latent_consistency"}  # whose targets are an EMA's
