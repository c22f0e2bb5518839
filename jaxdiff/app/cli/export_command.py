"""`jaxdiff export`: its flags, and what it does."""

import pathlib
from dataclasses import dataclass
from typing import Literal

import tyro


@dataclass(frozen=True)
class Export:
    """Write a run for diffusers: a folder that its pipelines open, or the LoRA of a run that trained adapters.

    Example: jaxdiff export runs/cifar10_diffusers --out cifar10
    """

    run: tyro.conf.Positional[pathlib.Path]
    """Directory of the run."""
    out: pathlib.Path
    """A new folder."""
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """Of the weights."""
    ema: str | None = None
    """Name of an EMA of the params; by default the config's first."""


def export(args: Export) -> int:
    from jaxdiff.app.runs import exported

    print(exported.export_run(args.run, args.out, args.dtype, args.ema))
    return 0
