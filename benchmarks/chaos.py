"""Kills a training run again and again, and compares what comes out with a run that nobody disturbed, bit for bit.

    python benchmarks/chaos.py --kills 20
    python benchmarks/chaos.py --kills 10 --processes 2 --folder gs://bucket/chaos

Half of the kills (SIGKILL) come at random moments, half inside a save: when orbax's unfinished directory appears. Of several
processes one or all are killed; the others must end by themselves. After each the same command goes on. The killed run is in the
folder, on a disk or in a bucket, the other one on the disk. It prints what it did, and exits with 1 if params, averages, the
optimizer or metrics differ.
"""

import argparse
import json
import os
import pathlib
import random
import socket
import subprocess
import sys
import tempfile
import time
from typing import NamedTuple

import jax
import numpy as np

from jaxdiff.app import build
from jaxdiff.app.runs import storage
from jaxdiff.io import paths
from jaxdiff.training import checkpoint

TINY = (
    *("--data.batch-size", "16", "--model.channels", "16", "--model.multipliers", "1", "--model.attention"),
    *("--optimizer.warmup-steps", "5", "--log-every", "1", "--sampling.every", "0", "--sampling.num", "10"),
    *("--sampling.steps", "2", "--evaluation.num", "0"),
)
COMMAND = (sys.executable, "-m", "jaxdiff")
RECIPE = pathlib.Path(__file__).parents[1] / "configs" / "digits.py"


class Run(NamedTuple):
    """Where a run is, where it prints, and by how many processes it is trained."""

    workdir: pathlib.Path
    log: pathlib.Path
    processes: int


def start(run, flags):
    """The processes of a run's command."""
    cache = {"JAX_COMPILATION_CACHE_DIR": str(pathlib.Path(tempfile.gettempdir()) / "jaxdiff_chaos_cache")}
    environment = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", **cache, **os.environ}
    command = [*COMMAND, "train", str(RECIPE), "--workdir", str(run.workdir), *TINY, *flags]
    with run.log.open("a") as log:
        return [subprocess.Popen([*command, *each], stdout=log, stderr=log, env=environment) for each in joined(run.processes)]


def joined(num):
    """Flags of each of the processes of one run."""
    if num == 1:
        return [()]
    with socket.socket() as free:
        free.bind(("localhost", 0))
        place = f"localhost:{free.getsockname()[1]}"
    return [("--coordinator", place, "--num-processes", str(num), "--process-id", str(index)) for index in range(num)]


def finish(run, flags):
    statuses = [process.wait() for process in start(run, flags)]
    if any(statuses):
        sys.exit(run.log.read_text()[-3000:])


def metrics(workdir):
    """What was measured in each step, but for the speed."""
    path = workdir / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    rows = [json.loads(line) for line in lines if line.endswith("\n")]
    return [{name: value for name, value in row.items() if name != "steps_per_s"} for row in rows]


def last_step(workdir):
    """The last step whose metrics are written."""
    return max((row["step"] for row in metrics(workdir)), default=0)


def newest(workdir):
    return max(checkpoint.steps(workdir), default=0)


def unfinished(workdir):
    """Saves in progress."""
    found = {path.name for path in (workdir / "checkpoints").glob("*")} if (workdir / "checkpoints").is_dir() else set()
    return found - {str(step) for step in checkpoint.steps(workdir)}


def wait(processes, happened, pause):
    while any(process.poll() is None for process in processes) and not happened():
        time.sleep(pause)


def strike(run, flags, in_save, chance, every):
    """Starts the run and kills one of its processes, or all; None if it ended first.

    Else whether it was in a save, the steps lost, the number of victims, and the seconds until the others had ended.
    """
    workdir, remote = run.workdir, paths.in_bucket(run.workdir)
    saved, pause = newest(workdir), 0.05 if remote else 0.0005
    processes = start(run, flags)
    if in_save:
        wait(processes, lambda: not unfinished(workdir) if remote else last_step(workdir) > saved, pause)  # the old ones are gone
        wait(processes, lambda: unfinished(workdir), pause)
        time.sleep(chance.uniform(0, 0.5 if remote else 0.03))
    elif remote:  # where metrics come with checkpoints
        wait(processes, lambda: newest(workdir) > saved, pause)
        time.sleep(chance.uniform(0, 3))
    else:
        at = saved + chance.randrange(1, 2 * every)
        wait(processes, lambda: last_step(workdir) >= at, pause)
        time.sleep(chance.uniform(0, 0.03))
    if all(process.poll() is not None for process in processes):
        return None
    victims = chance.choice([processes, *([process] for process in processes)])
    for process in victims:
        process.kill()
    killed = time.monotonic()
    for process in processes:
        process.wait()
    saving, lost = bool(unfinished(workdir)), last_step(workdir) - newest(workdir)
    return saving, lost, len(victims), time.monotonic() - killed


def final(workdir):
    config = storage.read_config(workdir)
    single = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    state = checkpoint.restore(workdir, storage.with_sharding(build.state_shapes(config), single))
    return {"params": state.params, "ema": state.ema, "opt_state": state.opt_state, "step": state.step}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--every", type=int, default=25, help="steps between checkpoints")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--folder", help="of the run that is killed; by default a temporary one")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data-dir", help="tensorflow-datasets' directory")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        sys.exit(0 if trial(pathlib.Path(directory), arguments, random.Random(arguments.seed)) else 1)


def trial(directory, arguments, chance):
    """Whether the runs are equal."""
    steps = arguments.every * (3 * arguments.kills // 2 + 4)  # kills let the run get on by a checkpoint or two
    flags = ["--steps", str(steps), "--checkpoint-every", str(arguments.every)]
    flags += ["--data-dir", arguments.data_dir] if arguments.data_dir else []
    unbroken = Run(directory / "unbroken", directory / "unbroken.log", arguments.processes)
    broken = Run(paths.path(arguments.folder or directory) / "broken", directory / "broken.log", arguments.processes)
    begun = time.monotonic()
    finish(unbroken, flags)
    print(f"unbroken run: {steps} steps, {time.monotonic() - begun:.0f} s", flush=True)
    struck = []
    for number in range(1, arguments.kills + 1):
        result = strike(broken, flags, number % 2 == 0, chance, arguments.every)
        if result is None:
            print(f"kill {number}: the run ended first\n{broken.log.read_text()[-1000:]}")
            break
        struck.append(result)
        saving, lost, victims, seconds = result
        where = f"{victims} of {arguments.processes} processes, {'in a save' if saving else 'while stepping'}, {lost} steps lost"
        print(f"kill {number}: {where}, all over after {seconds:.0f} s, newest checkpoint {newest(broken.workdir)}", flush=True)
    finish(broken, flags)
    return equal(unbroken, broken, struck) and len(struck) == arguments.kills


def equal(unbroken, broken, struck):
    """Whether two runs ended with the same values, to the bit, and nothing is left of killed saves."""
    one, other = final(unbroken.workdir), final(broken.workdir)
    same = {name: all(jax.tree.leaves(jax.tree.map(same_bits, one[name], other[name]))) for name in one}
    same["metrics"] = metrics(unbroken.workdir) == metrics(broken.workdir)
    in_saves = sum(saving for saving, *_ in struck)
    print(
        f"{len(struck)} kills, {in_saves} of them in saves, at most {max((lost for _, lost, *_ in struck), default=0)} steps lost"
    )
    left = sorted(unfinished(broken.workdir))
    print(f"left of killed saves: {', '.join(left) or 'nothing'}")
    print("bit-equal: " + ", ".join(f"{name} {'yes' if each else 'NO'}" for name, each in same.items()))
    return all(same.values()) and not left


def same_bits(a, b):
    return np.asarray(a).tobytes() == np.asarray(b).tobytes()


if __name__ == "__main__":
    main()
