"""Python files of the user's, which a flag names as FILE.py:NAME."""

from __future__ import annotations

import pathlib
import runpy
import sys
from typing import Any

from jaxdiff.io.errors import ConfigError, user_code


def run_file(path: str, example: str) -> dict[str, Any]:
    """What the file defines, by name; it may import its neighbours. `example` is a name that it might define.

    Raises:
        ConfigError: there is no such file, or it raises.
    """
    if not pathlib.Path(path).is_file():
        raise ConfigError(f"no file {path}; write path/to/file.py:{example}")
    sys.path.insert(0, str(pathlib.Path(path).parent))
    with user_code(path, path):
        return runpy.run_path(path)
