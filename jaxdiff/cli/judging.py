"""`jaxdiff evaluate` and `jaxdiff verify`: their flags, and what they do."""

from __future__ import annotations

import dataclasses
import pathlib
from dataclasses import dataclass
from typing import Any

import tyro

from jaxdiff.cli.arguments import bounded_seed, refuse
from jaxdiff.cli.sampling import parse_labels, resampled
from jaxdiff.config import validated
from jaxdiff.errors import ConfigError


@dataclass(frozen=True)
class Evaluate:
    """Judge a run's samples by a classifier trained on its data.

    Example: jaxdiff evaluate runs/digits --num 1000
    """

    run: tyro.conf.Positional[pathlib.Path]
    """The run's directory."""
    num: int = 1000
    steps: int | None = None
    """As the run's config says if not given; so for guidance. With --likelihood of the chain and the flow: 1000 and 256."""
    guidance: float | None = None
    """1 is none, 0 the unconditional model."""
    classifier: str | None = None
    """A classifier's run, which guides the samples to their labels."""
    classifier_scale: float | None = None
    labels: str = ""
    """0..9, or 3, or 0,3,7; all in turn if not given. With --likelihood none is the unconditional model."""
    epochs: int | None = None
    """Of the classifier's training."""
    data_dir: str | None = None
    likelihood: bool = False
    """Measure bits per dimension instead, of a diffusion or vae run; the flags below are for this alone."""
    estimators: str = ""
    """Some of discrete, continuous, flow, flow_uniform, or of elbo, importance; all but flow_uniform if not given."""
    split: str = "test"
    probes: int = 1
    """Of the flow's divergence at each step; 0 computes it exactly."""
    batch_size: int = 100


@dataclass(frozen=True)
class Verify:
    """Hold a sampler to data whose denoiser, law and flow are known exactly; exit status 1 where it fails.

    Example: jaxdiff verify path/to/file.py:my_sampler --order 2
    """

    sampler: tyro.conf.Positional[str]
    """FILE.py:NAME of a jaxdiff.Sampler or of a function (denoise, x, levels, key) -> x0; or a name such as heun."""
    order: float | None = None
    """Of convergence, as it claims; its calls of the denoiser a step if not given."""
    consistency: bool = False
    """Give it a consistency function, the exact flow to clean, for a denoiser."""
    num: int = 20_000
    """Samples, which set the Monte Carlo error."""
    seed: int = 0


def evaluate(args: Evaluate) -> int:
    """`jaxdiff evaluate`: the exit status."""
    from jaxdiff import lineage, reports, run

    if args.likelihood:
        return _likelihood(args)
    refuse(args, ("estimators", "split", "probes", "batch_size"), "is for --likelihood; give both, or neither")
    if lineage.read_config(args.run).objective == "vae":
        raise ConfigError(f"{args.run} is a vae run, whose samples have no labels to judge; add --likelihood")
    config = resampled(lineage.read_config(args.run, "diffusion"), args)
    changes = {"num": args.num} | ({} if args.epochs is None else {"epochs": args.epochs})
    evaluation = dataclasses.replace(config.evaluation, **changes)
    config = validated(dataclasses.replace(config, evaluation=evaluation), where="jaxdiff evaluate")
    out = args.run / "samples" / run.default_name(config, config.seed)
    print(reports.finish(config, args.run, out, parse_labels(args.labels, config.model.num_classes), args.data_dir))
    return 0


def _likelihood(args: Evaluate) -> int:
    from jaxdiff import bits, lineage

    config = lineage.read_config(args.run)
    guided = ("guidance", "classifier", "classifier_scale", "epochs")
    refuse(args, guided, "does not go with --likelihood, which is of the model without guidance")
    for name, least in (("num", 2), ("batch_size", 1), ("probes", 0), ("steps", 2)):
        if (value := getattr(args, name)) is not None and value < least:
            raise ConfigError(f"--{name.replace('_', '-')} must be at least {least}, got {value}")
    if args.labels not in ("", "none"):
        raise ConfigError(f"--labels {args.labels}: with --likelihood each image has its own label; write none for no label")
    effort = bits.Effort(probes=args.probes)
    effort = effort if args.steps is None else dataclasses.replace(effort, steps=args.steps, flow_steps=args.steps)
    names = [name.strip() for name in args.estimators.split(",") if name.strip()]
    if args.estimators and not names:
        raise ConfigError(f"--estimators {args.estimators!r}: names none; write elbo, importance or discrete, continuous, flow")
    if config.objective == "vae":
        refuse(args, ("steps", "probes", "labels"), "does not apply to the likelihood of a vae run")
    bits.estimators(config, names, effort)  # before the checkpoint is read
    step, params = lineage.read_params(config, args.run)
    how: Any = {"split": args.split, "num": args.num, "batch_size": args.batch_size, "data_dir": args.data_dir}
    print(bits.report(config, args.run, step, params, names, effort, conditional=args.labels != "none", **how))
    print(args.run / "likelihood.json")
    return 0


def verify(args: Verify) -> int:
    """`jaxdiff verify`: the exit status."""
    import jax

    from jaxdiff import loading, oracles, progress

    if args.num < 2:
        raise ConfigError(f"--num must be at least 2, got {args.num}")
    if args.order is not None and not 0 < args.order < 100:
        raise ConfigError(f"--order must be above 0 and below 100, got {args.order}")
    seed, sampler = bounded_seed(args.seed), loading.sampler(args.sampler)
    jax.devices()  # whose absence is not the sampler's fault
    denoiser = oracles.flow_map if args.consistency else oracles.denoiser
    try:
        with progress.waiting(f"verifying {args.sampler}"):
            report = oracles.verify(sampler, args.order, denoiser=denoiser, num=args.num, seed=seed)
    except Exception as error:  # the user's own code
        raise ConfigError(f"{args.sampler}: {type(error).__name__}: {(str(error).splitlines() or [''])[0]}") from error
    print(report)
    return 0 if report.passed else 1
