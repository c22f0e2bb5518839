"""Starts two trainings in one directory at the same instant, again and again: one of them trains, the other ends in one line.

    python benchmarks/races.py --races 20 --folder gs://bucket/races

The folder is on a disk or in a bucket; by default it is a temporary one. Exits with 1 if both trained, or none.
"""

import argparse
import contextlib
import io
import multiprocessing
import pathlib
import sys
import tempfile
import time

from jaxdiff.app import cli
from jaxdiff.io import paths
from jaxdiff.training import checkpoint

STEPS = 4
TINY = (
    *("--data.batch-size", "16", "--model.channels", "8", "--model.multipliers", "1", "--model.attention"),
    *("--steps", str(STEPS), "--sampling.every", "0", "--sampling.num", "10", "--sampling.steps", "2", "--evaluation.num", "0"),
)
RECIPE = pathlib.Path(__file__).parents[1] / "configs" / "digits.py"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--races", type=int, default=20)
    parser.add_argument("--folder")
    args = parser.parse_args()
    folder = args.folder or tempfile.mkdtemp(prefix="jaxdiff_races_")
    spawn = multiprocessing.get_context("spawn")
    barrier, told = spawn.Barrier(2), spawn.Queue()
    runners = [spawn.Process(target=race, args=(folder, args.races, barrier, told)) for _ in range(2)]
    for runner in runners:
        runner.start()
    began, wrong = time.perf_counter(), 0
    for number in range(args.races):
        (first, said), (second, also) = told.get(), told.get()
        refused = said if first else also
        done = checkpoint.steps(paths.path(f"{folder}/{number}"))
        right = {first, second} == {0, 1} and "is being written to by" in refused and done == [STEPS]
        wrong += not right
        print(f"race {number}: {'one trained' if right else 'WRONG'}; {refused.strip() or 'nobody was refused'}", flush=True)
    for runner in runners:
        runner.join()
    print(f"{args.races - wrong} of {args.races} races in {folder} had one winner, {time.perf_counter() - began:.0f} s")
    return 1 if wrong else 0


def race(folder, number, barrier, told):
    for each in range(number):
        with contextlib.redirect_stderr(io.StringIO()) as said, contextlib.redirect_stdout(io.StringIO()):
            barrier.wait()
            status = cli.main(["train", "--quiet", str(RECIPE), "--workdir", f"{folder}/{each}", *TINY])
        told.put((status, said.getvalue()))


if __name__ == "__main__":
    sys.exit(main())
