"""Prints what a run's loop costs beside its compiled step: data, logging and progress, checkpoints apart.

The recipe is trained as `jaxdiff train` does, and its rate between two log lines is compared with the bare step's, called
again and again with one batch on the device. The two take turns; each figure is the median of the rounds. Exit status 1:
the loop's step takes more than 1.05 times as long.

Run: python benchmarks/loop.py configs/digits.py --data-dir DIR
"""

from __future__ import annotations

import argparse
import json
import pathlib
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from functools import partial

import jax
import numpy as np

from jaxdiff.app import build
from jaxdiff.app import config as configs
from jaxdiff.app.config import Experiment
from jaxdiff.app.runs import train

DIGITS = pathlib.Path(__file__).parent.parent / "configs" / "digits.py"


def bare(config: Experiment, steps: int) -> float:
    """Seconds a step of the compiled step alone."""
    layout = build.layout(config)
    step = layout.compile(build.train_step(config, layout))
    state = layout.enter(jax.jit(partial(build.init, config), out_shardings=layout.sharding)(jax.random.key(0)))
    size = config.data.batch_size
    rows = {"image": np.zeros((size, *config.data.image_shape), np.float32), "label": np.zeros(size, np.int32)}
    batch, key = layout.shard({**rows, "index": np.arange(size, dtype=np.int32)}), jax.random.key(1)
    state, metrics = step(state, batch, key)
    jax.block_until_ready(metrics)
    start = time.perf_counter()
    for _ in range(steps):
        state, metrics = step(state, batch, key)
    jax.block_until_ready(metrics)
    return (time.perf_counter() - start) / steps


def looped(config: Experiment, steps: int, data_dir: str | None) -> float:
    """Seconds a step of a real run, from its second log line to its third; the last has the checkpoint in it."""
    with tempfile.TemporaryDirectory() as folder:
        workdir = pathlib.Path(folder) / "run"
        train.train_run(replace(config, steps=4 * steps, log_every=steps, checkpoint_every=10**9), workdir, data_dir)
        lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return 1 / lines[2]["steps_per_s"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("config", type=pathlib.Path, nargs="?", default=DIGITS)
    parser.add_argument("--data-dir", help="tensorflow-datasets' directory")
    parser.add_argument("--steps", type=int, default=50, help="timed in each round")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    config = configs.load(args.config)
    config = replace(config, sampling=replace(config.sampling, every=0))
    alone, whole = [], []
    for _ in range(args.rounds):
        alone.append(bare(config, args.steps))
        whole.append(looped(config, args.steps, args.data_dir))
    ratio = statistics.median(whole) / statistics.median(alone)
    print(f"step {1e3 * statistics.median(alone):.1f} ms, in the loop {1e3 * statistics.median(whole):.1f} ms: {ratio:.3f} times")
    return int(ratio > 1.05)


if __name__ == "__main__":
    sys.exit(main())
