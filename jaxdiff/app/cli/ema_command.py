"""`jaxdiff ema`: its flags, and what it does."""

import pathlib
from dataclasses import dataclass

import tyro

from jaxdiff.io import paths
from jaxdiff.io.errors import ConfigError


@dataclass(frozen=True)
class Ema:
    """Make a run of another average of a run's params, from the snapshots that training with power_ema 0.05 0.1 keeps.

    Its length is the standard deviation of its weights over the training steps, as a share of them (sigma_rel of Karras et al.
    2023). What samples, evaluates and exports a run takes the new one.

    Example: jaxdiff ema runs/digits --length 0.08
    """

    run: tyro.conf.Positional[pathlib.Path]
    """Directory of the run."""
    length: float
    """Above 0 and at most 0.28."""
    workdir: pathlib.Path | None = None
    """A new directory; by default RUN_ema_LENGTH."""


def ema(args: Ema) -> int:
    from jaxdiff.app.runs import averaged

    if not 0 < args.length <= 0.28:
        raise ConfigError(f"--length must be above 0 and at most 0.28, got {args.length:g}")
    run = paths.path(args.run)
    print(averaged.reconstruct(run, args.length, args.workdir or run.with_name(f"{run.name}_ema_{args.length:g}")))
    return 0
