"""Trained weights of other projects' networks, by their published names, from files that the user has."""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from jaxdiff.io import few, paths
from jaxdiff.io.errors import ConfigError, first_line


@contextlib.contextmanager
def open_npz(path: pathlib.Path | str, network: str) -> Iterator[Any]:
    """The arrays of a .npz file by name, each loaded on access.

    Raises:
        ConfigError: no such file, or an array that the block reads is not in it.
    """
    try:
        with paths.path(path).open("rb") as stream, np.load(stream) as file:
            yield file
    except ConfigError:
        raise
    except Exception as error:  # numpy raises many kinds: a damaged archive, an empty file, names that are missing
        reason = first_line(error).strip("'\"")
        raise ConfigError(f"{path} holds no weights of {network} ({reason})") from error


def load_npz(path: pathlib.Path | str, network: str, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """The arrays of a .npz file, float32, which must have exactly these names and shapes, but for PyTorch's counts of batches.

    Raises:
        ConfigError: a name or a shape differs.
    """
    with open_npz(path, network) as file:
        names = {name for name in file if not name.endswith("num_batches_tracked")}
        for kind, other in (("lacks", shapes.keys() - names), ("also holds", names - shapes.keys())):
            if other:
                raise ConfigError(f"{path} is not of {network}: it {kind} {few(sorted(other))}")
        arrays = {name: np.asarray(file[name], np.float32) for name in shapes}
    for name, array in arrays.items():
        if array.shape != shapes[name]:
            raise ConfigError(f"{path} is not of {network}: {name} is {list(array.shape)}, not {list(shapes[name])}")
    return arrays
