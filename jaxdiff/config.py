"""What a run is: typed frozen dataclasses, written as plain Python in `configs/`, one recipe a file.

Strings that choose code live here and on the command line alone; `recipe.py` turns them into functions.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import pathlib
import re
import runpy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import pydantic

from jaxdiff.errors import ConfigError

SamplerName = Literal["ddim", "ddpm", "ddpm_large", "heun", "dpmpp_2m", "dpmpp_3m", "dpmpp_2m_sde", "unipc", "euler_maruyama"]
Spacing = Literal["time", "logsnr", "karras", "quadratic"]


@dataclass(frozen=True)
class Data:
    """Images and how they are read."""

    name: str = "digits"
    """A data set of tensorflow-datasets with the features image and label."""
    split: str = "train"
    image_shape: tuple[int, int, int] = (8, 8, 1)
    """Height, width, channels; smaller images are padded or resized to it."""
    fit: Literal["pad", "resize"] = "pad"
    flip: bool = False
    """Mirror half of the images."""
    batch_size: int = 128
    """Over all devices and processes."""


@dataclass(frozen=True)
class Model:
    """The UNet (see jaxdiff.models.unet), or the half of it that is a classifier (jaxdiff.models.classifier)."""

    channels: int = 128
    multipliers: tuple[int, ...] = (1, 2, 2, 2)
    """Width of each level; every level but the last halves the image."""
    blocks: int = 2
    attention: tuple[int, ...] = ()
    """Image sizes at which attention follows each residual block."""
    head_channels: int = 64
    num_classes: int = 10
    dropout: float = 0.0
    fourier: tuple[int, ...] = ()
    """Exponents n of inputs sin and cos of 2^n pi x, with which a UNet sees single pixel values: for likelihoods."""
    residual_resampling: bool = False
    """Change the size inside residual blocks; a classifier always does."""
    remat: bool = False
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the computation; parameters are float32."""


@dataclass(frozen=True)
class Diffusion:
    """Noise schedule, what the network predicts, and the weight of the loss."""

    schedule: Literal["cosine", "linear", "linear_logsnr", "learned", "karras", "lognormal", "rectified_flow"] = "cosine"
    """Levels that training draws from; learned: by a network of its own, for low variance of the elbo."""
    sampling_schedule: Literal["", "cosine", "linear", "linear_logsnr", "karras", "rectified_flow"] = ""
    """Levels that samplers walk along; empty: the training schedule."""
    prediction: Literal["x0", "noise", "score", "v", "velocity", "edm"] = "v"
    weight: Literal["x0", "noise", "score", "v", "velocity", "edm", "truncated_snr", "min_snr", "elbo"] = "v"
    """The weight of a prediction type is the plain error of that network output; elbo is maximum likelihood."""
    label_dropout: float = 0.1
    """Share of examples trained without their label, for classifier-free guidance."""


@dataclass(frozen=True)
class Autoencoder:
    """The code of a VAE and the law of its pixels; encoder and decoder take their sizes from the model."""

    latent_channels: int = 4
    """Of the code at each position; each of model.multipliers but the last halves the image."""
    pixels: Literal["logistic", "binary", "gaussian"] = "logistic"
    """logistic: 8-bit pixels; binary: black or white, cut at the middle; gaussian: a density."""
    std: float = 0.1
    """Of gaussian pixels."""
    beta: float = 1.0
    """Weight of the KL from the prior; 1 is maximum likelihood."""
    free_bits: float = 0.0
    """Nats of KL for each latent channel that cost nothing."""


@dataclass(frozen=True)
class Optimizer:
    """AdamW with warm-up, clipping and accumulation."""

    learning_rate: float = 2e-4
    schedule: Literal["constant", "cosine"] = "constant"
    """After the warm-up; cosine falls to 0 at the last step."""
    warmup_steps: int = 0
    b1: float = 0.9
    b2: float = 0.999
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    """Gradients are scaled down to this global norm; 0 is off."""
    accumulate: int = 1
    """Batches whose mean gradient makes one update."""


@dataclass(frozen=True)
class Mesh:
    """How many devices share what; -1 is all that the other leaves."""

    data: int = -1
    fsdp: int = 1
    mapping: Literal["jit", "pmap"] = "jit"
    """pmap: the replicated data-parallel twin."""


@dataclass(frozen=True)
class Sampling:
    """How pictures are made during and after training."""

    sampler: SamplerName = "ddim"
    """heun and euler_maruyama want a spacing of logsnr or karras."""
    steps: int = 50
    spacing: Spacing = "time"
    """What is uniform along the levels: the schedule's time, logsnr, (sigma / alpha)^(1/7), or the root of time."""
    eta: float = 0.0
    """Share of fresh noise in ddim; ddpm and dpmpp_2m_sde always have all of it."""
    guidance: float = 2.0
    """1 is none, 0 the unconditional model."""
    classifier: str = ""
    """The directory of a classifier's run, whose gradient guides the samples to their labels; empty: none."""
    classifier_scale: float = 1.0
    """Of that gradient."""
    clip: bool = True
    """Clip each predicted x0 to [-1, 1]."""
    num: int = 100
    every: int = 0
    """Steps between grids of samples during training; 0 is never."""


@dataclass(frozen=True)
class Evaluation:
    """What is measured at the end of a run."""

    num: int = 0
    """Samples to judge by a classifier trained on the real data; 0 is no evaluation."""
    epochs: int = 30
    """Of the classifier's training."""
    batch_size: int = 500


@dataclass(frozen=True)
class Experiment:
    """One recipe: everything that makes a run what it is."""

    objective: Literal["diffusion", "classifier", "vae"] = "diffusion"
    """What is trained: a diffusion network, a classifier of noised images, which reads the schedule alone of diffusion, or a
    variational autoencoder, which reads nothing of it."""
    data: Data = Data()
    model: Model = Model()
    diffusion: Diffusion = Diffusion()
    autoencoder: Autoencoder = Autoencoder()
    optimizer: Optimizer = Optimizer()
    ema: Mapping[str, float] = field(default_factory=lambda: {"ema": 0.999})
    """Name and decay of each average of the parameters; samples come from the first."""
    steps: int = 10_000
    seed: int = 0
    log_every: int = 50
    checkpoint_every: int = 500
    keep: int = 3
    """Checkpoints kept: the last ones."""
    mesh: Mesh = Mesh()
    sampling: Sampling = Sampling()
    evaluation: Evaluation = Evaluation()


POSITIVE = (
    *("steps", "log_every", "checkpoint_every", "keep", "data.batch_size", "optimizer.accumulate"),
    *("model.channels", "model.blocks", "model.head_channels", "model.num_classes"),
    "autoencoder.latent_channels",
    *("sampling.steps", "sampling.num", "evaluation.epochs", "evaluation.batch_size"),
)

# Schedules between which a network that does not scale its input may change: x has the same size at the same logsnr.
FAMILIES = {
    "cosine": "variance preserving",
    "linear": "variance preserving",
    "linear_logsnr": "variance preserving",
    "learned": "variance preserving",
    "karras": "variance exploding",
    "lognormal": "variance exploding",
    "rectified_flow": "straight",
}

# What may differ when a run is resumed: none of it changes what the steps already taken have computed.
RESUMABLE = ("steps", "log_every", "checkpoint_every", "keep", "mesh", "sampling", "evaluation")


def load(path: pathlib.Path) -> Experiment:
    """The `config` of a Python file.

    Raises:
        ConfigError: no such file, no `config` in it, or a key, type or value in it that is wrong.
    """
    if not pathlib.Path(path).is_file():
        near = difflib.get_close_matches(str(path), map(str, pathlib.Path(path).parent.glob("*.py")), n=1)
        raise ConfigError(f"no config file {path}" + (f"; did you mean {near[0]}?" if near else ""))
    try:
        config = runpy.run_path(str(path)).get("config")
    except Exception as error:  # the user's own code
        raise ConfigError(f"{path}: {type(error).__name__}: {_explain_unknown_field(str(error))}") from error
    if not isinstance(config, Experiment):
        raise ConfigError(f"{path}: must define config = jaxdiff.config.Experiment(...)")
    return validated(config, where=str(path))


def validated(config: Experiment, where: str = "config") -> Experiment:
    """The config itself, once all its types and values are found right.

    Raises:
        ConfigError: names the first field that is wrong.
    """
    for field_ in dataclasses.fields(config):
        kind = type(field_.default)
        if dataclasses.is_dataclass(kind) and type(getattr(config, field_.name)) is not kind:
            raise ConfigError(f"{where}: {field_.name} must be a {kind.__name__}(...), got {getattr(config, field_.name)!r}")
    return from_dict(to_dict(config), where)


def to_dict(config: Experiment) -> dict[str, Any]:
    """The config as JSON values."""
    return json.loads(json.dumps(dataclasses.asdict(config), default=str))


def from_dict(values: Mapping[str, Any], where: str = "config") -> Experiment:
    """The config of JSON values.

    Raises:
        ConfigError: names the first field that is unknown, of the wrong type or out of range.
    """
    known = _flat(to_dict(Experiment()))
    for name, value in _flat(values).items():
        if name not in known and name.split(".")[0] != "ema":
            raise ConfigError(f"{where}: unknown key {name}{_nearest(name, known)}")
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"{where}: {name} must be a finite number, got {value}")
    try:
        config = pydantic.TypeAdapter(Experiment).validate_json(json.dumps(values), strict=True)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        raise ConfigError(f"{where}: {name}: {first['msg']}, got {first['input']!r}") from error
    for name, rule, good in _rules(config):
        if not good:
            raise ConfigError(f"{where}: {name} must be {rule}, got {_flat(values).get(name, values.get(name))!r}")
    return config


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What differs between two configs as JSON values and must not when a run is resumed, one line a field."""
    before, after = _flat(old), _flat(new)
    names = [name for name in before | after if name.split(".")[0] not in RESUMABLE]
    return [f"{n} was {before.get(n)!r}, now {after.get(n)!r}" for n in names if before.get(n) != after.get(n)]


def _rules(config: Experiment) -> Iterator[tuple[str, str, bool]]:
    """Name, rule, and whether it holds, of every field whose type does not say enough."""
    c = config
    height, width, channels = c.data.image_shape
    factor = 2 ** (len(c.model.multipliers) - 1)
    levels = len(c.model.multipliers)
    halves = f"divisible by {factor}, as {levels} model.multipliers halve it {levels - 1} times"
    for name in POSITIVE:
        yield name, "at least 1", _value(c, name) >= 1
    for name in (
        "optimizer.warmup_steps",
        "optimizer.weight_decay",
        "optimizer.clip_norm",
        "sampling.every",
        "evaluation.num",
        "autoencoder.beta",
        "autoencoder.free_bits",
        "seed",
    ):
        yield name, "at least 0", _value(c, name) >= 0
    for name in ("diffusion.label_dropout", "sampling.eta"):
        yield name, "between 0 and 1", 0 <= _value(c, name) <= 1
    for name in ("model.dropout", "optimizer.b1", "optimizer.b2"):
        yield name, "at least 0 and below 1", 0 <= _value(c, name) < 1
    for name in ("optimizer.learning_rate", "autoencoder.std"):
        yield name, "above 0", _value(c, name) > 0
    yield "model.multipliers", "at least one number, each at least 1", bool(c.model.multipliers) and min(c.model.multipliers) > 0
    yield "data.image_shape", "three positive numbers", min(height, width, channels) > 0
    yield "data.image_shape", halves, height % factor == 0 and width % factor == 0
    yield "ema", "at least one name with a decay between 0 and 1", bool(c.ema) and all(0 <= d <= 1 for d in c.ema.values())
    yield "ema", "named in letters, digits, _ and - alone", all(re.fullmatch(r"[\w-]+", name) for name in c.ema)
    sizes = {height // 2**level for level in range(len(c.model.multipliers))}
    yield "model.attention", f"sizes that the network has: {sorted(sizes)}", set(c.model.attention) <= sizes
    yield "evaluation.num", "0 or at least 2", c.evaluation.num != 1
    yield "sampling.eta", "0 for a sampler that is not ddim", c.sampling.sampler == "ddim" or c.sampling.eta == 0
    named = bool(c.sampling.classifier)
    yield "sampling.classifier_scale", "1 unless sampling.classifier names a run", named or c.sampling.classifier_scale == 1
    of_run = f"0 for a {c.objective}, which draws no samples while it trains"
    yield "sampling.every", of_run, c.objective == "diffusion" or c.sampling.every == 0
    yield "evaluation.num", "0 for a vae, which has no labels", c.objective != "vae" or c.evaluation.num == 0
    learned = c.diffusion.schedule == "learned"
    yield "diffusion.weight", "elbo with a learned schedule, which lowers its variance", not learned or c.diffusion.weight == "elbo"
    yield "diffusion.schedule", "a fixed one for a classifier", not learned or c.objective == "diffusion"
    trained_only = c.diffusion.schedule == "lognormal" and not c.diffusion.sampling_schedule
    yield "diffusion.sampling_schedule", "set (to karras, say) when training draws lognormal levels", not trained_only
    families = {FAMILIES[name] for name in (c.diffusion.schedule, c.diffusion.sampling_schedule) if name}
    alike = f"of the family of {c.diffusion.schedule}, unless the prediction is edm: the network has not seen such inputs"
    yield "diffusion.sampling_schedule", alike, len(families) == 1 or c.diffusion.prediction == "edm"


def _value(config: Any, name: str) -> Any:
    for part in name.split("."):
        config = getattr(config, part)
    return config


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return flat


def _nearest(name: str, known: Mapping[str, Any]) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean {near[0]}?" if near else ""


def _explain_unknown_field(message: str) -> str:
    """`Data.__init__() got an unexpected keyword argument 'batchsize'`, with the nearest right one."""
    found = re.match(r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'", message)
    owner = globals().get(found[1]) if found else None
    if not found or not dataclasses.is_dataclass(owner):
        return message
    known = {f.name: None for f in dataclasses.fields(owner)}
    return f"unknown key {found[2]} in {found[1]}{_nearest(found[2], known)}"
