"""What the directories of runs hold, and their configs as tables; an unfinished run, or a damaged file, gives less."""

import contextlib
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jaxdiff.app.config import Experiment, differences, load, to_dict
from jaxdiff.app.runs import storage
from jaxdiff.io import files, paths, recipes
from jaxdiff.io.errors import ConfigError, UserError
from jaxdiff.training import checkpoint


class RunRecord(NamedTuple):
    """A run: its name on the page, its config, the first line of its recipe (empty if unknown), its newest step, its metrics."""

    name: str
    workdir: pathlib.Path
    config: Experiment
    about: str
    step: int
    metrics: list[dict[str, float]]


class Setting(NamedTuple):
    """A field of the config: its value in each run, and its default."""

    name: str
    values: list[str]
    default: str

    @property
    def set(self) -> list[bool]:
        """Which runs have another value than the default."""
        return [value != self.default for value in self.values]


def read_runs(workdirs: Sequence[pathlib.Path]) -> list[RunRecord]:
    """The records of runs, each given once, named by their directories; by whole paths where two directories have one name."""
    resolved = [paths.resolved(workdir) for workdir in workdirs]
    records = []
    for number, (workdir, path) in enumerate(zip(workdirs, resolved, strict=True)):
        if path in resolved[:number]:
            raise ConfigError(f"{workdir} is given twice; name each run once")
        name = path.name if [each.name for each in resolved].count(path.name) == 1 else str(workdir)
        config, steps = storage.read_config(workdir), checkpoint.steps(workdir)
        metrics = workdir / "metrics.jsonl"
        rows = [files.parse_json(line) for line in metrics.read_text().splitlines()] if metrics.is_file() else []
        rows = [row for row in rows if "step" in row]  # the last line may be cut off
        records.append(RunRecord(name, workdir, config, _about(path.name, config), steps[-1] if steps else 0, rows))
    return records


def settings(records: Sequence[RunRecord]) -> dict[str, dict[str, list[Setting]]]:
    """Settings by part of the config: those that `differ` between runs, those that all `set` alike, those left at `default`."""
    configs, default = [_parts(record.config) for record in records], _parts(Experiment())
    tables: dict[str, dict[str, list[Setting]]] = {"differ": {}, "set": {}, "default": {}}
    for part in default:
        for name in dict.fromkeys(name for config in (default, *configs) for name in config[part]):
            values = [format_value(config[part].get(name)) for config in configs]
            setting = Setting(name, values, format_value(default[part].get(name)))
            kind = "differ" if len(set(values)) > 1 else "set" if setting.set[0] else "default"
            tables[kind].setdefault(part, []).append(setting)
    return tables


def format_value(value: Any) -> str:
    """A value as a person would write it."""
    if value is None or value in ("", [], {}):
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(map(format_value, value))
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {format_value(each)}" for name, each in value.items())
    return f"{value:,}" if isinstance(value, int) else f"{value:g}" if isinstance(value, float) else str(value)


def _parts(config: Experiment) -> dict[str, dict[str, Any]]:
    """The fields by their part; those of the config itself, and its EMAs, are of the part `run`."""
    values = to_dict(config)
    own = {name: value for name, value in values.items() if not isinstance(value, Mapping) or name == "ema"}
    return {"run": own, **{name: dict(value) for name, value in values.items() if name not in own}}


def _about(name: str, config: Experiment) -> str:
    """The first line of the recipe of that name which would make the config, in `configs` here or of the library."""
    with contextlib.suppress(UserError):
        path = recipes.find(f"configs/{name}.py")
        if not differences(to_dict(load(path)), to_dict(config)):
            return recipes.docstring(path).partition("\n")[0]
    return ""
