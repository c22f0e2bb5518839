"""Prints what the host spends on a training step: on batches, on a call, and in the loop beside a device that takes 20 ms a step.

State, batches, calls and the loop are the recipe's own. The device is emulated: its program does nothing, and its results come
after the time of the steps, as they do from a chip. Exit status 1: a step in the loop takes more than 1.05 times the device's
time, or more than 2 ms of the host's.

Run: python benchmarks/host.py configs/cifar10_v.py [--data-dir DIR]
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import json
import pathlib
import signal
import statistics
import sys
import tempfile
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff import data
from jaxdiff.app import build
from jaxdiff.app import config as configs
from jaxdiff.app.config import Experiment
from jaxdiff.app.runs import train
from jaxdiff.io import count
from jaxdiff.training import Step, TrainState, sinks, steps_per_call
from jaxdiff.training.mesh import Layout

CIFAR10 = pathlib.Path(__file__).parent.parent / "configs" / "cifar10_v.py"


@dataclass(frozen=True)
class Pending:
    """A metric that the device will have computed later."""

    done: Future[None]
    shape: tuple[int, ...]

    def block_until_ready(self) -> Pending:
        """As an array's."""
        self.done.result()
        return self

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        self.done.result()
        return np.zeros(self.shape, dtype or np.float32)


def emulated(layout: Layout, seconds: float) -> Layout:
    """The layout with a device that does so many seconds of nothing for each step, one call after another."""
    queue = ThreadPoolExecutor(1)

    def advance(state: TrainState, batch: Any, key: jax.Array) -> TrainState:
        return replace(state, step=state.step + 1)

    def compiled(step: Step) -> Step:
        call = jax.jit(advance, donate_argnums=0)

        def run(state: TrainState, batch: Any, key: jax.Array) -> Any:
            state, shape = call(state, batch, key), batch["index"].shape[:-1]
            metric = Pending(queue.submit(time.sleep, seconds * (shape[0] if shape else 1)), shape)
            return state, dict.fromkeys(("loss", "grad_norm", "param_norm"), metric)

        return run

    return layout._replace(compile=compiled, compile_repeated=compiled)


def zeros(config: Experiment, *_: Any, **__: Any) -> TrainState:
    """The config's state, of zeros."""
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), build.state_shapes(config))


def input_rates(source: data.Images, config: Experiment, num: int) -> tuple[float, float]:
    """Images a second, and images a second of one core, of `num` batches."""
    stream = data.batches(source, config.data.batch_size, flip=config.data.flip)
    for _ in range(16):
        next(stream)
    start, cpu = time.perf_counter(), time.process_time()
    for _ in range(num):
        next(stream)
    images = num * config.data.batch_size
    return images / (time.perf_counter() - start), images / (time.process_time() - cpu)


def call_time(config: Experiment, source: data.Images, calls: int) -> float:
    """Seconds of a call of a step on a device that takes no time."""
    layout = emulated(build.layout(config), 0.0)
    step, state, key = layout.compile(lambda *_: None), zeros(config), jax.random.key(1)
    batch = layout.shard(next(data.batches(source, config.data.batch_size)))
    times = []
    for _ in range(calls):
        start = time.perf_counter()
        state, _ = step(state, batch, key)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def looped(config: Experiment, lines: int) -> tuple[float, float, int]:
    """Seconds a step of the training loop, the host's seconds a step, and steps a call: medians between `lines` log lines."""
    seen: list[tuple[int, float, float]] = []

    def log(step: int, values: Any) -> None:
        seen.append((step, time.perf_counter(), time.process_time()))
        if len(seen) == lines:
            signal.raise_signal(signal.SIGTERM)

    sink = sinks.Sink(log, lambda step, name, pixels: None, lambda: None)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):  # the bar, which costs too
        workdir = pathlib.Path(folder) / "run"
        train.train_run(config, workdir, log_to={"host": lambda run: sink})
        kept = workdir / "steps_per_call.json"
        size = next(iter(json.loads(kept.read_text()).values())) if kept.exists() else 1
    late = itertools.pairwise(seen[len(seen) // 3 : -1])  # the last line waits for a checkpoint
    steps = [(b[0] - a[0], b[1] - a[1], b[2] - a[2]) for a, b in late]
    return statistics.median(wall / n for n, wall, _ in steps), statistics.median(cpu / n for n, _, cpu in steps), size


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("config", type=pathlib.Path, nargs="?", default=CIFAR10)
    parser.add_argument(
        "--data-dir", help="tensorflow-datasets' directory; without it the images are random, as many as CIFAR-10's"
    )
    parser.add_argument("--milliseconds", type=float, default=20.0, help="that the device takes for a step")
    parser.add_argument("--lines", type=int, default=15, help="of the log, 50 steps each, that the loop is timed for")
    args = parser.parse_args()
    config, seconds = configs.load(args.config), args.milliseconds / 1e3
    config = replace(config, sampling=replace(config.sampling, every=0))
    random = np.random.default_rng(0).integers(0, 256, (50_000, *config.data.image_shape), np.uint8)
    source = data.Images(lambda indices: (random[indices], np.zeros(len(indices), np.int32)), len(random), 10)
    if args.data_dir:
        source = data.load_images(config.data, config.data.split, args.data_dir)
    rate, of_core = input_rates(source, config, 2000)
    print(f"input: {rate:,.0f} images/s of {config.data.image_shape}, {of_core:,.0f} a core")
    arrays = count(len(jax.tree.leaves(build.state_shapes(config))), "array")
    print(f"call of one step, {arrays}: {1e3 * call_time(config, source, 100):.2f} ms")
    layout = build.layout
    build.layout = lambda *given: emulated(layout(*given), seconds)
    train._source, build.init, steps_per_call.HOSTS = lambda *_: source, zeros, ()
    for how in (1, 0):
        wall, cpu, size = looped(replace(config, steps_per_call=how), args.lines)
        name = f"loop, {'automatic: ' * (how == 0)}{count(size, 'step')} a call"
        print(f"{name}: {1e3 * wall:.2f} ms a step, {wall / seconds:.3f} of the device's; host {1e3 * cpu:.2f} ms a step")
    return int(wall > 1.05 * seconds or cpu > 2e-3)


if __name__ == "__main__":
    sys.exit(main())
