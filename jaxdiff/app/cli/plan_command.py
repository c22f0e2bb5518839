"""`jaxdiff plan`: its flags, and what it does."""

from __future__ import annotations

import pathlib
from dataclasses import dataclass
from typing import Annotated, Literal

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

    config = validated(args.experiment, where="jaxdiff plan")
    job = plans.Job(
        config, args.what, plans.topology(args.topology, args.slices), plans.cache_dir(args.cache_dir), args.limit_s, args.full
    )
    job = plans.with_batch(job, args.batch) if args.batch else job
    if args.largest_batch and args.sweep:
        raise ConfigError("--largest-batch and --sweep exclude each other; give one")
    if not args.sweep:
        refuse(args, ("remats", "batches"), "is for --sweep; give both, or neither")
    fits = plans.answer(job, args.largest_batch, plans.variants(job, args.remats, args.batches) if args.sweep else (), args.json)
    return 0 if fits else 1
