"""Snapshots of power-function averages (see `power_ema`), float32: files `power_ema/STEP.npz` of a run."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from jaxdiff.io import files, locks, paths
from jaxdiff.io.errors import DataError, first_line
from jaxdiff.training import distributed
from jaxdiff.training.step import Params


def write(workdir: pathlib.Path, step: int, averages: Mapping[str, Params]) -> None:
    """Writes averages by name as the snapshot of a step, in place of one that is there; all processes must call it."""
    whole = {name: distributed.replicate_locally(params) for name, params in averages.items()}
    if not distributed.is_first():
        return
    arrays = {f"{name}{path}": leaf for name, params in whole.items() for path, leaf in _leaves(params).items()}
    locks.confirm()
    with files.atomic_write(_file(workdir, step)) as draft, draft.open("wb") as stream:
        np.savez(stream, **jax.device_get(arrays))


def steps(workdir: pathlib.Path) -> list[int]:
    """The steps that have a snapshot, in order."""
    folder = _file(workdir, 0).parent
    named = folder.iterdir() if folder.is_dir() else []
    return sorted(int(path.stem) for path in named if path.suffix == ".npz" and path.stem.isdecimal())


def drop_after(workdir: pathlib.Path, step: int) -> None:
    """Removes the snapshots after a step, from which a run goes on and writes them anew."""
    for later in steps(workdir):
        if later > step:
            _file(workdir, later).unlink()


def combined(workdir: pathlib.Path, weights: Mapping[tuple[int, str], float], like: Params) -> Params:
    """The sum of the averages of snapshots, by step and name, each times its weight, in the structure of `like`.

    Raises:
        DataError: a snapshot is missing or damaged, or is of another network.
    """
    leaves, structure = jax.tree.flatten(like)
    totals = [np.zeros(leaf.shape, np.float32) for leaf in leaves]
    for step in sorted({step for step, _ in weights}):
        path = _file(workdir, step)
        try:
            with path.open("rb") as stream, np.load(stream) as arrays:
                for name in [name for at, name in weights if at == step]:
                    for total, where in zip(totals, _leaves(like), strict=True):
                        total += np.float32(weights[step, name]) * arrays[f"{name}{where}"]
        except Exception as error:  # numpy raises many kinds: a damaged archive, names that are missing, other shapes
            how = "bring it back, or train anew in another --workdir"
            raise DataError(f"{path} is no snapshot of this run ({first_line(error)}); {how}") from error
    return structure.unflatten(totals)


def _leaves(params: Params) -> dict[str, Any]:
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree.leaves_with_path(params)}


def _file(workdir: pathlib.Path, step: int) -> pathlib.Path:
    return paths.path(workdir) / "power_ema" / f"{step:09d}.npz"
