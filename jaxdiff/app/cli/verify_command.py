"""`jaxdiff verify`: its flags, and what it does."""

from __future__ import annotations

from dataclasses import dataclass

import tyro

from jaxdiff.app.cli.arguments import check_bounds
from jaxdiff.io.errors import ConfigError, user_code_error


@dataclass(frozen=True)
class Verify:
    """Test a sampler on data whose denoiser, distribution and ODE are known exactly; exit status 1 if it fails.

    Example: jaxdiff verify path/to/file.py:my_sampler --order 2
    """

    sampler: tyro.conf.Positional[str]
    """FILE.py:NAME of a jaxdiff.Sampler or of a function (denoise, x, levels, key) -> x0; or a name such as heun."""
    order: float | None = None
    """Claimed order of convergence; by default its denoiser calls per step."""
    consistency: bool = False
    """Pass it a consistency function, the exact solution of the ODE, as denoiser."""
    num: int = 20_000
    """Number of samples, which sets the Monte Carlo error."""
    seed: int = 0


def verify(args: Verify) -> int:
    """`jaxdiff verify`: the exit status, 1 if the sampler fails."""
    import jax

    from jaxdiff import oracles
    from jaxdiff.app.cli import sampler_spec
    from jaxdiff.io import progress

    check_bounds(args, num=2)
    if args.order is not None and not 0 < args.order < 100:
        raise ConfigError(f"--order must be above 0 and below 100, got {args.order}")
    sampler = sampler_spec.load_sampler(args.sampler)
    jax.devices()  # a missing device is not the sampler's fault
    denoiser = oracles.flow_map if args.consistency else oracles.denoiser
    try:
        with progress.waiting(f"verifying {args.sampler}"):
            report = oracles.verify(sampler, args.order, denoiser=denoiser, num=args.num, seed=args.seed)
    except Exception as error:  # the user's own code
        raise user_code_error(args.sampler, args.sampler.rpartition(":")[0], error) from error
    print(report)
    return 0 if report.passed else 1
