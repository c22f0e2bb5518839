"""The typed arguments of each command, of which tyro makes flags and help, and how their values are read."""

from __future__ import annotations

import pathlib
import re
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import tyro

from jaxdiff.config import Experiment, SamplerName, Spacing
from jaxdiff.errors import ConfigError

USAGE = """jaxdiff: diffusion models on JAX

  jaxdiff train CONFIG [--workdir DIR] [--steps 500] [--optimizer.learning-rate 3e-4] ...
      train a recipe such as configs/digits.py, or go on with the run in DIR
  jaxdiff train CONFIG --with-stages
      train also, and first, what the recipe starts from: an autoencoder, the models before it in a cascade
  jaxdiff ladder CONFIG [--workdir DIR]
      train the students of a ladder such as configs/digits_ladder.py, and compare them with their teachers at equal network calls
  jaxdiff sample RUN [--labels 0..9] [--num 100] [--guidance 2] [--steps 50] [--out samples.png]
      draw images from a run, as .png or .npz
  jaxdiff sample RUN --classifier CLASSIFIER_RUN --classifier-scale 3 --guidance 0 [--labels 0..9] ...
      guide the unconditional model by a classifier of noised images, such as configs/digits_classifier.py trains
  jaxdiff evaluate RUN [--num 1000] [--guidance 2] [--classifier CLASSIFIER_RUN --classifier-scale 3] ...
      judge a run's samples by a classifier trained on its data
  jaxdiff evaluate RUN --likelihood [--estimators discrete,continuous,flow] [--labels none] [--split test]
      bits per dimension of a diffusion run or a VAE, with error bars
  jaxdiff plan CONFIG --topology v5e:4x4 [--slices 2] [--batch 256] [--what sample] [--mesh.fsdp 16] ...
      compile the step for TPUs that need not be there: does it fit, memory, FLOPs, collectives, a lower bound of its time
  jaxdiff plan CONFIG --topology v5e:4x4 --largest-batch        or --sweep
      find the largest batch that fits; or compare meshes, remat policies and batches
  jaxdiff verify FILE.py:SAMPLER [--order 2]
      hold a sampler to data whose denoiser is known: its order, bias, distance from exact samples, dtypes, compilations
  jaxdiff data NAME [--data-dir DIR] [--raw-dir DIR]
      prepare mnist or cifar10 without TensorFlow
  jaxdiff latents RUN [--out DIR] [--split train] [--flip]
      encode a data set once by the autoencoder RUN, for training with --data.latents DIR

jaxdiff COMMAND --help lists every flag of a command.
"""


@dataclass(frozen=True)
class Processes:
    """One process of several that train one run. Those that SLURM or a TPU pod starts find each other."""

    coordinator: str | None = None
    """HOST:PORT of process 0, the same for all; with --num-processes and --process-id, where nothing else says."""
    num_processes: int | None = None
    """How many there are."""
    process_id: int | None = None
    """Which this is, from 0."""
    step_timeout: float | None = None
    """Seconds after which a step that is not done ends the process; 0: never; unless given 45 where there are several."""


@dataclass(frozen=True)
class Train:
    """Train a recipe; the same command goes on with the run that is in workdir.

    Example: jaxdiff train configs/digits.py --steps 500
    """

    config: tyro.conf.Positional[pathlib.Path]
    """A recipe: a Python file that defines `config`."""
    workdir: pathlib.Path
    """Where the run lives."""
    data_dir: str | None
    """tensorflow-datasets' directory; its own default if not given."""
    experiment: Annotated[Experiment, tyro.conf.arg(name="")]
    with_stages: bool = False
    """Train first, in order, the recipes that this one starts from and whose runs are not finished."""
    profile: str = ""
    """FIRST:LAST, such as 10:20: a trace of these steps for TensorBoard, in workdir/profile."""
    processes: Annotated[Processes, tyro.conf.arg(name="")] = Processes()


@dataclass(frozen=True)
class Ladder:
    """Train the students of a ladder and what they start from, sample all with few network calls, and compare them.

    The same command goes on where it was stopped. Writes table.md, ladder.png, ladder.json, and a grid for each place.

    Example: jaxdiff ladder configs/digits_ladder.py
    """

    config: tyro.conf.Positional[pathlib.Path]
    """A Python file that defines `ladder`."""
    workdir: pathlib.Path | None = None
    """For table, figure and grids; runs/CONFIG if not given. The runs are beside it."""
    data_dir: str | None = None
    """tensorflow-datasets' directory; its own default if not given."""
    processes: Annotated[Processes, tyro.conf.arg(name="")] = Processes()


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
    eta: float | None = None
    guidance: float | None = None
    """1 is none, 0 the unconditional model."""
    classifier: str | None = None
    """A classifier's run, which guides the samples to their labels."""
    classifier_scale: float | None = None
    labels: str = ""
    """0..9, or 3, or 0,3,7, or none for the unconditional model; all in turn if not given."""
    num: int = 100
    context: pathlib.Path | None = None
    """A .npy file of context vectors, [T, D] or [num, T, D], for a run that attends to some."""
    out: pathlib.Path | None = None
    """A .png grid, one label a column, or .npz with `image` uint8 and `label`; a .png in RUN/samples if not given."""
    seed: int = 0
    ema: str | None = None
    batch_size: int = 500


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
class Plan:
    """Compile a recipe's real step for TPU chips that are only described, and say whether it fits, what it takes and sends.

    Nothing runs and no TPU is needed, only its compiler (pip install -e ".[tpu]"). Programs that were compiled are kept.

    Example: jaxdiff plan configs/cifar10.py --topology v5e:2x4 --mesh.data 1 --mesh.fsdp -1
    """

    config: tyro.conf.Positional[pathlib.Path]
    """A recipe: a Python file that defines `config`."""
    topology: str
    """Kind and shape of a slice: v5e:4x4, v6e:2x4, v5p:2x2x2, v4:2x2x4."""
    experiment: Annotated[Experiment, tyro.conf.arg(name="")]
    slices: int = 1
    """Slices of that shape, joined by the data centre's network."""
    batch: int = 0
    """Images over all devices, as data.batch_size (or of a sampler sampling.num), which it is if not given."""
    what: Literal["train", "sample"] = "train"
    """A training step, or the run's sampler."""
    largest_batch: bool = False
    """Search the largest batch that fits."""
    sweep: bool = False
    """Compare meshes, remat policies and batches in a table; dozens of compiles."""
    remats: tuple[str, ...] = ()
    """Of --sweep: values of model.remat; all if none."""
    batches: tuple[int, ...] = ()
    """Of --sweep: batches over all devices; the config's and its double if none."""
    full: bool = False
    """Compile to a finished executable, which takes many times longer and changes no figure."""
    limit_s: float = 900.0
    """Seconds that a compile may take."""
    cache_dir: pathlib.Path | None = None
    """Of compiled programs; $JAXDIFF_CACHE_DIR/plan or ~/.cache/jaxdiff/plan if not given."""
    json: bool = False
    """Print JSON."""


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


@dataclass(frozen=True)
class Data:
    """Prepare mnist or cifar10 without TensorFlow.

    Example: jaxdiff data mnist
    """

    name: tyro.conf.Positional[str]
    data_dir: str | None = None
    """tensorflow-datasets' directory; its own default if not given."""
    raw_dir: pathlib.Path | None = None
    """A folder with the raw files, for a machine without network."""


@dataclass(frozen=True)
class Latents:
    """Encode the data set of an autoencoder's run once, for training diffusion in its latents with data.latents.

    Example: jaxdiff latents runs/digits_kl --split train,test
    """

    run: tyro.conf.Positional[pathlib.Path]
    """The autoencoder's directory."""
    out: pathlib.Path | None = None
    """A directory that does not exist yet; RUN/latents if not given."""
    split: str = "train"
    """Names of splits, with commas between them."""
    flip: bool = False
    """Encode the mirrored images too, for data.flip."""
    data_dir: str | None = None
    """tensorflow-datasets' directory; its own default if not given."""
    batch_size: int = 256


def parse_labels(text: str, num_classes: int) -> list[int]:
    """Labels of `0..9`, `3`, `0,3,7` or `none` (the null label); of an empty text all.

    Raises:
        ConfigError: no such form, or a label that the run was not trained on.
    """
    if text in ("", "none"):
        return [num_classes] if text or num_classes == 0 else list(range(num_classes))
    labels: list[int] = []
    for part in text.split(","):
        found = re.fullmatch(r"(\d+)(?:\.\.(\d+))?", part.strip())
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
