"""Prints the time of DDIM over that of the bare network calls in it, and the memory of long sampling over short.

For the networks of configs/digits.py and configs/cifar10.py, in float32: the seconds of a 10-step DDIM, of ten calls of
the jitted network alone, and their ratio (1: the sampler costs nothing); then the temporary memory of the compiled
1,000-step and 10-step DDPM and their ratio (1: memory does not grow with the number of steps). The two timings take
turns; each figure is the median of the rounds. Exit status 1: a ratio of times is above 1.1, or of memory above 1.02.

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

from jaxdiff import config as configs
from jaxdiff import recipe
from jaxdiff.config import Experiment
from jaxdiff.models.unet import network

CONFIGS = pathlib.Path(__file__).parent.parent / "configs"
STEPS = 10


def sampled(config: Experiment, sampler: str, steps: int) -> Callable[..., jax.Array]:
    """The jitted sampler `(params, key, label) -> images`, unguided and unclipped, so that a step is one network call."""
    sampling = replace(config.sampling, sampler=sampler, steps=steps, guidance=1.0, clip=False)
    return jax.jit(recipe.generator(replace(config, sampling=sampling)))


def seconds(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    jax.block_until_ready(work())
    return time.perf_counter() - start


def times(config: Experiment, batch_size: int, rounds: int) -> tuple[float, float]:
    """Median seconds of a 10-step DDIM and of ten network calls."""
    key = jax.random.key(0)
    params = jax.jit(partial(recipe.init, config))(key).params
    x = jax.random.normal(key, (batch_size, *config.data.image_shape))
    logsnr, label = jnp.zeros(batch_size), jnp.zeros(batch_size, jnp.int32)
    generate, call = sampled(config, "ddim", STEPS), jax.jit(network(recipe.unet(config)))
    works = (lambda: generate(params, key, label), lambda: [call(params, x, logsnr, label) for _ in range(STEPS)])
    for work in works:
        jax.block_until_ready(work())
    measured = [[seconds(work) for work in works] for _ in range(rounds)]
    ddim, calls = (statistics.median(column) for column in zip(*measured, strict=True))
    return ddim, calls


def memory(config: Experiment, batch_size: int, steps: int) -> int:
    """Bytes of temporary memory that the compiled DDPM of so many steps takes."""
    params = recipe.state_shapes(config).params
    key, label = jax.random.key(0), jax.ShapeDtypeStruct((batch_size,), jnp.int32)
    return sampled(config, "ddpm", steps).lower(params, key, label).compile().memory_analysis().temp_size_in_bytes


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    good = True
    for name in ("digits", "cifar10"):
        config = configs.load(CONFIGS / f"{name}.py")
        config = replace(config, model=replace(config.model, dtype="float32"))
        ddim, calls = times(config, args.batch_size, args.rounds)
        print(
            f"{name:8} {STEPS}-step DDIM {ddim:8.4f} s, {STEPS} network calls {calls:8.4f} s, ratio {ddim / calls:.3f}", flush=True
        )
        long, short = (memory(config, args.batch_size, steps) for steps in (1000, STEPS))
        sizes = f"1,000 steps {long / 2**20:.2f} MiB, {STEPS} steps {short / 2**20:.2f} MiB"
        print(f"{name:8} DDPM, temporary memory: {sizes}, ratio {long / short:.3f}", flush=True)
        good = good and ddim / calls <= 1.1 and long / short <= 1.02
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
