"""What devices send each other: the collectives of scheduled HLO by kind and mesh axis, their bytes and time on the wire."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from jaxdiff.app.plan.chips import Topology
from jaxdiff.app.plan.cost import COLLECTIVES
from jaxdiff.app.plan.hlo import Executed, Instruction, Module, dense

MOVES = ("collective-permute", "all-to-all")  # of activations or keys, where parameters alone should be sent


@dataclass(frozen=True)
class Grid:
    """The mesh of a program: sizes of its axes by name, and the slice of each device in the mesh's order."""

    axes: Mapping[str, int]
    slices: Sequence[int]

    def along(self, members: np.ndarray) -> str:
        """The axes along which the members of a group `[M]` differ."""
        places = np.stack(np.unravel_index(members, tuple(self.axes.values())))
        return "+".join(name for name, axis in zip(self.axes, places, strict=True) if np.ptp(axis)) or "none"

    def between_slices(self) -> str:
        """The axes along which devices are in other slices."""
        slices = np.reshape(self.slices, tuple(self.axes.values()))
        changing = [name for number, name in enumerate(self.axes) if np.ptp(slices, axis=number).any()]
        return "+".join(changing) or "none"


@dataclass(frozen=True)
class Traffic:
    """Collectives of one kind over the same axes, on one device.

    Attributes:
        network: `ICI`, the links inside a slice, or `DCN`, the data centre's network between slices.
        hidden: whether they may run beside the computation, as the compiler has scheduled them.
        bytes: of their results.
        seconds: on the wire at published speeds.
    """

    kind: str
    axes: str
    network: str
    hidden: bool
    count: int
    bytes: float
    seconds: float


def traffic(module: Module, runs: Iterable[Executed], grid: Grid, where: Topology) -> list[Traffic]:
    """The collectives that a module runs, those of one kind, axes and network added up."""
    single: dict[str, tuple[int, Traffic]] = {}
    for instruction, _, times in runs:
        pieces = [instruction]
        if instruction.opcode in ("fusion", "async-start"):
            pieces = [*module.called(instruction, "calls").values()]
        for each in pieces:
            found = _traffic(each, grid, where)
            if found is None:
                continue
            chain = re.search(r"chain_id=\"?(\d+)", each.rest)  # pieces share it of one that runs beside fusions
            key = f"{each.opcode} chain {chain[1]}" if chain else each.name  # unlike channel_id, which many share
            least = min(times, single[key][0]) if key in single else times
            beside = chain is not None or instruction.opcode == "async-start" or each.opcode.endswith("-start")
            single[key] = least, replace(found, hidden=found.hidden or beside)
    return _summed(single.values())


def _summed(single: Iterable[tuple[int, Traffic]]) -> list[Traffic]:
    total: dict[tuple, Traffic] = {}
    for times, one in single:
        key = (one.kind, one.axes, one.network, one.hidden)
        many = total.get(key, replace(one, count=0, bytes=0.0, seconds=0.0))
        total[key] = replace(
            many, count=many.count + times, bytes=many.bytes + times * one.bytes, seconds=many.seconds + times * one.seconds
        )
    return [total[key] for key in sorted(total)]


def _traffic(instruction: Instruction, grid: Grid, where: Topology) -> Traffic | None:
    """One run of a collective, or of a send between slices; None of anything else."""
    kind = instruction.opcode.removesuffix("-start")
    parts = dense(instruction.shape)
    if kind == "send" and (between := re.search(r"_xla_megascale_transfer_type=\"(\w+)\"", instruction.rest)):
        kind = between[1].lower().replace("_", "-")
        sent = _sent(kind, parts[0], where.slices) if kind == "all-reduce" else parts[0]
        return Traffic(kind, grid.between_slices(), "DCN", True, 1, parts[0], sent / where.chip.dcn)
    if kind not in COLLECTIVES:
        return None
    result = max(parts) if instruction.opcode.endswith("-start") else sum(parts)
    groups = _groups(instruction.rest, len(grid.slices))
    members = groups if kind == "collective-permute" else groups[:1]
    local = len(grid.slices) // len(set(grid.slices))
    if groups.max(initial=0) < local:  # numbered within a slice, where the compiler has taken a program of several apart
        members = np.flatnonzero(np.asarray(grid.slices) == grid.slices[0])[members]
    seconds = _sent(kind, result, groups.shape[1]) / max(where.ici, 1.0)
    axes = {name for group in members for name in grid.along(group).split("+")}
    ordered = [name for name in grid.axes if name in axes]
    return Traffic(kind, "+".join(ordered) or "none", "ICI", False, 1, result, seconds)


def _sent(kind: str, result: float, members: int) -> float:
    """Bytes that each of so many members of a ring sends, at least, for a result of so many bytes on each."""
    shares = {"all-reduce": 2 * (members - 1) / members, "reduce-scatter": members - 1}
    shares |= dict.fromkeys(("all-gather", "all-to-all"), (members - 1) / members)
    return result * shares.get(kind, 1.0)


def _groups(attributes: str, devices: int) -> np.ndarray:
    """The groups `[G, M]` of a collective's devices, or the pairs of a permutation."""
    if found := re.search(r"(?:replica_groups|source_target_pairs)=\{(\{[\d,{}]*\})\}", attributes):
        return np.array([[int(number) for number in group.split(",")] for group in re.findall(r"\{([\d,]+)\}", found[1])])
    if found := re.search(r"replica_groups=\[([\d,]+)\]<=(\[[\d,]+\](?:T\([\d,]+\))?)", attributes):
        return _iota(found[2]).reshape([int(number) for number in found[1].split(",")])
    if found := re.search(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(?([^ ]*?)\)?)? \{([^}]*)\}", attributes):
        return _mesh_groups(*found.groups())
    return np.arange(devices)[None]


def _mesh_groups(axes: str, order: str | None, chosen: str) -> np.ndarray:
    """The groups along some axes of a mesh such as `'a'=2,'b'=4`, of which `'b':(1)2` is a part of an axis."""
    sizes = {name: int(length) for name, length in re.findall(r"'(\w+)'=(\d+)", axes)}
    parts: dict[str, tuple[int, int]] = {}  # of an axis: what is before the part, and its length
    for name, before, length in re.findall(r"'(\w+)'(?::\((\d+)\)(\d+))?", chosen):
        parts[name] = (int(before or 1), int(length or sizes[name]))
    shape, inside = list[int](), list[int]()
    for name, length in sizes.items():
        before, part = parts.get(name, (length, 1))
        inside.append(len(shape) + 1)
        shape += [before, part, length // (before * part)]
    outside = [axis for axis in range(len(shape)) if axis not in inside]
    members = math.prod(shape[axis] for axis in inside)
    devices = _iota(order) if order else np.arange(math.prod(sizes.values()))
    return devices.reshape(shape).transpose(outside + inside).reshape(-1, members)


def _iota(text: str) -> np.ndarray:
    """The numbers that `[4,2]T(1,0)` lists: 0, 1, ... in that shape, transposed; or those of a plain list."""
    found = re.search(r"\[([\d,]+)\](?:T\(([\d,]+)\))?", text)
    assert found is not None, f"devices {text}"
    shape = [int(number) for number in found[1].split(",")]
    if found[2] is None and sorted(shape) == list(range(len(shape))) and len(shape) > 1:
        return np.array(shape)
    numbers = np.arange(math.prod(shape)).reshape(shape)
    return (numbers.transpose([int(axis) for axis in found[2].split(",")]) if found[2] else numbers).reshape(-1)
