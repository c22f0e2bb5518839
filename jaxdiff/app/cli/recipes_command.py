"""`jaxdiff recipes`: its flags, and what it does."""

import pathlib
import shutil
from dataclasses import dataclass
from typing import Literal

import tyro

from jaxdiff.io import recipes as library
from jaxdiff.io.errors import ConfigError

ABOUT = """
by label: samples that a classifier names by their label; (paper): not ours.
jaxdiff train NAME; jaxdiff ladder NAME_ladder; jaxdiff recipes copy NAME"""


@dataclass(frozen=True)
class Recipes:
    """List the recipes that come with the library, or write the file of one, to change it.

    Example: jaxdiff recipes copy digits
    """

    action: tyro.conf.Positional[Literal["list", "copy"]] = "list"
    """list: names, data sets, costs and scores. copy: write the file of NAME."""
    name: tyro.conf.Positional[str] = ""
    """For copy: a recipe."""
    to: pathlib.Path | None = None
    """For copy: the new file; by default NAME.py."""


def recipes(args: Recipes) -> int:
    if args.action == "copy":
        print(library.copy(args.name, args.to or pathlib.Path(f"{args.name}.py")))
        return 0
    if args.name or args.to:
        raise ConfigError("a name and --to are for copy: jaxdiff recipes copy NAME --to FILE")
    rows, width = library.table(), shutil.get_terminal_size((80, 24)).columns
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    print("\n".join(["  ".join(map(str.ljust, row, widths))[:width].rstrip() for row in rows] + [ABOUT]))
    return 0
