"""`jaxdiff sample`: its flags, and what it does."""

from __future__ import annotations

import dataclasses
import errno
import pathlib
import re
import tempfile
from dataclasses import dataclass
from typing import Any

import numpy as np
import tyro

from jaxdiff.app.cli.arguments import bounded_seed, refuse
from jaxdiff.app.config import Experiment, SamplerName, Spacing, validated
from jaxdiff.io.errors import ConfigError

SAMPLING = ("sampler", "steps", "spacing", "eta", "guidance", "classifier", "classifier_scale")  # flags that set config.sampling


@dataclass(frozen=True)
class Sample:
    """Draw images from a run.

    Example: jaxdiff sample runs/digits --labels 0..9 --num 100 --guidance 2
    """

    run: tyro.conf.Positional[pathlib.Path]
    """The run's directory."""
    sampler: SamplerName | None = None
    """As the run's config says if not given; so for steps, spacing, eta and guidance. Of a cascade these are its last stage's."""
    steps: int | None = None
    spacing: Spacing | None = None
    """What is uniform along the levels."""
    eta: float | None = None
    """Share of fresh noise in ddim."""
    guidance: float | None = None
    """1 is none, 0 the unconditional model."""
    classifier: str | None = None
    """A classifier's run, which guides the samples to their labels."""
    classifier_scale: float | None = None
    """Of its gradient."""
    labels: str = ""
    """0..9, or 3, or 0,3,7, or none for the unconditional model; all in turn if not given."""
    num: int = 100
    context: pathlib.Path | None = None
    """A .npy file of context vectors, [T, D] or [num, T, D], for a run that attends to some."""
    out: pathlib.Path | None = None
    """A .png grid, one label a column, or .npz with `image` uint8 and `label`; a .png in RUN/samples if not given."""
    seed: int = 0
    ema: str | None = None
    """Name of the averaged params; the config's first if not given."""
    batch_size: int = 500
    """Drawn at once."""


def sample(args: Sample) -> int:
    """`jaxdiff sample`: the exit status."""
    from jaxdiff.app.runs import lineage, train
    from jaxdiff.io import pictures

    config = lineage.read_config(args.run)
    for name in ("num", "batch_size"):
        if getattr(args, name) < 1:
            raise ConfigError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(args, name)}")
    from_prior = config.objective == "vae"
    if from_prior:
        refuse(args, (*SAMPLING, "labels"), "does not apply to a vae run, whose samples are decoded at once from its prior")
    else:
        config = resampled(lineage.read_config(args.run, "diffusion"), args)
    chosen = [config.model.num_classes] if from_prior else parse_labels(args.labels, config.model.num_classes)
    if args.labels == "none" and config.model.num_classes and not config.diffusion.label_dropout:
        raise ConfigError("--labels none: this run was trained with labels alone (diffusion.label_dropout 0)")
    labels = train.cycle_labels(chosen, args.num)
    seed = bounded_seed(args.seed)
    name = f"prior_seed_{seed}.png" if from_prior else train.sample_file_name(config, seed)
    out = args.out or args.run / "samples" / name
    if out.suffix not in (".png", ".npz"):
        raise ConfigError(f"--out {out}: write a name that ends in .png or .npz")
    check_writable(out)
    step, params = lineage.read_params(config, args.run, args.ema)
    context = None if args.context is None else vectors(args.context)
    images = train.image_sampler(config, args.batch_size, args.run)(params, labels, seed, context)
    if out.suffix == ".npz":
        pictures.save_npz(out, images, labels)
    else:
        pictures.save_grid(out, images, columns=len(chosen) if len(chosen) > 1 else max(1, round(args.num**0.5)))
    print(f"{args.num} samples of step {step}: {out}")
    return 0


def check_writable(out: pathlib.Path) -> None:
    """Whether a file can be written there, before what takes long.

    Raises:
        ConfigError: it cannot.
    """
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out.parent):
            pass
        if out.is_dir():
            raise IsADirectoryError(errno.EISDIR, "it is a directory")
    except OSError as error:
        raise ConfigError(f"{out} cannot be written ({error.strerror}); choose another place by --out") from error


def resampled(config: Experiment, args: Any) -> Experiment:
    """The config with those fields of its sampling that flags of the same name set."""
    given = {name: value for name in SAMPLING if (value := getattr(args, name, None)) is not None}
    return validated(dataclasses.replace(config, sampling=dataclasses.replace(config.sampling, **given)), where="sampling")


def parse_labels(text: str, num_classes: int) -> list[int]:
    """Labels of `0..9`, `3`, `0,3,7` or `none` (the null label); of an empty text all.

    Raises:
        ConfigError: no such form, or a label that the run was not trained on.
    """
    if text in ("", "none"):
        return [num_classes] if text or num_classes == 0 else list(range(num_classes))
    labels: list[int] = []
    for part in text.split(","):
        found = re.fullmatch(r"([0-9]+)(?:\.\.([0-9]+))?", part.strip())
        if not found:
            raise ConfigError(f"--labels {text}: write 0..9, 3, or 0,3,7")
        first, last = int(found[1]), int(found[2] or found[1])
        if first > last or last >= num_classes:
            raise ConfigError(f"--labels {text}: this run has the labels 0..{num_classes - 1}, the first of a range comes first")
        labels.extend(range(first, last + 1))
    return labels


def vectors(path: pathlib.Path) -> Any:
    """The array of a .npy file.

    Raises:
        ConfigError: there is no such file, or it holds none.
    """
    try:
        found = np.load(path)
    except Exception as error:  # numpy raises many kinds
        raise ConfigError(f"--context {path}: no .npy file of numbers ({error or type(error).__name__})") from error
    if not isinstance(found, np.ndarray) or found.dtype.kind not in "fiu":
        raise ConfigError(f"--context {path}: no .npy file of numbers")
    return found
