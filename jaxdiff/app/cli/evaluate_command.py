"""`jaxdiff evaluate`: its flags, and what it does."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import tyro

from jaxdiff.app.cli.arguments import bounded_seed, refuse
from jaxdiff.app.cli.sample_command import parse_labels, resampled
from jaxdiff.app.config import Experiment, SamplerName, Spacing, validated
from jaxdiff.io.errors import ConfigError

if TYPE_CHECKING:
    from jaxdiff.evaluate import Evaluator


MEASURING = ("sampler", "spacing", "eta", "guidance", "classifier", "classifier_scale", "epochs", "features", "weights")
ASKED = ("metrics", "ema", "seed")  # flags that neither --likelihood nor --stored reads


@dataclass(frozen=True)
class Evaluate:
    """Measure samples of runs against their data, or with --likelihood a run's bits per dimension.

    Example: jaxdiff evaluate runs/digits runs/digits_guided --num 1000
    """

    runs: tyro.conf.Positional[tuple[pathlib.Path, ...]]
    """Directories of runs; of several a table is printed."""
    num: int = 1000
    """Samples, in sets of as many as are held out."""
    sampler: SamplerName | None = None
    """As each run's config says if not given; so for steps, spacing, eta, guidance and seed."""
    steps: int | None = None
    """With --likelihood 1000 (chain) and 256 (flow)."""
    spacing: Spacing | None = None
    eta: float | None = None
    guidance: float | None = None
    """1 is none, 0 the unconditional model."""
    classifier: str | None = None
    """A classifier's run, to guide the samples."""
    classifier_scale: float | None = None
    ema: str | None = None
    seed: int | None = None
    labels: str = ""
    """0..9, 3, or 0,3,7; all in turn if not given."""
    metrics: str = ""
    """Some of fid, kid, precision, recall, inception_score, label_agreement; all that apply if not given."""
    features: Literal["classifier", "inception"] = "classifier"
    """A classifier of the data, trained on first use; or InceptionV3."""
    weights: pathlib.Path | None = None
    """Of inception: a .npz (see jaxdiff.models.inception)."""
    epochs: int | None = None
    """Of the classifier's training."""
    stored: bool = False
    """Print the table of earlier evaluations instead."""
    data_dir: str | None = None
    likelihood: bool = False
    """Bits per dimension; the flags below are for it."""
    estimators: str = ""
    """discrete,continuous,flow,flow_uniform, or elbo,importance; all but flow_uniform if not given."""
    split: str = "test"
    probes: int = 1
    """Of the flow's divergence; 0 computes it exactly."""
    batch_size: int = 100


def evaluate(args: Evaluate) -> int:
    """`jaxdiff evaluate`: the exit status."""
    if not args.runs:
        raise ConfigError("evaluate needs a run: jaxdiff evaluate runs/digits")
    if args.likelihood:
        return _likelihood(args)
    refuse(args, ("estimators", "split", "probes", "batch_size"), "is for --likelihood; give both, or neither")
    if args.stored:
        return _stored(args)
    if args.num < 10:
        raise ConfigError(f"--num must be at least 10, got {args.num}")
    if (args.features == "inception") != (args.weights is not None):
        raise ConfigError("--features inception and --weights FILE.npz go together; see jaxdiff.models.inception for the file")
    return _samples(args)


def _stored(args: Evaluate) -> int:
    from jaxdiff import evaluate

    refuse(args, (*MEASURING, *ASKED, "num", "steps", "labels"), "does not go with --stored, which samples nothing")
    print(evaluate.results_table([(path.name, each) for path in args.runs for each in evaluate.results_of_run(path)]))
    return 0


def _samples(args: Evaluate) -> int:
    from jaxdiff import evaluate
    from jaxdiff.app.runs import finish, train

    configs = {path: _sampling(path, args) for path in args.runs}
    labels = {path: parse_labels(args.labels, config.model.num_classes) for path, config in configs.items()}
    judges = _judges(configs, args)
    evaluate.check_same({str(path): judged.spec for path, judged in judges.items()})  # before the samples are drawn
    rows = []
    for path, config in configs.items():
        ema = f"_ema_{args.ema}" if args.ema else ""
        name = train.sample_file_name(config, config.seed).removesuffix(".png") + ema
        drawn = finish.draw_samples(config, path, labels[path], args.num, args.data_dir, args.ema)
        print(finish.save_sample_grid(config, drawn, path / "samples" / f"{name}.png", len(labels[path])))
        out = path / evaluate.FOLDER / (name + ("_inception" if args.weights else "") + ".json")
        rows.append((path.name, finish.evaluate_samples(config, drawn, judges[path], out, args.ema)))
        print(f"what was measured: {out}" if len(configs) > 1 else f"{rows[0][1].result}\n{out}", flush=True)
    if len(configs) > 1:
        print(f"\n{evaluate.results_table(rows)}")
    return 0


def _sampling(path: pathlib.Path, args: Evaluate) -> Experiment:
    """The run's config, sampled as the flags say."""
    from jaxdiff.app.runs import lineage

    if lineage.read_config(path).objective == "vae":
        raise ConfigError(f"{path} is a vae run, whose samples have no labels to judge; add --likelihood")
    config = resampled(lineage.read_config(path, "diffusion"), args)
    lineage.ema_name(config, path, args.ema)
    changes: dict[str, Any] = {} if args.seed is None else {"seed": bounded_seed(args.seed)}
    if args.epochs is not None:
        changes["evaluation"] = dataclasses.replace(config.evaluation, epochs=args.epochs)
    return validated(dataclasses.replace(config, **changes), where="jaxdiff evaluate")


def _judges(configs: Mapping[pathlib.Path, Experiment], args: Evaluate) -> dict[pathlib.Path, Evaluator]:
    """What measures each run's samples: one for all that were trained on the same images."""
    from jaxdiff.app.runs import finish

    names = [name.strip() for name in args.metrics.split(",") if name.strip()]
    made, found = {}, {}
    for path, config in configs.items():
        c, epochs, unlabelled = config.data, config.evaluation.epochs, not config.model.num_classes
        same = (c.name, c.split, c.held_out, c.image_shape, c.fit, c.reduce, epochs, unlabelled)
        if same not in made:
            made[same] = finish.run_evaluator(config, args.num, epochs, args.data_dir, weights=args.weights, names=names)
        found[path] = made[same]
    return found


def _likelihood(args: Evaluate) -> int:
    from jaxdiff.app.runs import likelihood as bits
    from jaxdiff.app.runs import lineage

    refuse(args, (*MEASURING, *ASKED, "stored"), "does not go with --likelihood, which is of the model without guidance")
    workdir, *others = args.runs
    if others:
        raise ConfigError(f"--likelihood: is of one run, got {len(args.runs)}")
    config = lineage.read_config(workdir)
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
    step, params = lineage.read_params(config, workdir)
    how: Any = {"split": args.split, "num": args.num, "batch_size": args.batch_size, "data_dir": args.data_dir}
    print(bits.evaluate_likelihood(config, workdir, step, params, names, effort, conditional=args.labels != "none", **how))
    print(workdir / "likelihood.json")
    return 0
