"""Rows spread over all devices of all processes in batches of one size, so that results do not depend on how many there are."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxdiff.training.distributed import is_multi_process


def local_mesh() -> Mesh:
    """The devices of this process, along `data`."""
    return Mesh(np.asarray([each for each in jax.devices() if each.process_index == jax.process_index()]), ("data",))


def over_devices(mesh: Mesh, function: Callable[..., Any]) -> Callable[..., Any]:
    """`function(params, key, rows, frozen) -> rows`, compiled: each device of the mesh has its own rows, and all run one program.

    Left to itself, XLA would compile another program for each number of devices, which rounds differently.
    """
    whole, split = PartitionSpec(), PartitionSpec("data")
    specs = (whole, whole, split, whole)
    shared = jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=split, check_vma=False)
    return jax.jit(shared, in_shardings=tuple(NamedSharding(mesh, each) for each in specs))


def put_rows(mesh: Mesh, rows: Any) -> Any:
    """Arrays of rows `[devices * B, ...]` on the devices of a `local_mesh`; with several processes JAX does not put them there."""
    return jax.device_put(rows, NamedSharding(mesh, PartitionSpec("data")))


def share(num: int, batch_size: int, devices: int) -> np.ndarray:
    """The numbers `[K, devices * B]` of those of `num` rows on which this process works, in K calls, each device on B at a time.

    B is at most `batch_size`, and does not depend on the number of devices or processes. The numbers from `num` on are of rows
    that fill the last call.
    """
    batches = math.ceil(num / batch_size)
    size, processes = math.ceil(num / batches), jax.process_count()
    shape = (math.ceil(batches / (devices * processes)), processes, devices * size)
    return np.arange(math.prod(shape), dtype=np.int32).reshape(shape)[:, jax.process_index()]


def gathered(rows: np.ndarray) -> np.ndarray:
    """All rows `[N, ...]` in order, of the `[K, devices * B, ...]` that each process made of its `share`; all must call it."""
    parts = multihost_utils.process_allgather(rows) if is_multi_process() else rows[None]
    return np.swapaxes(parts, 0, 1).reshape(-1, *rows.shape[2:])
