"""The config of runs as tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jaxdiff.app.config import Experiment, to_dict
from jaxdiff.app.report.run_record import RunRecord


class Setting(NamedTuple):
    """A field: its values in the runs, the value it has unless set, and what differs from it."""

    name: str
    values: list[str]
    default: str

    @property
    def set(self) -> list[bool]:
        """Which runs have another value than the default."""
        return [value != self.default for value in self.values]

    @property
    def differs(self) -> bool:
        """Whether the runs differ."""
        return len(set(self.values)) > 1


def groups(records: Sequence[RunRecord]) -> dict[str, list[Setting]]:
    """The settings of all runs, by the part of the config that holds them."""
    configs, default = [_parts(to_dict(record.config)) for record in records], _parts(to_dict(Experiment()))
    return {
        part: [
            Setting(name, [format_value(config[part].get(name)) for config in configs], format_value(default[part].get(name)))
            for name in dict.fromkeys(name for config in (default, *configs) for name in config[part])
        ]
        for part in default
    }


def select(found: Mapping[str, list[Setting]], which: str) -> dict[str, list[Setting]]:
    """Of the groups those settings that `differ` between runs, that are `set` alike in all, or that are left at their `default`."""
    kinds = {
        "differ": lambda setting: setting.differs,
        "set": lambda setting: not setting.differs and setting.set[0],
        "default": lambda setting: not setting.differs and not setting.set[0],
    }
    kept = {part: [setting for setting in settings if kinds[which](setting)] for part, settings in found.items()}
    return {part: settings for part, settings in kept.items() if settings}


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


def _parts(config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The fields by their part; those of the config itself, and its averages, are of the part `run`."""
    own = {name: value for name, value in config.items() if not isinstance(value, Mapping) or name == "ema"}
    return {"run": own, **{name: dict(value) for name, value in config.items() if name not in own}}
