"""Whether the runs that a config names as its sources fit it."""

from collections.abc import Iterator
from dataclasses import fields, replace
from operator import attrgetter

import numpy as np

from jaxdiff.app.build.networks import codec
from jaxdiff.app.build.students import sampling_levels, sampling_schedule
from jaxdiff.app.build.tables import SCHEDULES
from jaxdiff.app.config import FAMILIES, Experiment, Model, Published, Text
from jaxdiff.io import count
from jaxdiff.io.errors import ConfigError

Faults = Iterator[tuple[object, str]]  # whether there is one, and what to say about it

ROUNDING = 0.1  # of a schedule's logsnr at its ends, in float32
UNREAD = ("dropout", "remat", "dtype")  # fields of the model that may differ between networks of the same params
NETWORK = [f"model.{field.name}" for field in fields(Model) if field.name not in UNREAD]
NETWORK += [f"published.{field.name}" for field in fields(Published) if field.name != "repository"]
NETWORK += [f"text.{field.name}" for field in fields(Text)]
SAME = {  # fields of a source that must be the config's own, by place
    "base": ["data.image_shape", "model.num_classes", "model.context_channels", "sources.autoencoder"],
    "classifier": ["data.image_shape", "model.num_classes"],
    "features": ["data.image_shape"],
    "init": [*NETWORK, "diffusion.prediction", "betas"],
    "teacher": [*NETWORK, "diffusion.prediction", "betas", "data.image_shape"],
}


def check_source(place: str, config: Experiment, source: Experiment, where: str) -> None:
    """Checks that the config `source`, of the run `where`, can be at that place of the config's sources."""
    its = f"the {place} {where}"
    if place == "base":
        height, width, channels = config.data.image_shape
        smaller = (height // config.cascade.factor, width // config.cascade.factor, channels)
        config = replace(config, data=replace(config.data, image_shape=smaller))
    for name in SAME.get(place, ()):
        wanted, given = (attrgetter(name)(each) for each in (config, source))
        if wanted != given:
            hint = f"change it here, or train one with {wanted!r}"
            raise ConfigError(f"{its} has {name} {given!r}, this run needs {wanted!r}; {hint}")
    for fault, message in FAULTS[place](config, source, its) if place in FAULTS else ():
        if fault:
            raise ConfigError(message)


def _of_autoencoder(config: Experiment, source: Experiment, its: str) -> Faults:
    (height, width, channels), known = config.data.image_shape, source.data.image_shape[-1]
    yield channels != known, f"data.image_shape has {count(channels, 'channel')}, {its} {known}; set the same"
    dit = config.model.network == "dit"
    factor, halvings = codec(source).factor, 0 if dit else len(config.model.multipliers) - 1
    hint, patch = f"choose sizes divisible by {factor}", config.dit.patch if dit else 1
    yield height % factor or width % factor, f"data.image_shape {height}x{width} cannot be halved by {its}; {hint}"
    height, width = height // factor, width // factor
    uncut = f"latents of {height}x{width} (of {its}) cannot be cut into patches; set dit.patch to a divisor"
    yield height % patch or width % patch, uncut
    uneven = f"latents of {height}x{width} (of {its}) cannot be halved {count(halvings, 'time')}; choose fewer model.multipliers"
    yield height % 2**halvings or width % 2**halvings, uneven
    sizes = sorted({height // 2**level for level in range(halvings + 1)})
    unknown = not set(config.model.attention) <= set(sizes)
    yield unknown, f"model.attention must be sizes that the network has on latents of {its}: {sizes}"


def _of_classifier(config: Experiment, source: Experiment, its: str) -> Faults:
    ends = np.array([1.0, 0.0], np.float32)
    learned = config.diffusion.schedule == "learned"  # where it goes between its ends is in the params
    logsnr = np.asarray((sampling_schedule(config)(ends) if learned else sampling_levels(config)[:-1]).logsnr)
    first, last = np.asarray(SCHEDULES[source.diffusion.schedule](source.betas)(ends).logsnr)
    known = f"{its} knows logsnr {first:.1f} to {last:.1f} (schedule {source.diffusion.schedule})"
    passed = f"the samples pass through {logsnr.min():.1f} to {logsnr.max():.1f}; train it on their schedule"
    yield logsnr.min() < first - ROUNDING or logsnr.max() > last + ROUNDING, f"{known}, {passed}"


def _of_teacher(config: Experiment, source: Experiment, its: str) -> Faults:
    kind, d, mine = source.objective, source.distillation, config.distillation.guidance
    plain = kind not in ("diffusion", "guided")
    yield plain, f"{its} is a {kind} student, no teacher; name what it was distilled from"
    own, family = (FAMILIES[each.diffusion.schedule] for each in (config, source))
    levels = f"{its} was trained on {family} levels, the student's are {own}; use its schedule"
    yield own != family and config.diffusion.prediction != "edm", levels
    space = "latents" if source.sources.autoencoder else "pixels"
    other = bool(config.sources.autoencoder) != bool(source.sources.autoencoder)
    yield other, f"{its} works in {space}; so must the student (sources.autoencoder)"
    more = source.diffusion.schedule == "learned" or d.lora_rank or source.cascade.factor > 1
    yield more, f"{its} has a learned schedule, adapters or a base; name a run without"
    low, high = d.guidance if kind == "guided" else (1.0, 1.0)
    outside = kind == "guided" and not low <= mine[0] <= mine[1] <= high
    yield outside, f"distillation.guidance {mine} must lie within {low:g} and {high:g}, those of {its}"
    adapted = low != high and config.distillation.lora_rank
    yield adapted, f"distillation.lora_rank must be 0: guidance is an input of {its}; adapt what it was distilled from"
    unguided = kind == "diffusion" and mine != (1.0, 1.0) and not source.diffusion.label_dropout
    yield unguided, f"distillation.guidance must be 1 1: {its} was trained without null labels (diffusion.label_dropout 0)"
    hint = "" if kind == "guided" else "; distil the guidance first (objective guided)"
    unlike = f"distillation.guidance of a progressive student must be its teacher's ({its}), {(low, high)}, got {mine}{hint}"
    yield config.objective == "progressive" and mine != (low, high), unlike


def _of_init(config: Experiment, source: Experiment, its: str) -> Faults:
    other = bool(config.sources.autoencoder) != bool(source.sources.autoencoder)
    yield other, f"{its} works in {'latents' if source.sources.autoencoder else 'pixels'}; so must this run (sources.autoencoder)"
    more = source.diffusion.schedule == "learned" or source.distillation.lora_rank
    yield more, f"{its} has a learned schedule or adapters; name a run without"


FAULTS = {"autoencoder": _of_autoencoder, "classifier": _of_classifier, "teacher": _of_teacher, "init": _of_init}
