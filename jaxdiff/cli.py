"""The command line: `jaxdiff train | ladder | sample | evaluate | plan | verify | data | latents`.

Each command is a function of typed arguments (see flags.py). What a user can mend ends in one line.
"""

from __future__ import annotations

import dataclasses
import logging
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from jaxdiff import arguments
from jaxdiff.config import Experiment, load_ladder, validated
from jaxdiff.errors import ConfigError, UserError
from jaxdiff.flags import USAGE, Data, Evaluate, Ladder, Latents, Plan, Processes, Sample, Train, Verify, parse_labels, vectors

if TYPE_CHECKING:
    from jaxdiff import stages

SAMPLING = ("sampler", "steps", "spacing", "eta", "guidance", "classifier", "classifier_scale")  # flags that set config.sampling


def train(args: Train) -> int:
    """`jaxdiff train`: the exit status."""
    from jaxdiff import stages

    config, before = stages.resolved(validated(args.experiment, where="jaxdiff train"), args.workdir)
    _join(args.processes)
    left = _left(before)
    if left and not args.with_stages:
        raise ConfigError(stages.describe(left, args.workdir))
    for stage in left:
        _print(f"stage {stage.workdir}: {stage.command}")
        if (status := _train(stage.config, stage.workdir, args)) is not None:
            return status
    return _train(config, args.workdir, args) or 0


def _train(config: Experiment, workdir: pathlib.Path, args: Train) -> int | None:
    """The exit status of a run that was stopped by a signal, or None: it is trained and has its pictures and reports."""
    from jaxdiff import processes, profiling, run

    if stopped := run.train(config, workdir, args.data_dir, args.processes.step_timeout, profiling.span(args.profile)):
        return _stopped(stopped, workdir)
    if processes.first():
        print(_report(config, workdir, args.data_dir))
    return None


def _report(config: Experiment, workdir: pathlib.Path, data_dir: str | None) -> str:
    """Makes the pictures and reports of a trained run; what to print."""
    from jaxdiff import reports

    if config.objective == "classifier":
        return reports.finish_classifier(config, workdir, data_dir)
    if config.objective == "vae":
        return reports.finish_vae(config, workdir, data_dir)
    if config.objective == "autoencoder":
        return reports.finish_autoencoder(config, workdir, data_dir)
    return reports.finish(config, workdir, workdir / "samples.png", range(max(config.model.num_classes, 1)), data_dir)


def _join(wanted: Processes) -> None:
    from jaxdiff import processes

    processes.start(wanted.coordinator, wanted.num_processes, wanted.process_id)


def _left(before: list[stages.Stage]) -> list[stages.Stage]:
    """The stages whose runs are not finished, of several processes as the first sees it."""
    from jaxdiff import processes, stages

    unfinished = processes.agreed([str(stage.workdir) for stage in stages.unfinished(before)])
    return [stage for stage in before if str(stage.workdir) in unfinished]


def _stopped(name: str, workdir: pathlib.Path) -> int:
    """Says that a signal stopped a run; the exit status."""
    from jaxdiff import checkpoint

    _print(f"{name}: saved step {checkpoint.steps(workdir)[-1]} of {workdir}; the same command goes on from there")
    return 130 if name == "SIGINT" else 0


def _print(line: str) -> None:
    from jaxdiff import processes

    if processes.first():
        print(line)


def ladder(args: Ladder) -> int:
    """`jaxdiff ladder`: the exit status."""
    from jaxdiff import files, processes, run
    from jaxdiff import ladder as ladders

    config = load_ladder(args.config)
    workdir = args.workdir or pathlib.Path("runs") / args.config.stem
    trained = ladders.runs(config, workdir)
    if not list(ladders.rungs(config, trained)):
        raise ConfigError(f"{args.config}: no student or baseline takes {config.calls} calls; choose others")
    _join(args.processes)
    for stage in _left(trained):
        _print(f"rung {stage.workdir}: {stage.command}")
        if stopped := run.train(stage.config, stage.workdir, args.data_dir, args.processes.step_timeout):
            return _stopped(stopped, stage.workdir)
    if not processes.first():
        return 0
    rows = ladders.measured(config, workdir, list(ladders.rungs(config, trained)), args.data_dir)
    text = ladders.table(rows)
    files.write(workdir / "table.md", text + "\n")
    ladders.draw(rows, workdir / "ladder.png")
    print(f"{text}\n{workdir / 'table.md'}, {workdir / 'ladder.png'}, and a grid for each place")
    return 0


def sample(args: Sample) -> int:
    """`jaxdiff sample`: the exit status."""
    from jaxdiff import lineage, pictures, run

    config = lineage.read_config(args.run)
    for name in ("num", "batch_size"):
        if getattr(args, name) < 1:
            raise ConfigError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(args, name)}")
    from_prior = config.objective == "vae"
    if from_prior:
        _refuse(args, (*SAMPLING, "labels"), "does not apply to a vae run, whose samples are decoded at once from its prior")
    else:
        config = _resampled(lineage.read_config(args.run, "diffusion"), args)
    chosen = [config.model.num_classes] if from_prior else parse_labels(args.labels, config.model.num_classes)
    if args.labels == "none" and config.model.num_classes and not config.diffusion.label_dropout:
        raise ConfigError("--labels none: this run was trained with labels alone (diffusion.label_dropout 0)")
    labels = run.cycling(chosen, args.num)
    name = f"prior_seed_{args.seed}.png" if from_prior else run.default_name(config, args.seed)
    out = args.out or args.run / "samples" / name
    if out.suffix not in (".png", ".npz"):
        raise ConfigError(f"--out {out}: write a name that ends in .png or .npz")
    step, params = lineage.read_params(config, args.run, args.ema)
    context = None if args.context is None else vectors(args.context)
    images = run.generation(config, args.batch_size, args.run)(params, labels, args.seed, context)
    if out.suffix == ".npz":
        pictures.save_npz(out, images, labels)
    else:
        pictures.save_grid(out, images, columns=len(chosen) if len(chosen) > 1 else max(1, round(args.num**0.5)))
    print(f"{args.num} samples of step {step}: {out}")
    return 0


def evaluate(args: Evaluate) -> int:
    """`jaxdiff evaluate`: the exit status."""
    from jaxdiff import lineage, reports, run

    if args.likelihood:
        return _likelihood(args)
    _refuse(args, ("estimators", "split", "probes", "batch_size"), "is for --likelihood; give both, or neither")
    if lineage.read_config(args.run).objective == "vae":
        raise ConfigError(f"{args.run} is a vae run, whose samples have no labels to judge; add --likelihood")
    config = _resampled(lineage.read_config(args.run, "diffusion"), args)
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
    _refuse(args, guided, "does not go with --likelihood, which is of the model without guidance")
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
        _refuse(args, ("steps", "probes", "labels"), "does not apply to the likelihood of a vae run")
    bits.estimators(config, names, effort)  # before the checkpoint is read
    step, params = lineage.read_params(config, args.run)
    how: Any = {"split": args.split, "num": args.num, "batch_size": args.batch_size, "data_dir": args.data_dir}
    print(bits.report(config, args.run, step, params, names, effort, conditional=args.labels != "none", **how))
    print(args.run / "likelihood.json")
    return 0


def plan(args: Plan) -> int:
    """`jaxdiff plan`: the exit status, 1 where nothing fits."""
    from jaxdiff import plan as plans

    config = validated(args.experiment, where="jaxdiff plan")
    job = plans.Job(
        config, args.what, plans.topology(args.topology, args.slices), plans.kept(args.cache_dir), args.limit_s, args.full
    )
    job = plans.with_batch(job, args.batch) if args.batch else job
    if args.largest_batch and args.sweep:
        raise ConfigError("--largest-batch and --sweep are two questions; ask one")
    if not args.sweep:
        _refuse(args, ("remats", "batches"), "is for --sweep; give both, or neither")
    fits = plans.answer(job, args.largest_batch, plans.variants(job, args.remats, args.batches) if args.sweep else (), args.json)
    return 0 if fits else 1


def verify(args: Verify) -> int:
    """`jaxdiff verify`: the exit status."""
    from jaxdiff import loading, oracles

    if args.num < 2:
        raise ConfigError(f"--num must be at least 2, got {args.num}")
    sampler = loading.sampler(args.sampler)
    denoiser = oracles.flow_map if args.consistency else oracles.denoiser
    try:
        report = oracles.verify(sampler, args.order, denoiser=denoiser, num=args.num, seed=args.seed)
    except Exception as error:  # the user's own code
        raise ConfigError(f"{args.sampler}: {type(error).__name__}: {(str(error).splitlines() or [''])[0]}") from error
    print(report)
    return 0 if report.passed else 1


def data(args: Data) -> int:
    """`jaxdiff data`: the exit status."""
    from jaxdiff.datasets import raw

    builder = raw.prepare(args.name, args.data_dir, args.raw_dir)
    sizes = ", ".join(f"{split} {info.num_examples}" for split, info in builder.info.splits.items())
    print(f"{args.name} ({sizes}): {builder.data_dir}")
    return 0


def latents(args: Latents) -> int:
    """`jaxdiff latents`: the exit status."""
    from jaxdiff import latents as caches

    splits = [name.strip() for name in args.split.split(",")]
    how: Any = {"data_dir": args.data_dir, "batch_size": args.batch_size, "flip": args.flip}
    print(caches.cache(args.run, args.out or args.run / "latents", splits, **how))
    return 0


def _resampled(config: Experiment, args: Sample | Evaluate) -> Experiment:
    """The config with those fields of its sampling that flags of the same name set."""
    given = {name: value for name in SAMPLING if (value := getattr(args, name, None)) is not None}
    return validated(dataclasses.replace(config, sampling=dataclasses.replace(config.sampling, **given)), where="sampling")


def _refuse(args: Any, names: Sequence[str], why: str) -> None:
    for field in dataclasses.fields(args):
        if field.name in names and getattr(args, field.name) != field.default:
            raise ConfigError(f"--{field.name.replace('_', '-')} {why}")


COMMANDS: dict[str, tuple[Any, Callable[[Any], int]]] = {
    "train": (Train, train),
    "ladder": (Ladder, ladder),
    "sample": (Sample, sample),
    "evaluate": (Evaluate, evaluate),
    "plan": (Plan, plan),
    "verify": (Verify, verify),
    "data": (Data, data),
    "latents": (Latents, latents),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; the exit status: 0 done, 1 a line on stderr says what is wrong, 2 wrong arguments, 130 Ctrl-C."""
    from jaxdiff import processes

    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help"):
        print(USAGE, end="")
        return 0
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("jaxdiff").setLevel(logging.INFO)
    logging.getLogger("absl").setLevel(logging.CRITICAL)  # tfds and orbax warn of what a user cannot mend; we say their errors
    _keep_compiled()
    try:
        return processes.leave(_run(argv[0], argv[1:]))
    except KeyboardInterrupt:
        return processes.abandon(130)
    except (UserError, OSError) as error:
        print(f"jaxdiff: {processes.who()}{error}", file=sys.stderr)
        return processes.abandon(1)


def _keep_compiled() -> None:
    """Keeps what takes over a second to compile for the next command, where JAX's own setting does not say where already."""
    import jax

    from jaxdiff import files

    if getattr(jax.config, "jax_compilation_cache_dir", None) is None:
        jax.config.update("jax_compilation_cache_dir", str(files.cache() / "compiled"))


def _run(name: str, argv: list[str]) -> int:
    if name not in COMMANDS:
        raise ConfigError(f"no command {name!r}; write one of {', '.join(COMMANDS)}")
    kind, function = COMMANDS[name]
    args = arguments.parsed(name, kind, argv)
    return args if isinstance(args, int) else function(args)


def entry() -> None:
    """The console script."""
    sys.exit(main())
