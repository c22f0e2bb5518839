"""What devices send each other: the collectives of scheduled HLO by kind and mesh axis, their bytes and time on the wire."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jaxdiff.app.plan.chips import Topology
from jaxdiff.app.plan.cost import COLLECTIVES
from jaxdiff.app.plan.hlo import BYTES, Executed, Instruction, Module, arrays, numbers

MOVES = ("collective-permute", "all-to-all")  # of activations or keys, where parameters alone should be sent


class Grid(NamedTuple):
    """The mesh of a program: sizes of its axes by name, and the slice of each device in the mesh's order."""

    axes: Mapping[str, int]
    slices: Sequence[int]

    def along(self, groups: np.ndarray) -> str:
        """The axes along which the members of any of the groups `[G, M]` differ."""
        places = np.unravel_index(groups, tuple(self.axes.values()))
        return "+".join(name for name, axis in zip(self.axes, places, strict=True) if np.ptp(axis, axis=1).any()) or "none"

    def between_slices(self) -> str:
        """The axes along which devices are in other slices."""
        slices = np.reshape(self.slices, tuple(self.axes.values()))
        return "+".join(name for number, name in enumerate(self.axes) if np.ptp(slices, axis=number).any()) or "none"


class Traffic(NamedTuple):
    """Collectives of one kind over the same axes, on one device."""

    kind: str
    axes: str
    network: str  # ICI, the links inside a slice, or DCN, the data centre's network between slices
    hidden: bool  # whether they may run beside the computation, as the compiler has scheduled them
    times: int
    bytes: float  # of their results
    seconds: float  # on the wire at published speeds


def traffic(module: Module, runs: Iterable[Executed], grid: Grid, where: Topology) -> list[Traffic]:
    """The collectives that a module runs, those of one kind, axes and network added up."""
    single: dict[str, tuple[int, Traffic]] = {}
    for instruction, _, times in runs:
        inside = instruction.opcode in ("fusion", "async-start")
        for each in module.called(instruction, "calls").values() if inside else [instruction]:
            one = _traffic(each, grid, where)
            if one is None:
                continue
            chain = re.search(r"chain_id=\"?(\d+)", each.rest)  # shared by the parts of one that runs beside fusions
            key = f"{each.opcode} chain {chain[1]}" if chain else each.name  # unlike channel_id, which many share
            least = min(times, single[key][0]) if key in single else times
            beside = chain is not None or instruction.opcode == "async-start" or each.opcode.endswith("-start")
            single[key] = least, one._replace(hidden=one.hidden or beside)
    total: dict[tuple, Traffic] = {}
    for times, one in single.values():
        many = total.get(one[:4], one._replace(times=0, bytes=0.0, seconds=0.0))
        sent, seconds = many.bytes + times * one.bytes, many.seconds + times * one.seconds
        total[one[:4]] = one._replace(times=many.times + times, bytes=sent, seconds=seconds)
    return sorted(total.values())


def _traffic(instruction: Instruction, grid: Grid, where: Topology) -> Traffic | None:
    """One run of a collective, or of a send between slices; None for anything else."""
    kind = instruction.opcode.removesuffix("-start")
    parts = [BYTES.get(type_, 0) * math.prod(numbers(lengths)) for type_, lengths, _ in arrays(instruction.shape)]
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
    return Traffic(kind, grid.along(members), "ICI", False, 1, result, seconds)


def _sent(kind: str, result: float, members: int) -> float:
    """Bytes that each member of a ring sends, at least, for a result of so many bytes on each."""
    shares = {"all-reduce": 2 * (members - 1) / members, "reduce-scatter": members - 1}
    shares |= dict.fromkeys(("all-gather", "all-to-all"), (members - 1) / members)
    return result * shares.get(kind, 1.0)


def _groups(attributes: str, devices: int) -> np.ndarray:
    """The groups `[G, M]` of a collective's devices, or the pairs of a permutation."""
    if listed := re.search(r"(?:replica_groups|source_target_pairs)=\{(\{[\d,{}]*\})\}", attributes):
        return np.array([numbers(group) for group in re.findall(r"\{([\d,]+)\}", listed[1])])
    if iota := re.search(r"replica_groups=\[([\d,]+)\]<=(\[[\d,]+\](?:T\([\d,]+\))?)", attributes):
        return _iota(iota[2]).reshape(numbers(iota[1]))
    if mesh := re.search(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(?([^ ]*?)\)?)? \{([^}]*)\}", attributes):
        return _mesh_groups(*mesh.groups())
    return np.arange(devices)[None]


def _mesh_groups(axes: str, order: str | None, chosen: str) -> np.ndarray:
    """The groups along some axes of a mesh such as `'a'=2,'b'=4`, of which `'b':(1)2` is a part of an axis."""
    sizes = {name: int(length) for name, length in re.findall(r"'(\w+)'=(\d+)", axes)}
    parts = {  # of an axis: what is before the part, and its length
        name: (int(before or 1), int(length or sizes[name]))
        for name, before, length in re.findall(r"'(\w+)'(?::\((\d+)\)(\d+))?", chosen)
    }
    shape, inside = list[int](), list[int]()
    for name, length in sizes.items():
        before, part = parts.get(name, (length, 1))
        inside.append(len(shape) + 1)
        shape += [before, part, length // (before * part)]
    outside = [axis for axis in range(len(shape)) if axis not in inside]
    devices = _iota(order) if order else np.arange(math.prod(shape))
    return devices.reshape(shape).transpose(outside + inside).reshape(-1, math.prod(shape[axis] for axis in inside))


def _iota(text: str) -> np.ndarray:
    """The numbers that `[4,2]T(1,0)` lists: 0, 1, ... in that shape, transposed; or those of a plain list."""
    parts = re.search(r"\[([\d,]+)\](?:T\(([\d,]+)\))?", text)
    assert parts is not None, f"devices {text}"
    shape = numbers(parts[1])
    if parts[2] is None and sorted(shape) == list(range(len(shape))) and len(shape) > 1:
        return np.array(shape)
    devices = np.arange(math.prod(shape)).reshape(shape)
    return (devices.transpose(numbers(parts[2])) if parts[2] else devices).reshape(-1)
