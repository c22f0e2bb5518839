"""The JSON files beside published weights."""

from __future__ import annotations

import json
import pathlib
from typing import Any

from jaxdiff.io.errors import DataError, first_line


def read(path: pathlib.Path) -> dict[str, Any]:
    """The object that a JSON file holds.

    Raises:
        DataError: it is damaged, or holds another thing.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise DataError(f"{path} cannot be read as JSON ({first_line(error)}); fetch it again") from error
    if not isinstance(value, dict):
        raise DataError(f"{path} must hold an object; fetch it again")
    return value
