"""The recipes that come with the library: where their files are, what their docstrings say in short, and copies to change."""

from __future__ import annotations

import ast
import pathlib
import re

from jaxdiff.io import files
from jaxdiff.io.errors import ConfigError, did_you_mean


def bundled() -> dict[str, pathlib.Path]:
    """The files of the library's recipes by name: in the package as a wheel installs it, else beside it in the repository."""
    package = pathlib.Path(__file__).parents[1]
    inside = package / "configs"
    folder = inside if inside.is_dir() else package.parent / "configs"
    return {path.stem: path for path in sorted(folder.glob("*.py"))}


def find(name: str | pathlib.Path) -> pathlib.Path:
    """The file of a recipe: the path `name`, with or without .py, or else that of the library.

    The library knows `digits`, and `configs/digits.py`, as recipes name those that they start from.

    Raises:
        ConfigError: there is neither.
    """
    path, known = pathlib.Path(name), bundled()
    here = [each for each in (path, pathlib.Path(f"{path}.py")) if each.is_file()]
    if here:
        return here[0]
    if str(path) in (path.stem, f"configs/{path.stem}.py") and path.stem in known:
        return known[path.stem]
    near = did_you_mean(str(path), [str(each) for each in path.parent.glob("*.py") if each.is_file()])
    hint = near or did_you_mean(path.stem, known, "write the path of a recipe, or a name")
    raise ConfigError(f"no config file {path}{hint}; see jaxdiff recipes")


def docstring(path: pathlib.Path) -> str:
    """The docstring of a recipe."""
    return ast.get_docstring(ast.parse(path.read_text())) or ""


def table() -> list[tuple[str, ...]]:
    """Name, data set, cost and score of the library's recipes, under a head.

    Of the lines `Data:`, `Cost:` and `Score:` of a docstring it has what stands before the first semicolon.
    """
    rows: list[tuple[str, ...]] = [("name", "data set", "cost", "score")]
    for name, path in bundled().items():
        text = docstring(path)
        found = (re.search(rf"^{word}: (.+?)(;|\.?$)", text, re.MULTILINE) for word in ("Data", "Cost", "Score"))
        rows.append((name, *(match[1] if match else "" for match in found)))
    return rows


def copy(name: str, target: pathlib.Path) -> str:
    """Writes the file of one of the library's recipes to a new path; says how to run it, and what it starts from.

    Raises:
        ConfigError: there is no such recipe, or there is a file already.
    """
    known = bundled()
    if name not in known:
        raise ConfigError(f"no recipe {name!r}{did_you_mean(name, known)}; see jaxdiff recipes")
    if target.exists():
        raise ConfigError(f"{target} exists already and stays as it is; choose another --to")
    text = known[name].read_text()
    with files.writing_to(target, "--to"):
        files.write_text(target, text)
    command = " ".join(docstring(known[name]).partition("Run: ")[2].split()).replace(f"configs/{name}.py", str(target))
    said, sources = f"{target} is yours to change. Run: {command}", re.findall(r'"configs/(\w+)\.py"', text)
    if not sources:
        return said
    how = f"jaxdiff recipes copy {sources[0]} --to configs/{sources[0]}.py"
    return f"{said}\nIt starts from {', '.join(sources)}; to change one of these too: {how}"
