"""Kills a training run again and again, and compares what comes out with a run that nobody disturbed, bit for bit.

    python benchmarks/chaos.py --kills 20

Half of the kills (SIGKILL) come at random steps, half inside a save: when orbax's unfinished directory appears.
After each the same command goes on. It prints what it did, and exits with 1 if params, averages or the optimizer differ.
"""

import argparse
import json
import os
import pathlib
import random
import subprocess
import sys
import tempfile
import time

import jax
import numpy as np

from jaxdiff.app import build
from jaxdiff.app.runs import storage
from jaxdiff.training import checkpoint

TINY = (
    *("--data.batch-size", "16", "--model.channels", "16", "--model.multipliers", "1", "--model.attention"),
    *("--optimizer.warmup-steps", "5", "--log-every", "1", "--sampling.every", "0", "--sampling.num", "10"),
    *("--sampling.steps", "2", "--evaluation.num", "0"),
)
COMMAND = (sys.executable, "-m", "jaxdiff")
RECIPE = pathlib.Path(__file__).parents[1] / "configs" / "digits.py"


def start(workdir, flags):
    command = [*COMMAND, "train", str(RECIPE), "--workdir", str(workdir), *TINY, *flags]
    cache = {"JAX_COMPILATION_CACHE_DIR": str(pathlib.Path(tempfile.gettempdir()) / "jaxdiff_chaos_cache")}
    environment = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", **cache, **os.environ}
    with (workdir.parent / f"{workdir.name}.log").open("a") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, env=environment)


def finish(workdir, flags):
    if start(workdir, flags).wait():
        sys.exit((workdir.parent / f"{workdir.name}.log").read_text()[-3000:])


def last_step(workdir):
    """The last step whose metrics are written."""
    path = workdir / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return max((json.loads(line)["step"] for line in lines if line.endswith("\n")), default=0)


def unfinished(workdir):
    """Saves in progress."""
    return {path.name for path in (workdir / "checkpoints").glob("*.orbax-checkpoint-tmp*")}


def wait(process, happened):
    while process.poll() is None and not happened():
        time.sleep(0.0005)
    return process.poll() is None


def strike(workdir, flags, in_save, chance, every):
    """Starts the run, kills it; whether it was in a save, and the steps lost. None if it ended first."""
    left = unfinished(workdir)
    saved = max(checkpoint.steps(workdir), default=0)
    process = start(workdir, flags)
    if in_save:
        if wait(process, lambda: last_step(workdir) > saved) and wait(process, lambda: bool(unfinished(workdir) - left)):
            time.sleep(chance.uniform(0, 0.03))
    else:
        at = saved + chance.randrange(1, 2 * every)
        if wait(process, lambda: last_step(workdir) >= at):
            time.sleep(chance.uniform(0, 0.03))
    if process.poll() is not None:
        return None
    process.kill()
    process.wait()
    lost = last_step(workdir) - max(checkpoint.steps(workdir), default=0)
    return bool(unfinished(workdir)), lost


def final(workdir):
    config = storage.read_config(workdir)
    single = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    state = checkpoint.restore(workdir, storage.with_sharding(build.state_shapes(config), single))
    return {"params": state.params, "ema": state.ema, "opt_state": state.opt_state, "step": state.step}


def equal(a, b):
    same = jax.tree.map(lambda x, y: np.asarray(x).tobytes() == np.asarray(y).tobytes(), a, b)
    return all(jax.tree.leaves(same))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--every", type=int, default=25, help="steps between checkpoints")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data-dir", help="tensorflow-datasets' directory")
    arguments = parser.parse_args()
    chance = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as directory:
        sys.exit(0 if trial(pathlib.Path(directory), arguments, chance) else 1)


def trial(directory, arguments, chance):
    """Whether the runs are equal."""
    steps = arguments.every * (3 * arguments.kills // 2 + 4)  # kills let the run get on by a checkpoint or two
    flags = ["--steps", str(steps), "--checkpoint-every", str(arguments.every)]
    flags += ["--data-dir", arguments.data_dir] if arguments.data_dir else []
    unbroken, broken = directory / "unbroken", directory / "broken"
    begun = time.monotonic()
    finish(unbroken, flags)
    print(f"unbroken run: {steps} steps, {time.monotonic() - begun:.0f} s", flush=True)
    plan = [number % 2 == 1 for number in range(arguments.kills)]
    struck = []
    for number, in_save in enumerate(plan, 1):
        result = strike(broken, flags, in_save, chance, arguments.every)
        if result is None:
            print(f"kill {number}: the run ended first")
            break
        struck.append(result)
        where = "in a save" if result[0] else "while stepping"
        print(f"kill {number}: {where}, {result[1]} steps lost, newest checkpoint {checkpoint.steps(broken)[-1:]}", flush=True)
    finish(broken, flags)
    one, other = final(unbroken), final(broken)
    verdicts = {name: equal(one[name], other[name]) for name in one}
    in_saves = sum(saving for saving, _ in struck)
    print(f"{len(struck)} kills, {in_saves} of them in saves, at most {max((lost for _, lost in struck), default=0)} steps lost")
    left = sorted(unfinished(broken))
    print(f"left of killed saves: {', '.join(left) or 'nothing'}")
    print("bit-equal: " + ", ".join(f"{name} {'yes' if same else 'NO'}" for name, same in verdicts.items()))
    return all(verdicts.values()) and len(struck) == arguments.kills and not left


if __name__ == "__main__":
    main()
