"""Names in a config, and the functions that they stand for."""

import dataclasses
from functools import partial
from typing import get_args, get_type_hints

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdiff as jd
from jaxdiff import samplers
from jaxdiff.app import build, config
from jaxdiff.app.cli.verify_command import built_in
from jaxdiff.app.config import Diffusion, Experiment, Sampling
from jaxdiff.io.errors import ConfigError
from jaxdiff.models.schedule import MonotoneLogsnr

FACTORIES = ("ddpm", "heun", "dpmpp_2m", "dpmpp_3m", "dpmpp_2m_sde", "unipc", "euler_maruyama", "consistency")


def test_every_name_has_its_function():
    levels = jd.grid(jd.cosine(), 2)
    assert all(isinstance(build.SAMPLERS[name](0.0, levels), jd.Sampler) for name in get_args(config.SamplerName))
    assert tuple(build.SPACINGS) == get_args(config.Spacing)
    named = {name: set(get_args(hint)) for name, hint in get_type_hints(Diffusion).items()}
    assert named["schedule"] == {*build.SCHEDULES, "learned"}
    assert named["sampling_schedule"] == {*build.SCHEDULES, ""} - {"lognormal"}
    assert named["prediction"] == set(build.PARAMETERIZATIONS)
    assert named["weight"] == {*build.WEIGHTS, "elbo"}
    assert set(config.FAMILIES) == named["schedule"]


def test_the_command_line_knows_the_samplers_that_need_no_arguments():
    assert set(built_in()) == {"ddim", *FACTORIES}


BOUNDED = [
    ({"model": {"channels": 0}}, "model.channels must be at least 1, got 0"),
    ({"model": {"dropout": 1.0}}, "model.dropout must be below 1, got 1.0"),
    ({"diffusion": {"label_dropout": 1.5}}, "diffusion.label_dropout must be at most 1, got 1.5"),
    ({"optimizer": {"learning_rate": 0.0}}, "optimizer.learning_rate must be above 0, got 0.0"),
    ({"autoencoder": {"kl": -1.0}}, "autoencoder.kl must be at least 0, got -1.0"),
    ({"distillation": {"huber": 0.0}}, "distillation.huber must be above 0, got 0.0"),
    ({"seed": -1}, "seed must be at least 0, got -1"),
]


@pytest.mark.parametrize(("values", "message"), BOUNDED)
def test_a_number_out_of_bounds_is_named_with_its_rule(values, message):
    with pytest.raises(ConfigError) as error:
        config.from_dict(values, where="here")
    assert str(error.value) == f"here: {message}"


@pytest.mark.parametrize("name", FACTORIES)
def test_a_sampler_is_the_one_of_its_name_whatever_eta(name):
    """By the program that it makes."""
    levels = jd.grid(jd.cosine(), 4)

    def program(sampler):
        made = partial(samplers.sample, sampler, lambda x, level: level.alpha * jnp.tanh(x))
        return jax.make_jaxpr(made)(jnp.ones((2, 2)), levels, jax.random.key(0))

    one, other = program(build.SAMPLERS[name](0.0, levels)), program(getattr(samplers, name)())
    assert str(one) == str(other)
    jax.tree.map(np.testing.assert_array_equal, one.consts, other.consts)


@pytest.mark.parametrize("schedule", ["cosine", "karras"])
def test_spacings_are_even_in_what_they_are_named_for(schedule):
    def levels(spacing):
        made = Experiment(diffusion=Diffusion(schedule=schedule), sampling=Sampling(steps=8, spacing=spacing))
        found = build.sampling_levels(made)
        assert found.sigma.shape == (9,)
        assert float(found.sigma[-1]) == 0
        return found[:-1]

    np.testing.assert_allclose(np.diff(levels("logsnr").logsnr), np.diff(levels("logsnr").logsnr).mean(), rtol=1e-2)
    roots = (levels("karras").sigma / levels("karras").alpha) ** (1 / 7)
    np.testing.assert_allclose(np.diff(roots), np.diff(roots).mean(), rtol=1e-2)
    plain = build.SCHEDULES[schedule](config.Betas())
    np.testing.assert_allclose(levels("time").logsnr, plain(jnp.arange(8, 0, -1) / 8).logsnr, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(levels("quadratic").logsnr, plain((jnp.arange(8, 0, -1) / 8) ** 2).logsnr, rtol=1e-3, atol=1e-3)


def test_a_classifier_guides_what_passes_through_its_levels():
    """Scaled inputs depend on logsnr alone, so its schedule may be of another family."""
    samples = config.load("configs/digits.py")
    guiding = config.load("configs/digits_classifier.py")
    build.check_source("classifier", samples, guiding, "here")
    karras = dataclasses.replace(samples, diffusion=Diffusion(schedule="karras", prediction="edm"))
    build.check_source("classifier", karras, guiding, "here")
    linear = dataclasses.replace(guiding, diffusion=Diffusion(schedule="linear"))
    with pytest.raises(ConfigError, match=r"the classifier here knows logsnr -10\.0 to 15\.0"):
        build.check_source("classifier", samples, linear, "here")


def test_a_learned_schedule_gives_the_levels_of_its_params():
    learned = config.load("configs/digits_learned_schedule.py")
    module = MonotoneLogsnr()
    schedule = module.init(jax.random.key(0), jnp.zeros((1,)))["params"]
    schedule["l3"] = schedule["l3"].at[20].set(30.0)
    found = build.sampling_levels(learned, {"network": {}, "schedule": schedule})[:-1].logsnr
    times = jnp.linspace(1, 1 / 50, 50)
    np.testing.assert_allclose(found, module.apply({"params": schedule}, times), rtol=1e-4, atol=1e-3)
    assert np.max(np.abs(found - build.sampling_levels(learned)[:-1].logsnr)) > 3
    guiding = config.load("configs/digits_classifier.py")
    build.check_source("classifier", learned, guiding, "here")
    karras = dataclasses.replace(guiding, diffusion=Diffusion(schedule="karras"))
    with pytest.raises(ConfigError, match=r"the samples pass through -5\.0 to 13\.3"):
        build.check_source("classifier", learned, karras, "here")


@pytest.mark.parametrize("everything", [False, True])
def test_weight_decay_leaves_norms_and_biases_alone(everything):
    made = Experiment(optimizer=config.Optimizer(learning_rate=0.1, weight_decay=0.5, clip_norm=0.0, decay_all=everything))
    params = {"Conv_0": {"kernel": jnp.ones((3, 3, 2, 2)), "bias": jnp.ones(2)}, "norm": {"scale": jnp.ones(2)}}
    optimizer = build.optimizer(made)
    with jax.numpy_dtype_promotion("standard"):  # optax's schedules divide counts of steps
        updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params)
    np.testing.assert_allclose(updates["Conv_0"]["kernel"], -0.05, rtol=1e-6)
    for update in (updates["Conv_0"]["bias"], updates["norm"]["scale"]):
        np.testing.assert_allclose(update, -0.05 if everything else 0.0, rtol=1e-6)
