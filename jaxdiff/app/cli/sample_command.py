"""`jaxdiff sample`: its flags, and what it does."""

import dataclasses
import pathlib
import re
from dataclasses import dataclass
from typing import Annotated, Any

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


EDITS = ("prompt", "negative", "size", "init", "strength", "mask", "lora", "context")
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
    prompt: str = ""
    """What to draw, or a .txt file of prompts, one a line."""
    negative: str = ""
    """What the prompts are guided away from."""
    num: int | None = None
    """By default 100, or one a prompt."""
    size: str = ""
    """HEIGHTxWIDTH in pixels; by default the run's."""
    init: pathlib.Path | None = None
    """An image to start from."""
    strength: float = 1.0
    """Share of the steps that are taken from there."""
    mask: pathlib.Path | None = None
    """An image as large as --init, white where it is painted anew."""
    lora: str = ""
    """FILE.safetensors:SCALE, or several, with commas."""
    context: pathlib.Path | None = None
    """A .npy file of context vectors, [T, D] or [num, T, D]."""
    out: pathlib.Path | None = None
    """A .png grid, one column per label or prompt, or .npz with `image` and `label`; by default in RUN/samples."""
    seed: int = 0
    ema: str | None = None
    """Name of an EMA; by default the config's first."""
    batch_size: int | None = None
    """Images at once on a device, at most; by default the run's."""


def sample(args: Sample) -> int:
    from jaxdiff.app.runs import edits, storage, trained
    from jaxdiff.app.runs.sources import sampling_inputs
    from jaxdiff.data.importing import parse_size
    from jaxdiff.io import files, pictures, terminal

    config = _config(args)
    from_prior = config.objective == "vae"
    chosen = [config.model.num_classes] if from_prior else parse_labels(args.labels, config.model.num_classes)
    if args.labels == "none" and config.model.num_classes and not config.diffusion.label_dropout:
        raise ConfigError("--labels none: this run has no unconditional model (it was trained with diffusion.label_dropout 0)")
    wanted = read_prompts(args.prompt)
    num = args.num or len(wanted) or 100
    labels = trained.cycle_labels(chosen, num)
    name = f"prior_seed_{args.seed}.png" if from_prior else trained.sample_file_name(config, args.seed, args.prompt)
    out = args.out or args.run / "samples" / name
    if out.suffix not in (".png", ".npz"):
        raise ConfigError(f"--out {out}: write a name that ends in .png or .npz")
    files.check_writable(out, "--out")
    step, params = storage.read_params(config, args.run, args.ema)
    sources, frozen = sampling_inputs(config, args.run)
    params, frozen = edits.with_lora(config, sources, params, frozen, args.lora)
    config = edits.sized(config, sources, parse_size(args.size) if args.size else None)
    given = _given(args, config, np.resize(wanted, num).tolist() if wanted else [])
    given |= edits.starting_image(config, args.init, args.mask, num)
    inputs = trained.Inputs(sources, frozen, storage.read_levels(config, args.run))
    columns = max(len(chosen), len(wanted))
    columns = columns if columns > 1 else max(1, round(num**0.5))
    preview = (lambda images, last: terminal.show(pictures.grid(images, columns), last)) if terminal.shows_pictures() else None
    images = trained.generator(config, inputs, args.batch_size, args.strength, preview)(params, labels, args.seed, given)
    if out.suffix == ".npz":
        pictures.save_npz(out, images, labels)
    else:
        pictures.save_grid(out, images, columns)
    print(f"{count(num, 'sample')} of step {step}: {out}")
    return 0


def _config(args: Sample) -> Experiment:
    """The run's config, with the flags that replace its sampling, once all are checked."""
    from jaxdiff.app.runs import storage

    config = storage.read_config(args.run)
    check_bounds(args, num=1, batch_size=1)
    if not 0 <= args.strength <= 1:
        raise ConfigError(f"--strength must be between 0 and 1, got {args.strength:g}")
    if config.objective == "vae":
        why = "does not apply to a vae run, whose samples are decoded from its prior in one call"
        refuse(args, (*SAMPLING, *EDITS, "labels"), why)
        return config
    return args.sampling.applied_to(storage.read_config(args.run, "diffusion"))


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


def read_prompts(text: str) -> list[str]:
    """The prompts of `--prompt`: itself, or the lines of a .txt file; none where it is empty."""
    if not text.endswith(".txt"):
        return [text] if text else []
    try:
        lines = pathlib.Path(text).read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise ConfigError(f"--prompt {text} must be a file of text ({first_line(error)})") from error
    if not (prompts := [line.strip() for line in lines if line.strip()]):
        raise ConfigError(f"--prompt {text} holds no prompt; write one a line")
    return prompts


def _given(args: Sample, config: Experiment, wanted: list[str]) -> dict[str, Any]:
    """What the run is given beside labels: tokens, or context vectors."""
    from jaxdiff.app.build import has_text
    from jaxdiff.app.runs import prompts

    if has_text(config):
        refuse(args, ("context",), "does not apply to a run with a text encoder; write --prompt")
        return prompts.prompted(config, args.run, wanted or [""] * (args.num or 100), args.negative)
    why = "does not apply: this run has no text encoder" + (", but --context" if config.model.context_channels else "")
    refuse(args, ("prompt", "negative"), why)
    return {} if args.context is None else {"context": _load_context(args.context)}


def _load_context(path: pathlib.Path) -> np.ndarray:
    try:
        with path.open("rb") as file:
            array = np.load(file)
        if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiu":
            raise ValueError("no numbers in it")
    except Exception as error:  # numpy raises many kinds
        raise ConfigError(f"--context {path} must be a .npy file of numbers ({first_line(error)})") from error
    return array
