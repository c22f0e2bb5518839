"""`jaxdiff data` and `jaxdiff doctor`: their flags, and what they do."""

from __future__ import annotations

import pathlib
from dataclasses import dataclass

import tyro


@dataclass(frozen=True)
class Data:
    """Prepare mnist or cifar10 without TensorFlow.

    Example: jaxdiff data mnist
    """

    name: tyro.conf.Positional[str]
    data_dir: str | None = None
    """tensorflow-datasets' directory; its own if not given."""
    raw_dir: pathlib.Path | None = None
    """A folder with the raw files, for a machine without network."""


@dataclass(frozen=True)
class Doctor:
    """Print what is installed, which devices there are, where data and caches are, and what is wrong with any of it.

    Exit status 1 where something is. Example: jaxdiff doctor
    """

    data_dir: str | None = None
    """tensorflow-datasets' directory; its own if not given."""


def data(args: Data) -> int:
    """`jaxdiff data`: the exit status."""
    from jaxdiff.data import raw

    builder = raw.prepare(args.name, args.data_dir, args.raw_dir)
    sizes = ", ".join(f"{split} {info.num_examples}" for split, info in builder.info.splits.items())
    print(f"{args.name} ({sizes}): {builder.data_dir}")
    return 0


def doctor(args: Doctor) -> int:
    """`jaxdiff doctor`: the exit status, 1 where something is wrong."""
    from jaxdiff.app import doctor as doctors
    from jaxdiff.io import progress

    with progress.waiting("looking for devices"):
        found = doctors.examine(args.data_dir)
    print(found)
    return 1 if found.problems else 0
