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
    """Compile a recipe's step for TPUs that need not be there: does it fit, memory, FLOPs, collectives, a bound of its time.

    Example: jaxdiff plan configs/cifar10.py --topology v5e:2x4 --mesh.data 1 --mesh.fsdp -1
    """

    config: tyro.conf.Positional[pathlib.Path]
    """A recipe: a Python file that defines `config`."""
    topology: str
    """Of a slice: v5e:4x4, v6e:2x4, v5p:2x2x2, v4:2x2x4."""
    experiment: Annotated[Experiment, tyro.conf.arg(name="")]
    slices: int = 1
    """Of that shape, joined by a data centre's network."""
    batch: int = 0
    """Images over all devices; the config's if not given."""
    what: Literal["train", "sample"] = "train"
    """A training step, or the run's sampler."""
    largest_batch: bool = False
    """Search the largest batch that fits."""
    sweep: bool = False
    """Compare meshes, remat policies and batches in a table."""
    remats: tuple[str, ...] = ()
    """Of --sweep: values of model.remat."""
    batches: tuple[int, ...] = ()
    """Of --sweep: over all devices."""
    full: bool = False
    """Compile to the end: slower, changes no figure."""
    limit_s: float = 900.0
    """Seconds that a compile may take."""
    cache_dir: pathlib.Path | None = None
    """Of compiled programs; ~/.cache/jaxdiff/plan."""
    json: bool = False
    """Print JSON."""


def plan(args: Plan) -> int:
    """`jaxdiff plan`: the exit status, 1 where nothing fits."""
    from jaxdiff.app import plan as plans

    config = validated(args.experiment, where="jaxdiff plan")
    job = plans.Job(
        config, args.what, plans.topology(args.topology, args.slices), plans.cache_dir(args.cache_dir), args.limit_s, args.full
    )
    job = plans.with_batch(job, args.batch) if args.batch else job
    if args.largest_batch and args.sweep:
        raise ConfigError("--largest-batch and --sweep are two questions; ask one")
    if not args.sweep:
        refuse(args, ("remats", "batches"), "is for --sweep; give both, or neither")
    fits = plans.answer(job, args.largest_batch, plans.variants(job, args.remats, args.batches) if args.sweep else (), args.json)
    return 0 if fits else 1
