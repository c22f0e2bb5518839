"""`jaxdiff verify`: its flags, and what it does with a sampler such as `heun`, or `path/to/file.py:my_sampler`."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, get_args

import jax
import tyro

from jaxdiff import oracles, samplers
from jaxdiff.app.cli.arguments import check_bounds, refuse
from jaxdiff.app.config import KERNELS, SamplerName
from jaxdiff.io import paths, progress
from jaxdiff.io.errors import ConfigError, did_you_mean, user_code
from jaxdiff.io.user_files import run_file
from jaxdiff.samplers import Sampler


@dataclass(frozen=True)
class Verify:
    """Test a sampler on data whose denoiser, distribution and ODE are known exactly, or a run's network: finite at all its levels,
    rows apart from each other, the same derivative forwards and backwards. Exit status 1 if it fails.

    Example: jaxdiff verify path/to/file.py:my_sampler --order 2
    """

    sampler: tyro.conf.Positional[str]
    """FILE.py:NAME of a jaxdiff.Sampler or of a function (denoise, x, levels, key) -> x0; a name such as heun; or a run."""
    order: float | None = None
    """Claimed order of convergence; by default its denoiser calls per step."""
    consistency: bool = False
    """Pass it a consistency function, the exact solution of the ODE, as denoiser."""
    num: int = 20_000
    """Number of samples, which sets the Monte Carlo error."""
    seed: int = 0


def verify(args: Verify) -> int:
    check_bounds(args, num=2)
    if args.order is not None and not 0 < args.order < 100:
        raise ConfigError(f"--order must be above 0 and below 100, got {args.order}")
    if (paths.path(args.sampler) / "config.json").is_file():
        return _verify_network(args)
    sampler = _load_sampler(args.sampler)
    jax.devices()  # a missing device is not the sampler's fault
    denoiser = oracles.flow_map if args.consistency else oracles.denoiser
    with user_code(args.sampler, args.sampler.rpartition(":")[0]), progress.waiting(f"verifying {args.sampler}"):
        report = oracles.verify(sampler, args.order, denoiser=denoiser, num=args.num, seed=args.seed)
    print(report)
    return 0 if report.passed else 1


def _verify_network(args: Verify) -> int:
    from jaxdiff.app.runs import network_checks

    refuse(args, ("order", "consistency", "num"), "is for a sampler, not for a run's network")
    with progress.waiting(f"verifying {args.sampler}"):
        checks = network_checks.check_network(paths.path(args.sampler), seed=args.seed)
    print("\n".join(f"{'ok' if check.passed else 'FAILED'}  {check.text}" for check in checks))
    return 0 if all(check.passed for check in checks) else 1


def _load_sampler(text: str) -> Sampler | Callable[..., Any]:
    """The sampler of that name: a `Sampler` or a function `(denoise, x, levels, key) -> x0`, or a factory of one."""
    path, _, name = text.rpartition(":")
    choices = run_file(path, "my_sampler") if path else built_in()
    if name not in choices:
        public = [n for n, value in choices.items() if isinstance(value, Sampler) or (inspect.isfunction(value) and n[0] != "_")]
        where = f"a name in {path}, such as" if path else "path/to/file.py:my_sampler, or one of"
        hint = did_you_mean(name, public, f"write {where} {', '.join(public)}")
        raise ConfigError(f"no sampler {name!r}{hint}")
    sampler = choices[name]
    if inspect.isfunction(sampler) and _takes(sampler, 0) and not _takes(sampler, 4):
        with user_code(text, path):
            sampler = sampler()
    if isinstance(sampler, Sampler) or (callable(sampler) and not inspect.isclass(sampler) and _takes(sampler, 4)):
        return sampler
    raise ConfigError(f"{text} must be a jaxdiff.Sampler or a function (denoise, x, levels, key) -> x0, got {sampler!r}")


def built_in() -> dict[str, Callable[..., Any]]:
    """The samplers of configs that the library has by the same name and that need no arguments."""
    named = {name: getattr(samplers, name, None) for name in get_args(SamplerName) if name not in KERNELS}
    return {name: factory for name, factory in named.items() if inspect.isfunction(factory) and _takes(factory, 0)}


def _takes(function: Callable[..., Any], number: int) -> bool:
    """Whether the function can be called with so many arguments."""
    try:
        inspect.signature(function).bind(*range(number))
    except TypeError:
        return False
    return True
