"""Configs from files and JSON, with every type and value checked."""

from __future__ import annotations

import dataclasses
import difflib
import json
import pathlib
import re
import runpy
from collections.abc import Iterator, Mapping
from typing import Any

import pydantic

from jaxdiff.app.config import distillation, fields, ladder_fields
from jaxdiff.app.config.fields import Experiment
from jaxdiff.app.config.ladder_fields import Ladder
from jaxdiff.io.errors import ConfigError, first_line, user_code_error

LARGEST = 3.4e38  # of float32
POSITIVE = (
    *("steps", "log_every", "checkpoint_every", "keep", "steps_per_call", "data.batch_size", "optimizer.accumulate"),
    *("model.channels", "model.blocks", "model.head_channels"),
    *("vae.latent_channels", "autoencoder.latent_channels", "autoencoder.discriminator_channels"),
    *("autoencoder.discriminator_layers", "autoencoder.measured", "cascade.factor", "data.reduce"),
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

# Fields and groups that may differ when a run resumes: no loss reads them, or (mesh, remat, steps_per_call) they move the same
# computation. With dropout the mesh decides which masks are drawn. Sources are compared by the fingerprints of their params.
RESUMABLE = (
    *("steps", "steps_per_call", "log_every", "checkpoint_every", "keep", "mesh", "sampling", "evaluation", "sources"),
    *("data.held_out", "model.remat", "cascade.augmentation"),
)


def load(path: pathlib.Path) -> Experiment:
    """The `config` of a Python file.

    Raises:
        ConfigError: no such file, no `config` in it, or a key, type or value in it that is wrong.
    """
    found = _names(path)
    if isinstance(found.get("ladder"), Ladder):
        raise ConfigError(f"{path} is a ladder of several recipes; climb it: jaxdiff ladder {path}")
    config = found.get("config")
    if not isinstance(config, Experiment):
        raise ConfigError(f"{path}: must define config = jaxdiff.app.config.Experiment(...)")
    return validated(config, where=str(path))


def load_ladder(path: pathlib.Path) -> Ladder:
    """The `ladder` of a Python file.

    Raises:
        ConfigError: no such file, no `ladder` in it, or a key, type or value in it that is wrong.
    """
    names = _names(path)
    found = names.get("ladder")
    if isinstance(names.get("config"), Experiment):
        raise ConfigError(f"{path} is a recipe and no ladder of several; train it: jaxdiff train {path}")
    if not isinstance(found, Ladder):
        raise ConfigError(f"{path}: must define ladder = jaxdiff.app.config.Ladder(students=(...))")
    values = json.loads(json.dumps(dataclasses.asdict(found), default=str))
    found = _of_type(Ladder, values, str(path))
    for name, rule, good in ladder_fields.rules(found):
        if not good:
            raise ConfigError(f"{path}: {name} must be {rule}, got {values[name]!r}")
    return found


def _names(path: pathlib.Path) -> dict[str, Any]:
    """What a Python file defines."""
    if not pathlib.Path(path).is_file():
        there = [str(each) for each in pathlib.Path(path).parent.glob("*.py") if each.is_file()]
        near = difflib.get_close_matches(str(path), there, n=1)
        hint = f"did you mean {near[0]}?" if near else "write the path of a recipe, such as configs/digits.py"
        raise ConfigError(f"no config file {path}; {hint}")
    try:
        return runpy.run_path(str(path))
    except (Exception, SystemExit) as error:  # the user's own code
        raise user_code_error(str(path), path, error, _explain_unknown_field(first_line(error))) from error


def _of_type(kind: Any, values: Mapping[str, Any], where: str) -> Any:
    """The dataclass of JSON values, once their types are found right."""
    try:
        return pydantic.TypeAdapter(kind).validate_json(json.dumps(values), strict=True)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        raise ConfigError(f"{where}: {name}: {first['msg']}, got {first['input']!r}") from error


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
    known = flatten(to_dict(Experiment()))
    for name, value in flatten(values).items():
        if name not in known and name.split(".")[0] != "ema":
            raise ConfigError(f"{where}: unknown key {name}{_nearest(name, known)}")
        if isinstance(value, float) and not abs(value) <= LARGEST:
            raise ConfigError(f"{where}: {name} must be a finite number, got {value}")
    config = _of_type(Experiment, values, where)
    for name, rule, good in _rules(config):
        if not good:
            raise ConfigError(f"{where}: {name} must be {rule}, got {flatten(values).get(name, values.get(name))!r}")
    return config


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What differs between two configs as JSON values and must not when a run is resumed, one line a field."""
    before, after = flatten(old), flatten(new)
    names = [name for name in before | after if not is_resumable(name)]
    names += ["steps"] * (old.get("objective") == "progressive")  # which say when its rounds end
    return [f"{n} was {before.get(n)!r}, now {after.get(n)!r}" for n in names if before.get(n) != after.get(n)]


def is_resumable(name: str) -> bool:
    """Whether a field, such as `model.remat`, may differ when a run resumes."""
    return name in RESUMABLE or name.split(".")[0] in RESUMABLE


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
        *("vae.beta", "vae.free_bits"),
        *("model.heads", "model.transformer", "model.context_channels", "model.num_classes"),
        *("autoencoder.kl", "autoencoder.codebook", "autoencoder.commitment", "autoencoder.perceptual"),
        *("autoencoder.adversarial", "autoencoder.adversarial_start"),
        "seed",
    ):
        yield name, "at least 0", _value(c, name) >= 0
    for name in ("diffusion.label_dropout", "sampling.eta", "cascade.augmentation", "cascade.max_augmentation"):
        yield name, "between 0 and 1", 0 <= _value(c, name) <= 1
    for name in ("model.dropout", "optimizer.b1", "optimizer.b2"):
        yield name, "at least 0 and below 1", 0 <= _value(c, name) < 1
    yield "seed", "below 2^32", c.seed < 2**32
    for name in ("optimizer.learning_rate", "vae.std"):
        yield name, "above 0", _value(c, name) > 0
    yield "model.multipliers", "at least one number, each at least 1", bool(c.model.multipliers) and min(c.model.multipliers) > 0
    yield "data.image_shape", "three positive numbers", min(height, width, channels) > 0
    on_pixels = not c.sources.autoencoder  # else the latents' sizes count, which the autoencoder's run says
    yield "data.image_shape", halves, not on_pixels or (height % factor == 0 and width % factor == 0)
    yield "ema", "at least one name with a decay between 0 and 1", bool(c.ema) and all(0 <= d <= 1 for d in c.ema.values())
    yield "ema", "named in letters, digits, _ and - alone", all(re.fullmatch(r"[\w-]+", name) for name in c.ema)
    sizes = {height // 2**level for level in range(len(c.model.multipliers))}
    yield "model.attention", f"sizes that the network has: {sorted(sizes)}", not on_pixels or set(c.model.attention) <= sizes
    yield "evaluation.num", "0 or at least 10", c.evaluation.num == 0 or c.evaluation.num >= 10
    yield "sampling.eta", "0 for a sampler that is not ddim", c.sampling.sampler == "ddim" or c.sampling.eta == 0
    named = bool(c.sampling.classifier)
    yield "sampling.classifier_scale", "1 unless sampling.classifier names a run", named or c.sampling.classifier_scale == 1
    of_run = f"0 for {with_article(c.objective)}, which draws no samples while it trains"
    denoises = c.objective in distillation.DENOISERS
    yield "sampling.every", of_run, denoises or c.sampling.every == 0
    only = [(f"model.{name}", distillation.DENOISERS) for name in ("fourier", "heads", "transformer", "context_channels")]
    for name, where in (("model.dropout", (*distillation.DENOISERS, "classifier")), *only):
        yield name, f"not set for {with_article(c.objective)}, whose network has none", c.objective in where or not _value(c, name)
    yield "sampling.classifier", "empty for all but denoisers", denoises or not c.sampling.classifier
    coded = c.objective in ("vae", "autoencoder")
    yield "evaluation.num", f"0 for {with_article(c.objective)}, which has no labels", not coded or c.evaluation.num == 0
    yield from _steps_per_call_rules(c)
    yield from _source_rules(c)
    yield from distillation.rules(c)
    learned = c.diffusion.schedule == "learned"
    yield "diffusion.schedule", f"a fixed one for {with_article(c.objective)}", not learned or c.objective == "diffusion"
    yield "diffusion.weight", "elbo with a learned schedule, which lowers its variance", not learned or c.diffusion.weight == "elbo"
    short = c.diffusion.schedule in ("learned", "linear_logsnr")
    same = c.diffusion.sampling_schedule in ("", "linear_logsnr")
    yield "diffusion.sampling_schedule", "empty or linear_logsnr: training saw no levels beyond its ends", not short or same
    trained_only = c.diffusion.schedule == "lognormal" and not c.diffusion.sampling_schedule
    yield "diffusion.sampling_schedule", "set (to karras, say) when training draws lognormal levels", not trained_only
    families = {FAMILIES[name] for name in (c.diffusion.schedule, c.diffusion.sampling_schedule) if name}
    alike = f"of the family of {c.diffusion.schedule}, unless the prediction is edm: the network has not seen such inputs"
    yield "diffusion.sampling_schedule", alike, len(families) == 1 or c.diffusion.prediction == "edm"


def _steps_per_call_rules(c: Experiment) -> Iterator[tuple[str, str, bool]]:
    """Those of steps that are done together: nothing may happen between them."""
    yield "steps_per_call", "1 under pmap", c.steps_per_call == 1 or c.mesh.mapping == "jit"
    between = {"steps": c.steps, "log_every": c.log_every, "checkpoint_every": c.checkpoint_every}
    between |= {"sampling.every": c.sampling.every, "steps of a round": distillation.round_steps(c)}
    for name, every in between.items():
        yield "steps_per_call", f"a divisor of {name}, {every}", c.steps_per_call < 1 or every % c.steps_per_call == 0


def _source_rules(c: Experiment) -> Iterator[tuple[str, str, bool]]:
    """Those of runs that a run starts from."""
    diffusion, compresses = c.objective in distillation.DENOISERS, c.objective == "autoencoder"
    height, width, _ = c.data.image_shape
    for name in ("autoencoder", "base"):
        yield f"sources.{name}", f"empty for {with_article(c.objective)}", diffusion or not _value(c, f"sources.{name}")
    yield "sources.features", f"empty for {with_article(c.objective)}", compresses or not c.sources.features
    wants = c.autoencoder.perceptual > 0
    yield (
        "sources.features",
        "given with autoencoder.perceptual, and only with it",
        not compresses or wants == bool(c.sources.features),
    )
    together = c.mesh.mapping == "jit" and c.optimizer.accumulate == 1
    yield (
        "autoencoder.codebook",
        "0 under pmap or accumulation, which would average revived codes",
        together or not c.autoencoder.codebook,
    )
    latent, enlarges = bool(c.sources.autoencoder), c.cascade.factor > 1
    yield "sampling.clip", "False in latent space, whose values have no bounds", not latent or not c.sampling.clip
    yield "sources.autoencoder", "empty in a cascade: its models work on pixels", not (latent and enlarges)
    yield "sampling.classifier", "empty in latent space", not (latent and c.sampling.classifier)
    yield "data.latents", "empty without sources.autoencoder, whose latents it holds", latent or not c.data.latents
    yield "sources.base", "given with cascade.factor above 1, and only with it", enlarges == bool(c.sources.base)
    fits = height % c.cascade.factor == 0 and width % c.cascade.factor == 0
    yield "diffusion.schedule", "a fixed one in a cascade", not (enlarges and c.diffusion.schedule == "learned")
    yield "data.image_shape", f"divisible by cascade.factor {c.cascade.factor}", fits
    below = c.cascade.augmentation <= c.cascade.max_augmentation
    yield "cascade.augmentation", "at most cascade.max_augmentation, which training has seen", below
    attends = bool(c.model.context_channels)
    yield "sampling.every", "0 with context vectors, which the data set brings", not attends or not c.sampling.every
    yield "data.latents", "empty with model.context_channels: a cache keeps no context", not attends or not c.data.latents
    yield "model.num_classes", "at least 1 for a classifier", c.objective != "classifier" or c.model.num_classes > 0
    yield (
        "evaluation.num",
        "0 with model.num_classes 0: there are no labels to judge by",
        c.model.num_classes > 0 or c.evaluation.num == 0,
    )
    late = c.autoencoder.adversarial and c.autoencoder.adversarial_start >= c.steps and compresses
    yield "autoencoder.adversarial_start", f"below steps, {c.steps}, or the discriminator never begins", not late
    seen = not c.sources.features.endswith(".npz") or (min(height, width) >= 16 and c.data.image_shape[2] in (1, 3))
    yield "data.image_shape", "of 1 or 3 channels and at least 16 pixels for features of VGG16", seen
    needs = "0 without model.transformer blocks to attend to them"
    yield "model.context_channels", needs, not attends or bool(c.model.transformer)


def with_article(objective: str) -> str:
    """The objective after its article."""
    return f"an {objective}" if objective[0] in "aeiou" else f"a {objective}"


def _value(config: Any, name: str) -> Any:
    for part in name.split("."):
        config = getattr(config, part)
    return config


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The values by dotted name, such as `model.channels`."""
    flat = {}
    for name, value in values.items():
        flat |= flatten(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return flat


def _nearest(name: str, known: Mapping[str, Any]) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean {near[0]}?" if near else ""


def _explain_unknown_field(message: str) -> str:
    """`Data.__init__() got an unexpected keyword argument 'batchsize'`, with the nearest right one."""
    found = re.match(r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'", message)
    owner = getattr(fields, found[1], None) if found else None
    if not found or not dataclasses.is_dataclass(owner):
        return message
    known = {f.name: None for f in dataclasses.fields(owner)}
    return f"unknown key {found[2]} in {found[1]}{_nearest(found[2], known)}"
