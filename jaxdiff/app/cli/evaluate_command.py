"""`jaxdiff evaluate`: its flags, and what it does."""

import dataclasses
import pathlib
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import tyro

from jaxdiff.app.cli.arguments import check_bounds, names_in, refuse
from jaxdiff.app.cli.flags import DataDir
from jaxdiff.app.cli.sample_command import SAMPLING, Sampling, parse_labels
from jaxdiff.app.config import Experiment, validated
from jaxdiff.io.errors import ConfigError

# flags that neither --likelihood nor --stored reads
MEASURING = {*SAMPLING, "epochs", "features", "weights", "metrics", "ema", "seed"} - {"steps"}

WEIGHTS = {"inception": "FILE.npz (see jaxdiff.models.inception)", "clip": "FOLDER (a CLIP as transformers saves it)"}


@dataclass(frozen=True)
class Evaluate:
    """Compare samples of runs with their data; with --likelihood: bits per dimension.

    Example: jaxdiff evaluate runs/digits runs/digits_guided --num 1000
    """

    runs: tyro.conf.Positional[tuple[pathlib.Path, ...]]
    """Directories of runs; several are compared in a table."""
    num: int = 1000
    """Samples, in sets as large as the held-out set."""
    sampling: Annotated[Sampling, tyro.conf.arg(name="")] = field(default_factory=Sampling)
    ema: str | None = None
    seed: int | None = None
    """By default the run's."""
    labels: str = ""
    """0..9, 3, or 0,3,7; by default all in turn."""
    metrics: str = ""
    """Some of fid, kid, precision, recall, inception_score, label_agreement, clip_score; default: all that apply."""
    features: Literal["classifier", "inception", "clip"] = "classifier"
    """A classifier of the data, InceptionV3, or CLIP."""
    weights: pathlib.Path | None = None
    """Of InceptionV3, an .npz; of CLIP, a folder."""
    epochs: int | None = None
    """Of the classifier's training, at its first use."""
    split: str = ""
    """Of held-out images, to compare with, whose captions or context samples are given; by default the run's."""
    stored: bool = False
    """Print the table of earlier evaluations instead."""
    data_dir: DataDir = None
    likelihood: bool = False
    """Bits per dimension, by default in 1000 steps (chain), 256 (flow); the flags below are for it."""
    estimators: str = ""
    """discrete,continuous,flow,flow_uniform or elbo,importance; by default all but flow_uniform."""
    probes: int = 1
    """Probes of the flow's divergence; 0: exact."""
    batch_size: int = 100


def evaluate(args: Evaluate) -> int:
    from jaxdiff import evaluate

    if not args.runs:
        raise ConfigError("evaluate needs a run: jaxdiff evaluate runs/digits")
    if args.likelihood:
        return _likelihood(args)
    refuse(args, ("estimators", "probes", "batch_size"), "is for --likelihood; give both, or neither")
    if args.stored:
        refuse(args, (*MEASURING, "num", "steps", "labels", "split"), "does not go with --stored, which draws no samples")
        print(evaluate.results_table([(path.name, each) for path in args.runs for each in evaluate.results_of_run(path)]))
        return 0
    check_bounds(args, num=10)
    return _samples(args)


def _samples(args: Evaluate) -> int:
    from jaxdiff import evaluate
    from jaxdiff.app import build
    from jaxdiff.app.runs import finish, trained

    configs = {path: _config(path, args) for path in args.runs}
    labels = {path: parse_labels(args.labels, config.model.num_classes) for path, config in configs.items()}
    network, made, evaluators = _network(args), {}, {}
    for path, config in configs.items():
        c, unlabelled = config.data, not (config.model.num_classes or config.model.context_channels)
        given = (unlabelled, build.has_text(config))
        same_images = (c.name, c.split, c.held_out, c.image_shape, c.fit, c.reduce, config.evaluation.epochs, *given)
        if same_images not in made:
            how: Any = {"network": network, "names": names_in(args.metrics)}
            made[same_images] = finish.run_evaluator(config, args.num, args.data_dir, **how)
        evaluators[path] = made[same_images]
    evaluate.check_same({str(path): each.spec for path, each in evaluators.items()})  # before samples are drawn
    rows = []
    for path, config in configs.items():
        marks = [f"_ema_{args.ema}" if args.ema else "", f"_{args.split}" if args.split else ""]
        name = trained.sample_file_name(config, config.seed).removesuffix(".png") + "".join(marks)
        drawn = finish.draw_samples(config, path, args.num, args.data_dir, classes=labels[path], ema=args.ema)
        columns = len(labels[path]) if config.model.num_classes else finish.COLUMNS
        print(finish.save_sample_grid(config, drawn, path / "samples" / f"{name}.png", columns))
        out = path / evaluate.FOLDER / (name + (f"_{args.features}" if args.weights else "") + ".json")
        rows.append((path.name, finish.evaluate_samples(config, drawn, evaluators[path], out, args.ema)))
        print(f"evaluation: {out}" if len(configs) > 1 else f"{rows[0][1].result}\n{out}", flush=True)
    if len(configs) > 1:
        print(f"\n{evaluate.results_table(rows)}")
    return 0


def _network(args: Evaluate) -> Any:
    """The network of a file or folder of weights; None stands for a classifier of each run's data."""
    from jaxdiff import evaluate

    if args.features == "classifier":
        if args.weights is not None:
            raise ConfigError("--weights is of which network? write --features inception (FILE.npz) or --features clip (FOLDER)")
        return None
    if args.weights is None:
        raise ConfigError(f"--features {args.features} needs its weights; write --weights {WEIGHTS[args.features]}")
    return evaluate.clip(args.weights) if args.features == "clip" else evaluate.inception(args.weights)


def _config(path: pathlib.Path, args: Evaluate) -> Experiment:
    """The run's config, with sampling, seed, epochs and split as the flags say."""
    from jaxdiff.app.runs import storage

    if storage.read_config(path).objective == "vae":
        raise ConfigError(f"{path} is a vae run, whose samples have no labels to evaluate; add --likelihood")
    config = args.sampling.applied_to(storage.read_config(path, "diffusion"))
    storage.ema_name(config, path, args.ema)
    seed = config.seed if args.seed is None else args.seed
    epochs = config.evaluation.epochs if args.epochs is None else args.epochs
    evaluation = dataclasses.replace(config.evaluation, epochs=epochs)
    data = dataclasses.replace(config.data, held_out=args.split or config.data.held_out)
    return validated(dataclasses.replace(config, seed=seed, evaluation=evaluation, data=data), where="jaxdiff evaluate")


def _likelihood(args: Evaluate) -> int:
    from jaxdiff.app.runs import likelihood, storage

    refuse(args, (*MEASURING, "stored"), "does not go with --likelihood, which evaluates the model without guidance")
    workdir, *others = args.runs
    if others:
        raise ConfigError(f"--likelihood takes one run, got {len(args.runs)}")
    check_bounds(args, num=2, batch_size=1, probes=0)
    check_bounds(args.sampling, steps=2)
    config = storage.read_config(workdir)
    if args.labels not in ("", "none"):
        raise ConfigError(f"--labels {args.labels}: --likelihood uses the label of each image; write none for no labels")
    steps: Any = {} if args.sampling.steps is None else dict.fromkeys(("steps", "flow_steps"), args.sampling.steps)
    effort = likelihood.Effort(probes=args.probes, **steps)
    names = names_in(args.estimators)
    if args.estimators and not names:
        raise ConfigError(f"--estimators {args.estimators!r}: no name in it; write elbo, importance or discrete, continuous, flow")
    if config.objective == "vae":
        refuse(args, ("steps", "probes", "labels"), "does not apply to the likelihood of a vae run")
    images = likelihood.Measured(
        args.split or config.data.held_out, args.num, args.labels != "none", args.batch_size, args.data_dir
    )
    print(likelihood.evaluate_likelihood(workdir, names, effort, images))
    print(workdir / "likelihood.json")
    return 0
