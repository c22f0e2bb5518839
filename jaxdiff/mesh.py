"""Device meshes, sharding rules, and the two layouts of one train step: jit over a mesh, and its pmap twin.

jit with shardings is what pjit became. Parameters and all that follows them are sharded over the `fsdp` axis and
gathered where they are used, the batch over all axes: without the gather XLA would shard convolutions by channel and
move activations instead.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

BATCH_AXES = ("data", "fsdp")
SMALL = 2**12  # arrays with fewer values are replicated: moving them costs more than keeping them

MakeStep = Callable[..., Callable]  # train_step with its objective, optimizer and EMAs bound; takes gather= and average=


class Layout(NamedTuple):
    """Where a train state lives and how its step is compiled.

    Attributes:
        sharding: a tree like the state of where each array goes before `enter` (for initialisation and restore).
        enter: from a plain state to the one that the step takes.
        leave: back to a plain state (for checkpoints and sampling).
        shard: from this process's rows of a batch to the batch that the step takes.
        compile: from `make_step` to the compiled step, which consumes (donates) its state.
    """

    sharding: Any
    enter: Callable[[Any], Any]
    leave: Callable[[Any], Any]
    shard: Callable[[Mapping[str, np.ndarray]], Any]
    compile: Callable[[MakeStep], Callable]


def make_mesh(data: int = -1, fsdp: int = 1, devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh with the axes `data` and `fsdp`; a size of -1 takes all devices that the other leaves.

    Raises:
        ValueError: the sizes do not make up the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    data = len(devices) // fsdp if data == -1 and fsdp > 0 else data
    fsdp = len(devices) // data if fsdp == -1 and data > 0 else fsdp
    if data < 1 or fsdp < 1 or data * fsdp != len(devices):
        raise ValueError(f"mesh: data {data} x fsdp {fsdp} does not make up {len(devices)} devices; set one of them to -1")
    return Mesh(np.asarray(devices).reshape(data, fsdp), BATCH_AXES)


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of an array that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding of a batch: its first axis over all axes of the mesh."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def state_sharding(mesh: Mesh, state: Any) -> Any:
    """A sharding for every array (or shape) of a tree: the largest axis that `fsdp` divides; small arrays replicated."""

    def rule(leaf: Any) -> NamedSharding:
        size = mesh.shape["fsdp"]
        axes = [axis for axis, length in enumerate(leaf.shape) if length % size == 0]
        if size == 1 or not axes or np.prod(leaf.shape) < SMALL:
            return replicated(mesh)
        largest = max(axes, key=lambda axis: leaf.shape[axis])
        return NamedSharding(mesh, PartitionSpec(*("fsdp" if axis == largest else None for axis in range(leaf.ndim))))

    return jax.tree.map(rule, state)


def jit_layout(mesh: Mesh, state: Any) -> Layout:
    """One program over the whole mesh: data-parallel over `data`, fully sharded over `fsdp`. `state` may be shapes."""
    sharding = state_sharding(mesh, state)
    batch = batch_sharding(mesh)

    def gather(params: Any) -> Any:
        return jax.lax.with_sharding_constraint(params, replicated(mesh))

    def compiled(make_step: MakeStep) -> Callable:
        shardings = (sharding, batch, replicated(mesh))
        step = make_step(gather=gather)
        return jax.jit(step, in_shardings=shardings, out_shardings=(sharding, replicated(mesh)), donate_argnums=0)

    def shard(rows: Mapping[str, np.ndarray]) -> Any:
        return {name: jax.make_array_from_process_local_data(batch, value) for name, value in rows.items()}

    return Layout(sharding, lambda state: state, lambda state: state, shard, compiled)


def pmap_layout(state: Any) -> Layout:
    """The same step as `jax.pmap` over this process's devices: replicated data-parallel, gradients averaged by `pmean`."""
    devices = jax.local_devices()
    copies = NamedSharding(Mesh(np.asarray(devices), ("data",)), PartitionSpec("data"))

    def enter(state: Any) -> Any:
        return jax.tree.map(lambda leaf: jax.device_put(jnp.broadcast_to(leaf[None], (len(devices), *leaf.shape)), copies), state)

    def compiled(make_step: MakeStep) -> Callable:
        step = make_step(average=lambda tree: jax.lax.pmean(tree, "data"))
        mapped = jax.pmap(step, axis_name="data", in_axes=(0, 0, None), donate_argnums=0)

        def run(state: Any, batch: Any, key: jax.Array) -> tuple[Any, Any]:
            state, metrics = mapped(state, batch, key)
            return state, first(metrics)

        return run

    def shard(rows: Mapping[str, np.ndarray]) -> Any:
        return {name: value.reshape(len(devices), -1, *value.shape[1:]) for name, value in rows.items()}

    def first(tree: Any) -> Any:
        return jax.tree.map(lambda leaf: leaf[0], tree)

    single = jax.sharding.SingleDeviceSharding(devices[0])
    return Layout(jax.tree.map(lambda _: single, state), enter, first, shard, compiled)
