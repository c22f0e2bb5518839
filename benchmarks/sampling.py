"""Prints what samplers cost beside the network calls in them, and the memory of long sampling over short.

For the networks of configs/digits.py and configs/cifar10.py, in float32:

- DDIM and DPM-Solver++(2M) of 10 steps (10 network calls) and Heun of 25 (49 calls): images per second, and the time over
  that of the same number of calls of the jitted network alone (1: the sampler costs nothing);
- classifier-free guidance by one doubled batch, and by two calls as `jaxdiff.guide` makes them: the time of the first over
  that of the second in a 10-step DDIM (above 1: two calls are faster);
- the temporary memory of the compiled 1,000-step and 10-step DDPM (1: memory does not grow with the number of steps).

The timings take turns; each figure is the median of the rounds. Exit status 1: a sampler's ratio is above 1.05, or that of
memory above 1.02.

Run: python benchmarks/sampling.py
"""

from __future__ import annotations

import argparse
import pathlib
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

import jaxdiff as jd
from jaxdiff import objectives
from jaxdiff.app import build
from jaxdiff.app import config as configs
from jaxdiff.app.config import Experiment
from jaxdiff.models.unet import network

CONFIGS = pathlib.Path(__file__).parent.parent / "configs"
SAMPLERS = {"DDIM": (jd.ddim(), 10, 10), "2M": (jd.dpmpp_2m(), 10, 10), "Heun": (jd.heun(), 25, 49)}  # steps, network calls
Work = Callable[[], Any]


def sampled(sampler: jd.Sampler, denoiser: Callable[..., jd.Denoiser], num_steps: int) -> Callable[..., jax.Array]:
    """The jitted `(params, x, label, key) -> images` of the denoiser `denoiser(params, label)`."""
    levels = jd.grid(jd.karras_spaced(jd.cosine()), num_steps, t_min=0.0)
    return jax.jit(lambda params, x, label, key: jd.sample(sampler, denoiser(params, label), x, levels, key))


def doubled(apply: Callable[..., jax.Array], null_label: int, scale: float) -> Callable[..., jd.Denoiser]:
    """Classifier-free guidance in one call: the batch with its labels above the same batch without."""

    def denoiser(params: Any, label: jax.Array) -> jd.Denoiser:
        def both(x: jax.Array, logsnr: jax.Array) -> jax.Array:
            labels = jnp.concatenate([label, jnp.full_like(label, null_label)])
            with_label, without = jnp.split(apply(params, jnp.tile(x, (2, 1, 1, 1)), jnp.tile(logsnr, 2), labels), 2)
            return scale * with_label + (1 - scale) * without

        return jd.denoiser(both, jd.predict_v)

    return denoiser


def two_calls(apply: Callable[..., jax.Array], null_label: int, scale: float) -> Callable[..., jd.Denoiser]:
    """Classifier-free guidance by `jaxdiff.guide`."""

    def denoiser(params: Any, label: jax.Array) -> jd.Denoiser:
        pair = (objectives.conditional(apply, jd.predict_v, params, of) for of in (label, jnp.full_like(label, null_label)))
        return jd.guide(*pair, scale)

    return denoiser


def seconds(works: dict[str, Work], rounds: int) -> dict[str, float]:
    """Median seconds of each work; they take turns, for so many rounds and at least half a minute."""
    taken: dict[str, list[float]] = {name: [] for name in works}
    for work in works.values():
        jax.block_until_ready(work())
    begin = time.perf_counter()
    while len(next(iter(taken.values()))) < rounds or time.perf_counter() - begin < 30:
        for name, work in works.items():
            start = time.perf_counter()
            jax.block_until_ready(work())
            taken[name].append(time.perf_counter() - start)
    return {name: statistics.median(times) for name, times in taken.items()}


def times(config: Experiment, batch_size: int, rounds: int) -> dict[str, float]:
    """Seconds of each sampler, of as many network calls, and of both ways to guide."""
    key, apply, null = jax.random.key(0), network(build.unet(config)), config.model.num_classes
    params = jax.jit(partial(build.init, config))(key).params
    x = jax.random.normal(key, (batch_size, *config.data.image_shape))
    logsnr, label = jnp.zeros(batch_size), jnp.zeros(batch_size, jnp.int32)
    call = jax.jit(apply)
    works: dict[str, Work] = {}
    for name, (sampler, num_steps, calls) in SAMPLERS.items():
        generate = sampled(sampler, lambda params, label: objectives.conditional(apply, jd.predict_v, params, label), num_steps)
        works[name] = partial(generate, params, x, label, key)
        works[f"{calls} calls"] = lambda calls=calls: [call(params, x, logsnr, label) for _ in range(calls)]
    for name, guidance in (("one doubled batch", doubled), ("two calls", two_calls)):
        works[name] = partial(sampled(jd.ddim(), guidance(apply, null, 2.0), 10), params, x, label, key)
    return seconds(works, rounds)


def memory(config: Experiment, batch_size: int, steps: int) -> int:
    """Bytes of temporary memory that the compiled DDPM of so many steps takes."""
    sampling = replace(config.sampling, sampler="ddpm", steps=steps, guidance=1.0, clip=False)
    generate = jax.jit(build.image_generator(replace(config, sampling=sampling)))
    params = build.state_shapes(config).params
    given = dict.fromkeys(("index", "label"), jax.ShapeDtypeStruct((batch_size,), jnp.int32))
    return generate.lower(params, jax.random.key(0), given, {}).compile().memory_analysis().temp_size_in_bytes


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    good = True
    for recipe_name in ("digits", "cifar10"):
        config = configs.load(CONFIGS / f"{recipe_name}.py")
        config = replace(config, model=replace(config.model, dtype="float32"))
        took = times(config, args.batch_size, args.rounds)
        for name, (_, num_steps, calls) in SAMPLERS.items():
            ratio = took[name] / took[f"{calls} calls"]
            good = good and ratio <= 1.05
            print(
                f"{recipe_name:8} {num_steps}-step {name:5} {args.batch_size / took[name]:9.2f} images/s, ratio {ratio:.3f}",
                flush=True,
            )
        ratio = took["one doubled batch"] / took["two calls"]
        print(f"{recipe_name:8} guidance, one doubled batch over two calls: ratio {ratio:.3f}", flush=True)
        long, short = (memory(config, args.batch_size, steps) for steps in (1000, 10))
        good = good and long / short <= 1.02
        sizes = f"1,000 steps {long / 2**20:.2f} MiB, 10 steps {short / 2**20:.2f} MiB"
        print(f"{recipe_name:8} DDPM, temporary memory: {sizes}, ratio {long / short:.3f}", flush=True)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
