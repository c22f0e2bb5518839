"""Device meshes, and the two layouts of one train step: jit over a mesh, and its pmap twin.

jit with shardings is what pjit became. Parameters and all that follows them are split over the mesh (see `sharding`). The
gradient is computed by an explicit program for each device, `jax.shard_map`: gather the parameters, differentiate the loss
of one's own rows, sum in float32 and keep one's own part. Left to itself, XLA would shard convolutions by channel, move
activations instead of weights, and sum gradients in bfloat16.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.typing import DTypeLike

from jaxdiff.io import count
from jaxdiff.training import Gradient, Step, TrainState, repeated
from jaxdiff.training.sharding import AXES, FSDP, RULES, Rules, shardings, table

NEAR = 8  # devices at most among which a larger mesh shares params, unless told otherwise


class Layout(NamedTuple):
    """Where a train state lives and how its step is compiled.

    Attributes:
        sharding: a tree like the state of where each array goes before `enter` (for initialisation and restore).
        enter: from a plain state to the one that the step takes.
        leave: back to a plain state (for checkpoints and sampling).
        rows: from the size of a batch to the positions in it of the rows that this process reads.
        shard: from these rows to the batch that the step takes.
        reduce_gradients: what `train_step` needs so that gradients are those of the rows of all devices.
        compile: from a step made with it to the compiled step, which consumes (donates) its state.
        compile_repeated: the same for calls of N steps, whose batches are stacked, `[N, B, ...]`: a program for each N.
    """

    sharding: Any
    enter: Callable[[Any], Any]
    leave: Callable[[Any], Any]
    rows: Callable[[int], np.ndarray]
    shard: Callable[[Mapping[str, np.ndarray]], Any]
    reduce_gradients: Callable[[Gradient], Gradient]
    compile: Callable[[Step], Step]
    compile_repeated: Callable[[Step], Step]


def make_mesh(data: int = -1, fsdp: int = -1, devices: Sequence[Any] | None = None, tensor: int = 1) -> Mesh:
    """A mesh with the axes `data`, `fsdp` and `tensor`; -1 takes all devices that the others leave.

    With both data and fsdp -1, up to eight devices are data-parallel; of more, groups of up to eight share the parameters.
    Over several slices of TPUs, `data` is split between them first, so that parameters are gathered inside a slice.

    Raises:
        ValueError: the sizes do not make up the number of devices, or slices do not divide `data`.
    """
    devices = jax.devices() if devices is None else devices
    return Mesh(_arranged(mesh_shape(len(devices), data, fsdp, tensor), devices), AXES)


def mesh_shape(devices: int, data: int = -1, fsdp: int = -1, tensor: int = 1) -> tuple[int, int, int]:
    """Sizes of the axes `data`, `fsdp` and `tensor` of a mesh of so many devices, as `make_mesh` chooses them.

    Raises:
        ValueError: they do not make up the number of devices.
    """
    left = devices // tensor if tensor > 0 else 0
    if data == fsdp == -1:
        fsdp = 1 if left <= NEAR else math.gcd(left, NEAR)
    data = left // fsdp if data == -1 and fsdp > 0 else data
    fsdp = left // data if fsdp == -1 and data > 0 else fsdp
    sizes = (data, fsdp, tensor)
    if min(sizes) < 1 or math.prod(sizes) != devices:
        raise ValueError(
            f"mesh: data {data} x fsdp {fsdp} x tensor {tensor} does not make up {count(devices, 'device')}; set data or fsdp to -1"
        )
    return sizes


def _arranged(sizes: tuple[int, int, int], devices: Sequence[Any]) -> np.ndarray:
    """The devices so that neighbours on the mesh are neighbours in the machine."""
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if slices == 1:
        return mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    if sizes[0] % slices:
        raise ValueError(f"mesh: data {sizes[0]} cannot be shared by {slices} slices; choose a multiple of {slices}")
    inside = (sizes[0] // slices, *sizes[1:])
    return mesh_utils.create_hybrid_device_mesh(inside, (slices, 1, 1), devices, allow_split_physical_axes=True)


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of an array that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh, rules: Rules = RULES) -> NamedSharding:
    """The sharding of a batch: its first axis over the axes that share it."""
    return NamedSharding(mesh, PartitionSpec(rules.batch))


def jit_layout(mesh: Mesh, state: Any, rules: Rules = RULES, gradients: DTypeLike = jnp.float32, whole: bool = False) -> Layout:
    """One program over the whole mesh: data-parallel over `data`, fully sharded over `fsdp`.

    Args:
        mesh: the devices.
        state: the train state, or its shapes.
        rules: what the mesh axes split.
        gradients: dtype in which gradients are summed over devices.
        whole: differentiate the loss of the whole batch at once, and let XLA choose the collectives: for objectives that are
            no mean over rows.
    """
    sharding = shardings(mesh, state, rules)
    batch = batch_sharding(mesh, rules)
    local = partial(_reduced_gradient, mesh, sharding, rules.batch, gradients)
    several = NamedSharding(mesh, PartitionSpec(None, *batch.spec))

    everywhere = replicated(mesh)
    jitted = partial(jax.jit, out_shardings=(sharding, everywhere), donate_argnums=0)

    def compiled(step: Step) -> Step:
        return jitted(step, in_shardings=(sharding, batch, everywhere))

    def compiled_repeated(step: Step) -> Step:
        steps = jitted(repeated(step), in_shardings=(sharding, several, everywhere, everywhere))
        return lambda state, batches, key: steps(state, batches, key, np.int32(len(next(iter(batches.values())))))

    def rows(batch_size: int) -> np.ndarray:
        parts = batch.addressable_devices_indices_map((batch_size,)).values()
        return np.unique(np.concatenate([np.arange(batch_size)[index] for index in parts if index is not None]))

    def shard(rows: Mapping[str, np.ndarray]) -> Any:
        where = several if np.ndim(rows.get("index", 0)) == 2 else batch
        return {name: jax.make_array_from_process_local_data(where, value) for name, value in rows.items()}

    reduce_gradients = partial(_whole_batch_gradient, mesh) if whole else local
    return Layout(sharding, lambda state: state, lambda state: state, rows, shard, reduce_gradients, compiled, compiled_repeated)


def describe(layout: Layout, params: Any, batch_size: int) -> str:
    """What runs where, as lines: devices and processes, the sizes of the mesh, rows a device, and how params are split."""
    sharding = jax.tree.leaves(layout.sharding)[0]
    where = f"{next(iter(sharding.device_set)).device_kind}, {count(jax.process_count(), 'process')}"
    if not isinstance(sharding, NamedSharding):
        devices, rows = count(jax.local_device_count(), "device"), count(batch_size // jax.device_count(), "row")
        return f"mesh: pmap over {devices} ({where}), params on each; {rows} of a batch each"
    mesh = sharding.mesh
    assert isinstance(mesh, Mesh)
    sizes = " x ".join(f"{name} {size}" for name, size in mesh.shape.items())
    rows = batch_size // (mesh.shape[AXES[0]] * mesh.shape[FSDP])
    return f"mesh: {sizes} = {count(mesh.size, 'device')} ({where}), {count(rows, 'row')} of a batch each\n{table(mesh, params)}"


def _whole_batch_gradient(mesh: Mesh, gradient: Gradient) -> Gradient:
    """The gradient of the whole batch, at params that every device has whole."""

    def gather(tree: Any) -> Any:
        return jax.lax.with_sharding_constraint(tree, replicated(mesh))

    return lambda params, state, batch, key: gradient(gather(params), gather(state), batch, key)


def _reduced_gradient(mesh: Mesh, sharding: Any, rows: tuple[str, ...], dtype: DTypeLike, gradient: Gradient) -> Gradient:
    """The mean of the gradients that the devices compute of their own rows; each keeps its part."""
    axes = tuple(axis for axis in rows if mesh.shape[axis] > 1)  # tensor is left to XLA, which splits features
    if not axes:
        return gradient
    seen = replace(sharding, params={}, opt_state=())
    split = partial(jax.tree.map, lambda leaf: PartitionSpec(*(name if name in axes else None for name in leaf.spec)))

    def shared(params: Any, state: TrainState, batch: Any, key: Any) -> Any:
        params = jax.tree.map(partial(_all_gather, axes), params, sharding.params)
        metrics, grads = gradient(params, jax.tree.map(partial(_all_gather, axes), state, seen), batch, key)
        return jax.lax.pmean(metrics, axes), jax.tree.map(partial(_reduce_mean, axes, dtype), grads, sharding.params)

    inputs = (split(sharding.params), split(seen), PartitionSpec(axes), PartitionSpec())
    outputs = (PartitionSpec(), split(sharding.params))
    return jax.shard_map(shared, mesh=mesh, in_specs=inputs, out_specs=outputs, axis_names=frozenset(axes), check_vma=False)


def _all_gather(axes: tuple[str, ...], leaf: Any, sharding: NamedSharding) -> Any:
    """On each device, the array of which the devices along `fsdp` hold a part each."""
    place = _fsdp_dimension(axes, sharding)
    return leaf if place is None else jax.lax.all_gather(leaf, FSDP, axis=place, tiled=True)


def _reduce_mean(axes: tuple[str, ...], dtype: DTypeLike, leaf: Any, sharding: NamedSharding) -> Any:
    """On each device, its part of the mean of the devices' arrays, which are summed in `dtype`."""
    place, total, rest = _fsdp_dimension(axes, sharding), leaf.astype(dtype), axes
    if place is not None:
        total = jax.lax.psum_scatter(total, FSDP, scatter_dimension=place, tiled=True)
        rest = tuple(axis for axis in axes if axis != FSDP)
    total = jax.lax.psum(total, rest) if rest else total
    return total.astype(leaf.dtype) / math.prod(sharding.mesh.shape[axis] for axis in axes)


def _fsdp_dimension(axes: tuple[str, ...], sharding: NamedSharding) -> int | None:
    """The dimension that the devices along `fsdp` share."""
    return list(sharding.spec).index(FSDP) if FSDP in axes and FSDP in sharding.spec else None


def pmap_layout(state: Any) -> Layout:
    """The same step as `jax.pmap` over this process's devices: replicated data-parallel, gradients averaged by `pmean`."""
    devices = jax.local_devices()
    copies = NamedSharding(Mesh(np.asarray(devices), ("data",)), PartitionSpec("data"))

    def enter(state: Any) -> Any:
        return jax.tree.map(lambda leaf: jax.device_put(jnp.broadcast_to(leaf[None], (len(devices), *leaf.shape)), copies), state)

    def compiled(step: Step) -> Step:
        mapped = jax.pmap(step, axis_name="data", in_axes=(0, 0, None), donate_argnums=0)

        def run(state: Any, batch: Any, key: jax.Array) -> tuple[Any, Any]:
            state, metrics = mapped(state, batch, key)
            return state, first(metrics)

        return run

    def compiled_repeated(step: Step) -> Step:
        raise ValueError("pmap runs one step at a time; write jit for several together")

    def rows(batch_size: int) -> np.ndarray:
        return np.arange(batch_size).reshape(jax.process_count(), -1)[jax.process_index()]

    def shard(rows: Mapping[str, np.ndarray]) -> Any:
        return {name: value.reshape(len(devices), -1, *value.shape[1:]) for name, value in rows.items()}

    def first(tree: Any) -> Any:
        """The first device's own part: an index would be a program of all devices for each array, which may block each other."""
        return jax.tree.map(lambda leaf: leaf.addressable_data(0).reshape(leaf.shape[1:]), tree)

    def reduce_gradients(gradient: Gradient) -> Gradient:
        return lambda *rows: jax.lax.pmean(gradient(*rows), "data")

    single = jax.sharding.SingleDeviceSharding(devices[0])
    return Layout(jax.tree.map(lambda _: single, state), enter, first, rows, shard, reduce_gradients, compiled, compiled_repeated)
