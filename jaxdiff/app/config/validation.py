"""Configs from files and JSON, with every type and value checked."""

import dataclasses
import functools
import json
import pathlib
import re
import runpy
from collections.abc import Callable, Mapping
from typing import Any

import pydantic

from jaxdiff.app.config import fields
from jaxdiff.app.config.distillation import SELF_TAUGHT, Ladder
from jaxdiff.app.config.fields import Experiment
from jaxdiff.app.config.rules import Rules, ladder_rules, rules
from jaxdiff.io import paths, recipes
from jaxdiff.io.errors import ConfigError, did_you_mean, user_code

RUN = "config.json"  # in a run's directory
LARGEST = 3.4e38  # of float32
KINDS = {  # what a file can define, and what to do with that
    "config": (Experiment, "a recipe and no ladder of several; train it: jaxdiff train"),
    "ladder": (Ladder, "a ladder of several recipes; climb it: jaxdiff ladder"),
}
BOUNDS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
# Fields and groups that may differ when a run resumes: no loss reads them, or (mesh, remat, steps_per_call) they move the same
# computation. With dropout the mesh decides which masks are drawn. Sources are compared by the fingerprints of their params.
RESUMABLE = (
    *(
        "steps",
        "steps_per_call",
        "log_every",
        "checkpoint_every",
        "snapshot_every",
        "keep",
        "mesh",
        "sampling",
        "evaluation",
        "sources",
    ),
    *("data.held_out", "data.workers", "model.remat", "cascade.augmentation"),
)


def load(path: pathlib.Path) -> Experiment:
    """The `config` of a recipe: a Python file, or a name of the library's; of a run's directory, `of_run`.

    A ConfigError says which key, type or value is wrong.
    """
    if (paths.path(path) / RUN).is_file():
        return of_run(path)
    return validated(_defined(path, "config", "Experiment(...)"), where=str(path))


def of_run(workdir: pathlib.Path | str) -> Experiment:
    """The config of another training that starts from a run: the run's own, and its params (sources.init).

    These only of diffusion and of consistency training, with a fixed schedule and without adapters.
    A recipe may change it by `dataclasses.replace`.
    """
    config = read(paths.path(workdir))
    d = config.distillation
    alone = config.objective == "diffusion" or (config.objective in SELF_TAUGHT and d.target == "data")
    if not alone or config.diffusion.schedule == "learned" or d.lora_rank:
        return config
    return dataclasses.replace(config, sources=dataclasses.replace(config.sources, init=str(workdir)))


def read(workdir: pathlib.Path) -> Experiment:
    """The config of a run, as its directory has it; a ConfigError where there is none."""
    path = paths.path(workdir) / RUN
    if not path.is_file():
        raise ConfigError(f"no run in {workdir}; train one: jaxdiff train CONFIG --workdir {workdir}")
    try:
        values = json.loads(path.read_text())
    except ValueError as error:
        raise ConfigError(f"{path} is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path} must hold a config")
    return from_dict(values, where=str(path))


def load_ladder(path: pathlib.Path) -> Ladder:
    """The `ladder` of a Python file; raises as `load`."""
    return _checked(Ladder, ladder_rules, to_dict(_defined(path, "ladder", "Ladder(students=(...))")), str(path))


def _defined(path: pathlib.Path, name: str, example: str) -> Any:
    """What a recipe defines by that name: a config, or a ladder."""
    file = recipes.find(path)
    with user_code(str(path), file, _explain_unknown_field):
        contents = runpy.run_path(str(file))
    for other, (kind, hint) in KINDS.items():
        if other != name and isinstance(contents.get(other), kind):
            raise ConfigError(f"{path} is {hint} {path}")
    if not isinstance(contents.get(name), KINDS[name][0]):
        raise ConfigError(f"{path}: must define {name} = jaxdiff.app.config.{example}")
    return contents[name]


_validator = functools.cache(pydantic.TypeAdapter)  # of a kind of dataclass, which takes tens of milliseconds to make


def _checked(kind: Any, rules: Callable[[Any], Rules], values: Mapping[str, Any], where: str) -> Any:
    """The dataclass of JSON values, once types, bounds and rules are checked."""
    try:
        config = _validator(kind).validate_json(json.dumps(values), strict=True)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        broken = [f" must be {BOUNDS[key]} {value:g}" for key, value in first.get("ctx", {}).items() if key in BOUNDS]
        rule = broken[0] if broken else f": {first['msg']}"
        raise ConfigError(f"{where}: {name}{rule}, got {first['input']!r}") from error
    for name, rule, holds in rules(config):
        if not holds:
            raise ConfigError(f"{where}: {name} must be {rule}, got {flatten(values).get(name, values.get(name))!r}")
    return config


def validated(config: Experiment, where: str = "config") -> Experiment:
    """The config itself, once all its types and values are checked; a ConfigError names the first field that is wrong."""
    for field_ in dataclasses.fields(config):
        kind = type(field_.default)
        if dataclasses.is_dataclass(kind) and type(getattr(config, field_.name)) is not kind:
            raise ConfigError(f"{where}: {field_.name} must be a {kind.__name__}(...), got {getattr(config, field_.name)!r}")
    return from_dict(to_dict(config), where)


def to_dict(config: Experiment | Ladder) -> dict[str, Any]:
    """The config as JSON values."""
    return json.loads(json.dumps(dataclasses.asdict(config), default=str))


def from_dict(values: Mapping[str, Any], where: str = "config") -> Experiment:
    """The config of JSON values; a ConfigError names the first field that is unknown, of the wrong type or out of range."""
    known = flatten(to_dict(Experiment()))
    for name, value in flatten(values).items():
        if name not in known and name.split(".")[0] != "ema":
            raise ConfigError(f"{where}: unknown key {name}{did_you_mean(name, known, cutoff=0.5)}")
        if isinstance(value, float) and not abs(value) <= LARGEST:
            raise ConfigError(f"{where}: {name} must be a finite number, got {value}")
    return _checked(Experiment, rules, values, where)


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What differs between two configs as JSON values and must not when a run is resumed, one line a field."""
    before, after = flatten(old), flatten(new)
    names = [name for name in before | after if not is_resumable(name)]
    names += ["steps"] * (old.get("objective") == "progressive")  # which say when its rounds end
    return [f"{n} was {before.get(n)!r}, now {after.get(n)!r}" for n in names if before.get(n) != after.get(n)]


def is_resumable(name: str) -> bool:
    """Whether a field, such as `model.remat`, may differ when a run resumes."""
    return name in RESUMABLE or name.split(".")[0] in RESUMABLE


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The values by dotted name, such as `model.channels`."""
    flat = {}
    for name, value in values.items():
        flat |= flatten(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return flat


def _explain_unknown_field(message: str) -> str:
    """`Data.__init__() got an unexpected keyword argument 'batchsize'`, with the nearest right one."""
    words = re.match(r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'", message)
    if not words or not dataclasses.is_dataclass(owner := getattr(fields, words[1], None)):
        return message
    hint = did_you_mean(words[2], [field.name for field in dataclasses.fields(owner)], cutoff=0.5)
    return f"unknown key {words[2]} in {words[1]}{hint}"
