"""`jaxdiff plan`: its flags, and what it does."""

from __future__ import annotations

import importlib.util
import json
import pathlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import tyro

from jaxdiff.app.cli.arguments import refuse
from jaxdiff.app.config import Experiment, validated
from jaxdiff.io.errors import ConfigError


@dataclass(frozen=True)
class Plan:
    """Compile a recipe's step for TPUs, without having any: memory, whether it fits, FLOPs, collectives, a lower bound of the time.

    Example: jaxdiff plan configs/cifar10.py --topology v5e:2x4 --mesh.data 1 --mesh.fsdp -1
    """

    config: tyro.conf.Positional[pathlib.Path]
    """A recipe: a Python file that defines `config`."""
    topology: str
    """Topology of a slice: v5e:4x4, v6e:2x4, v5p:2x2x2, v4:2x2x4."""
    experiment: Annotated[Experiment, tyro.conf.arg(name="")]
    slices: int = 1
    """Number of slices, joined by the data center network."""
    batch: int = 0
    """Global batch size; by default the config's."""
    what: Literal["train", "sample"] = "train"
    """A training step, or the sampler."""
    largest_batch: bool = False
    """Search for the largest batch that fits."""
    sweep: bool = False
    """Compare meshes, remat policies and batches in a table."""
    remats: tuple[str, ...] = ()
    """For --sweep: values of model.remat."""
    batches: tuple[int, ...] = ()
    """For --sweep: global batch sizes."""
    full: bool = False
    """Compile to the end: slower, with the same figures."""
    limit_s: float = 900.0
    """Time limit of a compilation in seconds."""
    cache_dir: pathlib.Path | None = None
    """Cache of compiled programs; ~/.cache/jaxdiff/plan."""
    json: bool = False
    """Print JSON."""


def plan(args: Plan) -> int:
    """`jaxdiff plan`: the exit status, 1 if nothing fits."""
    from jaxdiff.app import plan as plans
    from jaxdiff.io import progress

    config = validated(args.experiment, where="jaxdiff plan")
    where, cache = plans.topology(args.topology, args.slices), plans.cache_dir(args.cache_dir)
    job = plans.Job(config, args.what, where, cache, args.limit_s, args.full)
    job = plans.with_batch(job, args.batch) if args.batch else job
    if args.largest_batch and args.sweep:
        raise ConfigError("--largest-batch and --sweep exclude each other; give one")
    if not args.sweep:
        refuse(args, ("remats", "batches"), "is for --sweep; give both, or neither")
    variants = plans.variants(job, args.remats, args.batches) if args.sweep else []
    if importlib.util.find_spec("libtpu") is None:
        raise ConfigError('the TPU compiler is not installed; run: pip install -e ".[tpu]" (no TPU is needed)')
    if args.sweep:
        print(f"up to {len(variants)} programs; minutes each, unless they were compiled before", file=sys.stderr)
        return _print_each(plans.sweep(variants), len(variants), plans.recommendation, args.json)
    if args.largest_batch:
        return _print_each(plans.largest_batch(job), None, plans.conclusion, args.json)
    with progress.waiting("compiling"):
        planned = plans.planned(job)
    print(json.dumps(plans.values(planned), indent=2) if args.json else plans.text(planned))
    return 0 if planned.fits else 1


def _print_each(planned: Iterator[Any], total: int | None, conclude: Callable[[list[Any]], str], as_json: bool) -> int:
    """Prints plans as soon as they are made, at most `total`, and a conclusion; returns the exit status, 1 if none fits."""
    from jaxdiff.app import plan as plans
    from jaxdiff.io import progress

    done: list[Any] = []
    for each in progress.track(planned, "compiling", "program", total):
        done.append(each)
        if not as_json:
            progress.print_above("\n".join(plans.table([each]).splitlines()[min(len(done) - 1, 1) :]))
    if as_json:
        print(json.dumps({"plans": [plans.values(each) for each in done], "conclusion": conclude(done)}, indent=2))
    else:
        print(f"{conclude(done)}\n{plans.LEAVES_OUT}")
    return 0 if any(each.fits for each in done) else 1
