"""Distribution matching: a generator whose noised samples are led to the teacher's distribution (DMD, DMD2)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxdiff import losses, targets
from jaxdiff.denoiser import Denoiser
from jaxdiff.losses import Weight
from jaxdiff.objectives.conditions import Condition
from jaxdiff.objectives.draws import Draws, draw
from jaxdiff.objectives.types import Given, Objective, Params, Student, Teacher
from jaxdiff.process import Level, Schedule, diffuse

Terms = dict[str, Array]
TIMES = (0.02, 0.98)  # of the schedule, between which distributions are compared (Yin et al. 2023, appendix)


class Critic(NamedTuple):
    """A classifier of noised images, and how its loss enters.

    Attributes:
        score: `(params, given) -> (x, level) -> scores [B]`, high for data; of the fake denoiser's features in DMD2.
        weight: of the generator's loss `softplus(-score)`, beside that of matching.
        own_weight: of its own loss, beside the fake denoiser's.
    """

    score: Callable[[Params, Given], Callable[[Array, Level], Array]]
    weight: float = 3e-3
    own_weight: float = 1e-2


class Players(NamedTuple):
    """The denoisers of `params` that are trained: the generator, and the fake one, of the generator's distribution."""

    generator: Student
    fake: Student


def distribution_matching(
    players: Players,
    teacher: Teacher,
    levels: Level,
    schedule: Schedule,
    weight: Weight,
    *,
    condition: Condition,
    every: int = 5,
    critic: Critic | None = None,
) -> Objective:
    """The loss of a generator to `targets.matching`, and of the fake denoiser to the generator's samples: DMD2 in one step.

    Yin et al. (2024), sections 4.2 to 4.5. The gradient of each loss is stopped at the other's params. The generator's loss is
    computed, and is not 0, in each `every`-th step alone (two time scales); its optimizer must rest in the others, see
    `optax.conditionally_mask`. Where `levels` has several steps the generator is trained at all of them, on its own samples,
    noised as `samplers.consistency` does. Of the batch's images only the critic sees the values.

    Args:
        players: denoisers of `params` that begin as the teacher.
        teacher: a denoiser of `state.frozen`, the real one.
        levels: `[N + 1]`, noisiest first, the last is clean: where the generator is called, N times a sample.
        schedule: of the levels at which the two denoisers are compared, and the fake one is trained.
        weight: of the fake denoiser's loss, which is `diffusion`'s.
        condition: what all are given of a batch.
        every: steps after which the generator moves.
        critic: of DMD2's adversarial loss; None is none.
    """

    def objective(params: Params, state: Any, batch: Mapping[str, Array], key: Array) -> tuple[Array, Terms]:
        drawn = draw(batch, key, condition)
        still, (when, then) = jax.lax.stop_gradient(params), _times(drawn)
        start, path, compared, noised = jnp.moveaxis(jax.vmap(partial(jax.random.split, num=4))(drawn.noise_keys), 1, 0)
        x, t = _on_the_way(players.generator(still, drawn.given, drawn.dropout_key), levels, drawn, start, path)
        level = schedule(TIMES[0] + (TIMES[1] - TIMES[0]) * when).expand(x.ndim)

        def rests(params: Params) -> tuple[Array, Array]:
            return jnp.zeros((), x.dtype), players.generator(still, drawn.given, drawn.dropout_key)(x, t)

        def moves(params: Params) -> tuple[Array, Array]:
            sample = players.generator(params, drawn.given, drawn.dropout_key)(x, t)
            target = targets.matching(sample, teacher(state.frozen, drawn.given), players.fake(still, drawn.given, None))
            fixed = jax.lax.stop_gradient(sample)
            loss = jnp.mean(losses.regression_loss(targets.data(sample), target, fixed, level, compared, _half))
            if critic is not None:
                noisy = diffuse(sample, losses.noise_like(compared, sample), level)
                loss += critic.weight * jnp.mean(jax.nn.softplus(-critic.score(still, drawn.given)(noisy, level)))
            return loss, fixed

        loss, sample = jax.lax.cond(state.step % every == 0, moves, rests, params)
        level = schedule(then).expand(x.ndim)
        imitating = players.fake(params, drawn.given, drawn.dropout_key)
        denoising = jnp.mean(losses.regression_loss(imitating, targets.data(sample), sample, level, noised, weight))
        terms = {"generator": loss, "fake": denoising}
        if critic is not None:
            terms["critic"] = _classified(critic.score(params, drawn.given), drawn.x0, sample, noised, level)
            denoising += critic.own_weight * terms["critic"]
        return loss + denoising, terms

    return objective


def _half(level: Level) -> Array:
    """Of a squared error whose gradient is the difference itself."""
    return jnp.full_like(level.sigma, 0.5)


def _times(drawn: Draws) -> tuple[Array, Array]:
    """Times at which denoisers are compared, and at which the fake one is trained, `[B]` each."""
    one, other, _ = jax.random.split(drawn.time_key, 3)
    return losses.spread_times(one, drawn.indices), losses.spread_times(other, drawn.indices)


def _on_the_way(generate: Denoiser, levels: Level, drawn: Draws, start: Array, path: Array) -> tuple[Array, Level]:
    """The x and the level after some of the N steps of consistency sampling, from none to N - 1, even over the batch."""
    x, num = levels.sigma[0] * losses.noise_like(start, drawn.x0), levels.sigma.size - 1
    if num == 1:
        return x, levels[0]
    times = losses.spread_times(jax.random.split(drawn.time_key, 3)[2], drawn.indices)
    done = jnp.minimum((times * num).astype(jnp.int32), num - 1)
    waits = done.reshape(-1, *(1 for _ in x.shape[1:]))

    def step(number: Array, x: Array) -> Array:
        keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(path, number)
        ahead = diffuse(generate(x, levels[number]), losses.noise_like(keys, x), levels[number + 1])
        return jnp.where(number < waits, ahead, x)

    return jax.lax.fori_loop(0, num - 1, step, x), levels[done].expand(x.ndim)


def _classified(score: Callable[[Array, Level], Array], x0: Array, sample: Array, keys: Array, level: Level) -> Array:
    """`softplus(-score(data)) + softplus(score(sample))`, both noised alike (Goodfellow et al. 2014; Yin et al. 2024, eq. 4)."""
    noise = losses.noise_like(keys, x0)
    of_data, of_sample = (score(diffuse(images, noise, level), level) for images in (x0, sample))
    return jnp.mean(jax.nn.softplus(-of_data)) + jnp.mean(jax.nn.softplus(of_sample))
