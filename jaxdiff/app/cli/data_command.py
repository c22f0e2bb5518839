"""`jaxdiff data`: its flags, and what it does."""

import pathlib
from dataclasses import dataclass

import tyro

from jaxdiff.app.cli.flags import DataDir


@dataclass(frozen=True)
class Data:
    """Download and prepare mnist or cifar10, without TensorFlow.

    Example: jaxdiff data mnist
    """

    name: tyro.conf.Positional[str]
    data_dir: DataDir = None
    raw_dir: pathlib.Path | None = None
    """A folder with the raw files, for a machine without network."""


def data(args: Data) -> int:
    from jaxdiff.data import raw

    builder = raw.prepare(args.name, args.data_dir, args.raw_dir)
    sizes = ", ".join(f"{split} {info.num_examples}" for split, info in builder.info.splits.items())
    print(f"{args.name} ({sizes}): {builder.data_dir}")
    return 0
