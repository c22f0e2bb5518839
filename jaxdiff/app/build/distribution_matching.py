"""What a config of distribution matching stands for: its players, their params and optimizers, and the critic."""

from collections.abc import Callable, Hashable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

from jaxdiff import losses, objectives, process
from jaxdiff.app.build.networks import Sources, conditional_denoiser, parameterization_of, space, unet
from jaxdiff.app.build.tables import SCHEDULES
from jaxdiff.app.config import Experiment
from jaxdiff.models import discriminator
from jaxdiff.objectives import Condition, Objective

HEAD = 0x68656164  # folded into the key for the params of the critic's head


def objective(
    config: Experiment, teacher: objectives.Teacher, levels: process.Level, condition: Condition, weight: losses.Weight
) -> Objective:
    """The training objective of a generator and its fake denoiser."""
    c, schedule = config.matching, SCHEDULES[config.diffusion.schedule](config.betas)
    players = objectives.Players(*(partial(_player, config, name) for name in ("generator", "fake")))
    critic = objectives.Critic(partial(_score, config), c.adversarial, c.classification) if c.adversarial else None
    options: dict[str, Any] = {"condition": condition, "every": c.generator_every, "critic": critic}
    return objectives.distribution_matching(players, teacher, levels, schedule, weight, **options)


def params(config: Experiment, sources: Sources, network: Any, key: Array) -> dict[str, Any]:
    """Generator and fake denoiser that both begin as a network of these params; with a critic, its head."""
    both = {"generator": network, "fake": jax.tree.map(jnp.copy, network)}
    if not config.matching.adversarial:
        return both
    height, width, channels = space(config, sources)
    image, label = jnp.zeros((1, height, width, channels)), jnp.zeros((1,), jnp.int32)
    hidden = jax.eval_shape(discriminator.middle(unet(config)), network, image, jnp.zeros((1,)), {"label": label})
    head = _head(config).init(jax.random.fold_in(key, HEAD), jnp.zeros(hidden.shape, hidden.dtype))["params"]
    return {**both, "head": head}


def optimizer(config: Experiment, adamw: Callable[..., optax.GradientTransformation]) -> optax.GradientTransformation:
    """That of each of them, by `adamw(every, rate)`; between its steps the generator's does not move either."""
    c = config.matching

    def is_turn(step: Any, **others: Any) -> Any:
        return step % c.generator_every == 0

    moves = optax.conditionally_mask(adamw(c.generator_every, 1.0), is_turn)
    beside = adamw(1, c.fake_rate)
    players: dict[Hashable, Any] = {"generator": moves, "fake": beside, "head": beside}
    return optax.partition(players, lambda params: {name: name for name in params})


def _player(config: Experiment, name: str, params: Any, given: Any, dropout_key: Array | None) -> Any:
    return conditional_denoiser(config, params[name], given, dropout_key)


def _score(config: Experiment, params: Any, given: Mapping[str, Array]) -> Callable[[Array, process.Level], Array]:
    middle, head = discriminator.middle(unet(config)), _head(config)

    def score(x: Array, level: process.Level) -> Array:
        scale = parameterization_of(config)(level).scale
        logsnr = jnp.broadcast_to(jnp.ravel(level.logsnr), (len(x),))
        return head.apply({"params": params["head"]}, middle(params["fake"], scale * x, logsnr, given))

    return score


def _head(config: Experiment) -> Any:
    c = config.matching
    return discriminator.Head(c.classifier_channels, c.classifier_layers, jnp.dtype(config.model.dtype))
