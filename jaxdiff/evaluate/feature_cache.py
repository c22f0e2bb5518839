"""A cache of arrays that take long to compute."""

from __future__ import annotations

import hashlib
import json
import logging
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from jaxdiff.io import files, locks
from jaxdiff.io.errors import first_line

log = logging.getLogger(__name__)


def digest(*parts: Any) -> str:
    """A digest of arrays, bytes, or JSON values: eight hexadecimal digits."""
    found = hashlib.sha256()
    for part in parts:
        plain = part if isinstance(part, bytes) else np.ascontiguousarray(part).tobytes() if isinstance(part, np.ndarray) else None
        found.update(json.dumps(part, sort_keys=True).encode() if plain is None else plain)
    return found.hexdigest()[:8]


def cached_arrays(path: pathlib.Path, make: Callable[[], Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The arrays of a .npz file; computed, and written there, if the file is missing or damaged.

    Of several processes that need them at once one computes, and the others wait for it and read.
    """
    with locks.take_turns(path.with_name(f".{path.name}.lock"), path.name):
        try:
            with np.load(path) as file:  # its archive has a checksum of each array
                return {name: file[name] for name in file.files}
        except FileNotFoundError:
            pass
        except Exception as error:  # numpy raises many kinds
            log.warning("%s is damaged and made again (%s)", path, first_line(error))
        made: dict[str, Any] = {name: np.asarray(value) for name, value in make().items()}
        try:
            with files.atomic_write(path) as draft, draft.open("wb") as file:
                np.savez(file, **made)
        except OSError as error:
            log.warning("%s cannot be kept (%s)", path, error.strerror)
        return made
