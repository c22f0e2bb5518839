"""Trained weights of others' networks, by the names that they gave them, from files that the user has."""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from jaxdiff.io.errors import ConfigError, first_line


@contextlib.contextmanager
def open_npz(path: pathlib.Path | str, network: str) -> Iterator[Any]:
    """The arrays of a .npz file by name, each read when it is asked for.

    Raises:
        ConfigError: no such file, or what is asked of it in the block is not there.
    """
    try:
        with np.load(path) as file:
            yield file
    except ConfigError:
        raise
    except Exception as error:  # numpy raises many kinds: a damaged archive, an empty file, names that are missing
        reason = first_line(error).strip("'\"")
        raise ConfigError(f"{path} holds no weights of {network} ({reason})") from error


def load_npz(path: pathlib.Path | str, network: str, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """The arrays of a .npz file, float32, whose names and shapes are these and no others; PyTorch's counts of batches apart.

    Raises:
        ConfigError: they are not.
    """
    with open_npz(path, network) as file:
        names = {name for name in file if not name.endswith("num_batches_tracked")}
        for kind, other in (("lacks", shapes.keys() - names), ("also holds", names - shapes.keys())):
            if other:
                few = ", ".join(sorted(other)[:3]) + (f" and {len(other) - 3} more" if len(other) > 3 else "")
                raise ConfigError(f"{path} is not of {network}: it {kind} {few}")
        arrays = {name: np.asarray(file[name], np.float32) for name in shapes}
    for name, array in arrays.items():
        if array.shape != shapes[name]:
            raise ConfigError(f"{path} is not of {network}: {name} is {list(array.shape)}, not {list(shapes[name])}")
    return arrays
