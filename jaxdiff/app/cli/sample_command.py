"""`jaxdiff sample`: its flags, and what it does."""

import dataclasses
import pathlib
import re
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import tyro

from jaxdiff.app.cli.arguments import check_bounds, refuse
from jaxdiff.app.config import Experiment, SamplerName, Spacing, validated
from jaxdiff.io import count
from jaxdiff.io.errors import ConfigError, first_line


@dataclass(frozen=True)
class Sampling:
    """Flags that replace fields of config.sampling."""

    sampler: SamplerName | None = None
    """By default the run's config; so for steps, spacing, eta and guidance. For a cascade: of its last stage."""
    steps: int | None = None
    spacing: Spacing | None = None
    """What is uniform along the levels."""
    eta: float | None = None
    """Fraction of fresh noise in ddim; 1 is DDPM."""
    guidance: float | None = None
    """Scale: 1 is none, 0 the unconditional model."""
    classifier: str | None = None
    """Run of a classifier, for classifier guidance."""
    classifier_scale: float | None = None
    """Scale of its gradient."""

    def applied_to(self, config: Experiment) -> Experiment:
        """The config with the flags that are set."""
        given = {name: value for name, value in vars(self).items() if value is not None}
        return validated(dataclasses.replace(config, sampling=dataclasses.replace(config.sampling, **given)), where="sampling")


SAMPLING = tuple(field.name for field in dataclasses.fields(Sampling))


@dataclass(frozen=True)
class Sample:
    """Draw images from a run.

    Example: jaxdiff sample runs/digits --labels 0..9 --num 100 --guidance 2
    """

    run: tyro.conf.Positional[pathlib.Path]
    """Directory of the run."""
    sampling: Annotated[Sampling, tyro.conf.arg(name="")] = Sampling()
    labels: str = ""
    """0..9, 3, or 0,3,7, or none for the unconditional model; by default all in turn."""
    num: int = 100
    context: pathlib.Path | None = None
    """A .npy file of context vectors, [T, D] or [num, T, D], for a run with cross-attention."""
    out: pathlib.Path | None = None
    """A .png grid, one column per label, or .npz with `image` uint8 and `label`; by default a .png in RUN/samples."""
    seed: int = 0
    ema: str | None = None
    """Name of an EMA of the params; by default the config's first."""
    batch_size: int | None = None
    """Images that a device draws at once, at most; by default the run's sampling.batch_size."""


def sample(args: Sample) -> int:
    from jaxdiff.app.runs import storage, trained
    from jaxdiff.io import files, pictures

    config = storage.read_config(args.run)
    check_bounds(args, num=1, batch_size=1)
    from_prior = config.objective == "vae"
    if from_prior:
        refuse(args, (*SAMPLING, "labels"), "does not apply to a vae run, whose samples are decoded from its prior in one call")
    else:
        config = args.sampling.applied_to(storage.read_config(args.run, "diffusion"))
    chosen = [config.model.num_classes] if from_prior else parse_labels(args.labels, config.model.num_classes)
    if args.labels == "none" and config.model.num_classes and not config.diffusion.label_dropout:
        raise ConfigError("--labels none: this run has no unconditional model (it was trained with diffusion.label_dropout 0)")
    labels = trained.cycle_labels(chosen, args.num)
    name = f"prior_seed_{args.seed}.png" if from_prior else trained.sample_file_name(config, args.seed)
    out = args.out or args.run / "samples" / name
    if out.suffix not in (".png", ".npz"):
        raise ConfigError(f"--out {out}: write a name that ends in .png or .npz")
    files.check_writable(out, "--out")
    step, params = storage.read_params(config, args.run, args.ema)
    context = None if args.context is None else _load_context(args.context)
    images = trained.image_sampler(config, args.batch_size, args.run)(params, labels, args.seed, context)
    if out.suffix == ".npz":
        pictures.save_npz(out, images, labels)
    else:
        pictures.save_grid(out, images, columns=len(chosen) if len(chosen) > 1 else max(1, round(args.num**0.5)))
    print(f"{count(args.num, 'sample')} of step {step}: {out}")
    return 0


def parse_labels(text: str, num_classes: int) -> list[int]:
    """The labels in `0..9`, `3`, `0,3,7` or `none` (the null label), which the run must know; all for an empty text."""
    if text in ("", "none"):
        return [num_classes] if text or num_classes == 0 else list(range(num_classes))
    labels: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"([0-9]+)(?:\.\.([0-9]+))?", part.strip())
        if not match:
            raise ConfigError(f"--labels {text}: write 0..9, 3, or 0,3,7")
        first, last = int(match[1]), int(match[2] or match[1])
        if first > last or last >= num_classes:
            raise ConfigError(f"--labels {text}: this run has the labels 0..{num_classes - 1}, and a range ascends")
        labels.extend(range(first, last + 1))
    return labels


def _load_context(path: pathlib.Path) -> np.ndarray:
    try:
        with path.open("rb") as file:
            array = np.load(file)
        if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiu":
            raise ValueError("no numbers in it")
    except Exception as error:  # numpy raises many kinds
        raise ConfigError(f"--context {path} must be a .npy file of numbers ({first_line(error)})") from error
    return array
