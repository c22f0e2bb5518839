"""Reads scheduled HLO, as the TPU compiler writes it: FLOPs, collectives, HBM traffic and a roofline.

The roofline is the sum over instructions of `max(MXU time / 0.95, HBM bytes / (0.85 * bandwidth))`, one after the other,
at the peaks of a TPU v5e chip: a lower bound of what the chip may take, never a measured time. MXU time counts channels
in tiles of 128 (less than one together with the window), rows in tiles of 8 and as 128 at least; HBM bytes are those of
the padded layouts, without what is kept in VMEM. Vector work, latencies and collectives cost nothing in it. The body of
a loop counts as often as it runs.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from typing import NamedTuple

import numpy as np

PEAK_FLOPS = 197e12  # in bfloat16
HBM_BANDWIDTH = 819e9  # bytes a second
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "collective-permute", "all-to-all")
BYTES = {"bf16": 2, "f16": 2, "f32": 4, "s32": 4, "u32": 4, "pred": 1, "s8": 1, "u8": 1, "u16": 2, "s16": 2, "s64": 8, "u64": 8}
FREE = {"parameter", "constant", "get-tuple-element", "tuple", "bitcast", "after-all", "partition-id", "replica-id", "iota"}
TILE = 128  # of the MXU: it takes as long to load a tile of weights as to multiply it with 128 rows
SLICES = {"slice", "dynamic-slice", "gather"}


class Instruction(NamedTuple):
    """One line of HLO: `name = shape opcode(operands)rest`."""

    name: str
    shape: str
    opcode: str
    operands: list[str]
    rest: str


class Cost(NamedTuple):
    """What a program takes of one device."""

    flops: float
    hbm_bytes: float
    seconds: float  # of the roofline


Computation = dict[str, Instruction]


def parsed(text: str) -> tuple[dict[str, Computation], str]:
    """The computations of a module by name, each its instructions by name, and the name of the entry."""
    computations: dict[str, Computation] = {}
    entry, current = "", {}
    for line in text.splitlines():
        if header := re.match(r"(ENTRY )?(%[\w.-]+) \(.*\{$", line):
            current = computations[header[2]] = {}
            entry = header[2] if header[1] else entry
        elif found := re.match(r"\s+(?:ROOT )?(%[\w.-]+) = (.*?) ([a-z][\w-]*)\(([^)]*)\)(.*)", line):
            name, shape, opcode, operands, rest = found.groups()
            inside = [operands] if opcode in ("parameter", "constant") else re.findall(r"%[\w.-]+", operands)
            current[name] = Instruction(name, shape, opcode, inside, rest)
    return computations, entry


def cost(text: str) -> Cost:
    """FLOPs, HBM traffic and roofline of a scheduled module.

    Raises:
        SystemExit: it has a loop without a fixed count, a product that is no convolution, or a kernel written by hand.
    """
    computations, entry = parsed(text)
    return Cost(*map(float, _total(computations, entry)))


def _total(computations: dict[str, Computation], name: str) -> np.ndarray:
    scope = computations[name]
    return sum((_cost(computations, scope, instruction) for instruction in scope.values()), np.zeros(3))


def _cost(computations: dict[str, Computation], scope: Computation, instruction: Instruction) -> np.ndarray:
    opcode = instruction.opcode
    if opcode == "while":
        trips = _trips(computations[_called(instruction, "condition")])
        return trips * _total(computations, _called(instruction, "body"))
    if opcode == "call":
        return _total(computations, _called(instruction, "to_apply"))
    if opcode == "conditional" or "tpu_custom_call" in instruction.rest:
        raise SystemExit(f"the cost of {instruction.name}, a branch or a kernel, cannot be read off the HLO text")
    if opcode in FREE or opcode.endswith("-done") or opcode.removesuffix("-start") in COLLECTIVES or opcode == "custom-call":
        return np.zeros(3)  # a custom call here names memory and moves none
    flops, padded = _products(computations, scope, instruction)
    hbm = _traffic(computations, scope, instruction)
    return np.array([flops, hbm, max(padded / (0.95 * PEAK_FLOPS), hbm / (0.85 * HBM_BANDWIDTH))])


def _trips(condition: Computation) -> int:
    """How often a loop that counts from 0 runs: the constant with which its condition compares."""
    bounds = [int(each.operands[0]) for each in condition.values() if each.opcode == "constant" and each.shape.startswith("s32[]")]
    if len(bounds) != 1:
        raise SystemExit("a loop's count cannot be read off its condition")
    return bounds[0]


def _products(computations: dict[str, Computation], scope: Computation, instruction: Instruction) -> tuple[float, float]:
    """FLOPs of the convolutions in an instruction, as they are and with channels and rows padded to the MXU's tiles."""
    if instruction.opcode == "dot":
        raise SystemExit(f"{instruction.name} is a product that is no convolution: its FLOPs are not counted")
    if instruction.opcode == "convolution":
        left, right = (_dims(scope[name].shape) for name in instruction.operands)
        return _convolution_flops(_dims(instruction.shape), left, right, instruction.rest)
    if instruction.opcode != "fusion":
        return 0.0, 0.0
    inner = computations[_called(instruction, "calls")]
    found = [_products(computations, inner, each) for each in inner.values()]
    return sum(dense for dense, _ in found), sum(padded for _, padded in found)


def _convolution_flops(out: list[int], left: list[int], right: list[int], attributes: str) -> tuple[float, float]:
    left_axes, right_axes, out_axes = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", attributes).groups()
    window = re.search(r"window=\{([^}]*)\}", attributes)
    fields = dict(field.split("=") for field in window[1].split()) if window else {}
    rows, columns, depth = out[out_axes.index("b")], out[out_axes.index("f")], right[right_axes.index("i")]
    taps, places, streamed = 1.0, 1, _up(rows, 8)
    for axis in sorted(set(out_axes) - set("bf")):
        one = {name: value.split("x")[int(axis)] for name, value in fields.items()}
        outputs = out[out_axes.index(axis)]
        places *= outputs
        taps *= _taps(one, left[left_axes.index(axis)], outputs)
        streamed *= 1 if "lhs_dilate" in one and one["lhs_dilate"] == one["size"] else outputs  # a batch of products: other weights
    summed = taps / places * _up(depth, TILE) if depth >= TILE else _up(math.ceil(taps / places * depth), TILE)
    padded = 2 * _up(rows, 8) * max(1.0, TILE / streamed) * places * _up(columns, TILE) * summed
    return 2 * taps * rows * columns * depth, padded


def _taps(window: dict[str, str], inputs: int, outputs: int) -> int:
    """Along one axis, how often a weight meets a value that is neither padding nor dilation."""
    stride, spread, dilation = (int(window.get(name, 1)) for name in ("stride", "lhs_dilate", "rhs_dilate"))
    low = int(window.get("pad", "0_0").split("_")[0])
    position = stride * np.arange(outputs)[:, None] + dilation * np.arange(int(window["size"])) - low
    return int(np.sum((position >= 0) & (position <= (inputs - 1) * spread) & (position % spread == 0)))


def _traffic(computations: dict[str, Computation], scope: Computation, instruction: Instruction) -> float:
    """Bytes that an instruction moves from and to HBM: its operands and results, of a slice or an update that part."""
    if instruction.opcode == "copy-start":
        return sum(_hbm(array) for array in _arrays(instruction.shape)[:2])
    if instruction.opcode == "async-start":
        inner = computations[_called(instruction, "calls")]
        return sum(_traffic(computations, inner, each) for each in inner.values() if each.opcode not in FREE)
    if instruction.opcode == "fusion":
        inner = list(computations[_called(instruction, "calls")].values())
        parameters = {int(each.operands[0]): each.name for each in inner if each.opcode == "parameter"}
    else:
        names = [f"operand {number}" for number in range(len(instruction.operands))]
        inner, parameters = [instruction._replace(operands=names)], dict(enumerate(names))
    shapes = {each.name: each.shape for each in inner} | {
        parameters[number]: scope[name].shape for number, name in enumerate(instruction.operands)
    }
    read = sum(_read(inner, parameters[number], shapes) for number in range(len(instruction.operands)))
    updates = {
        tuple(_dims(each.shape)): _size(shapes[each.operands[1]], True) for each in inner if each.opcode == "dynamic-update-slice"
    }
    return read + sum(min(_hbm(array), updates.get(tuple(_numbers(array[1])), math.inf)) for array in _arrays(instruction.shape))


def _read(inner: list[Instruction], name: str, shapes: dict[str, str]) -> float:
    users = [each for each in inner if name in each.operands and each.opcode != "parameter"]
    whole = _size(shapes[name])
    if users and all(each.opcode in SLICES | {"dynamic-update-slice"} and each.operands[0] == name for each in users):
        return min(whole, sum(_size(each.shape, True) for each in users if each.opcode in SLICES))
    return whole


def _called(instruction: Instruction, role: str) -> str:
    return re.search(rf"{role}=(%[\w.-]+)", instruction.rest)[1]


def _arrays(shape: str) -> list[tuple[str, str, str]]:
    """Type, dimensions and layout of the arrays of a shape, which may be a tuple."""
    return re.findall(r"(\w+)\[([\d,]*)\](?:\{([^}]*)\})?", shape)


def _size(shape: str, anywhere: bool = False) -> float:
    return sum(_hbm(array, anywhere) for array in _arrays(shape))


def _hbm(array: tuple[str, str, str], anywhere: bool = False) -> float:
    """Bytes of an array with its padding; 0 where it is in another memory than HBM, unless `anywhere`."""
    kind, dims, layout = array
    if "S(" in layout and not anywhere:
        return 0.0
    sizes = _numbers(dims)
    order, _, tiles = layout.partition(":")
    tile = re.match(r"T\(([\d,]+)\)", tiles)
    for axis, multiple in zip(_numbers(order), reversed(_numbers(tile[1]) if tile else []), strict=False):
        sizes[axis] = _up(sizes[axis], multiple)
    return BYTES.get(kind, 0) * math.prod(sizes)


def collectives(hlo: str) -> dict[str, tuple[int, float]]:
    """Count and MiB of every kind of collective that the module has; a loop's count once."""
    sizes: dict[str, dict[str, float]] = defaultdict(dict)
    for shape, kind, start, rest in re.findall(rf" = (.*?) ({'|'.join(COLLECTIVES)})(-start)?\((.*)", hlo):
        parts = [BYTES[dtype] * math.prod(_numbers(dims)) for dtype, dims, _ in _arrays(shape)]
        channel = None if start else re.search(r"channel_id=(\d+)", rest)  # the pieces of a fused collective share it
        sizes[kind][channel[1] if channel else f"start {len(sizes[kind])}"] = max(parts) if start else sum(parts)
    return {kind: (len(sizes[kind]), sum(sizes[kind].values()) / 2**20) for kind in COLLECTIVES if kind in sizes}


def peak_gib(report: str) -> float:
    """GiB of HBM that a program holds at once, arguments included, by the compiler's memory report."""
    return int(re.search(r"^Memory Space: default .*\nTotal bytes: (\d+)", report, re.M)[1]) / 2**30


def _dims(shape: str) -> list[int]:
    return _numbers(_arrays(shape)[0][1])


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",") if number]


def _up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple
