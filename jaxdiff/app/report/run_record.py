"""What a run's directory holds, read as it is found: of an unfinished run, or one of an older version, less."""

from __future__ import annotations

import ast
import json
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

from jaxdiff.app.config import Experiment, differences, load, to_dict
from jaxdiff.app.runs import storage
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


def read_runs(workdirs: Sequence[pathlib.Path]) -> list[RunRecord]:
    """The records of runs, named by their directories; by their whole paths where two directories have one name.

    Raises:
        ConfigError: a directory holds no run, or one is given twice.
    """
    for number, workdir in enumerate(workdirs):
        if workdir.resolve() in [other.resolve() for other in workdirs[:number]]:
            raise ConfigError(f"{workdir} is given twice; name each run once")
    names = [workdir.resolve().name for workdir in workdirs]
    return [
        _record(str(workdir) if names.count(name) > 1 else name, workdir) for name, workdir in zip(names, workdirs, strict=True)
    ]


def _record(name: str, workdir: pathlib.Path) -> RunRecord:
    config, steps = storage.read_config(workdir), checkpoint.steps(workdir)
    return RunRecord(name, workdir, config, _about(workdir, config), steps[-1] if steps else 0, _metrics(workdir / "metrics.jsonl"))


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """The object of a JSON file; none where the file is missing, damaged, or holds another thing."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _metrics(path: pathlib.Path) -> list[dict[str, float]]:
    """The lines of metrics.jsonl but one that was cut off by force."""
    rows = []
    for line in path.read_text().splitlines() if path.is_file() else []:
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return [row for row in rows if isinstance(row, dict) and "step" in row]


def _about(workdir: pathlib.Path, config: Experiment) -> str:
    """The first line of the recipe that is named as the run and would make it, in `configs` here or beside the package."""
    package = pathlib.Path(__file__).parents[2]
    for path in (folder / "configs" / f"{workdir.resolve().name}.py" for folder in (pathlib.Path(), package)):
        try:
            if path.is_file() and not differences(to_dict(load(path)), to_dict(config)):
                return (ast.get_docstring(ast.parse(path.read_text())) or "").partition("\n")[0]
        except UserError:
            continue
    return ""
