"""FLOPs, HBM traffic, memory and a roofline of scheduled HLO.

The roofline is the sum over instructions of `max(MXU time / 0.95, HBM bytes / (0.85 * bandwidth))`, one after the other,
at a chip's published peaks: a lower bound of the time of a run, never a measurement. Copies that the compiler starts early
(prefetches into VMEM) run beside other instructions and add nothing, but all HBM bytes together take their time. MXU
time counts channels in tiles of the matrix unit (less than one together with the window), rows in tiles of 8 and as one
tile at least; HBM bytes are those of the padded layouts, without what is kept in VMEM. Vector work and latencies cost
nothing in it.
"""

import math
import re
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from jaxdiff.app.plan.chips import Chip
from jaxdiff.app.plan.hlo import Computation, Executed, Instruction, Module, arrays, dims, hbm, numbers, rounded, size

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "collective-permute", "all-to-all", "collective-broadcast")
FREE = {"parameter", "constant", "get-tuple-element", "tuple", "bitcast", "after-all", "partition-id", "replica-id", "iota"}
SLICES = {"slice", "dynamic-slice", "gather"}
KINDS = {"params": "params", "opt_state": "optimizer", "ema": "EMA", "frozen": "frozen", "batch": "batch", "given": "batch"}


class Cost(NamedTuple):
    """What a program takes of one device."""

    flops: float
    hbm_bytes: float
    seconds: float  # of the roofline


def cost(module: Module, runs: Iterable[Executed], chip: Chip) -> tuple[Cost, list[str]]:
    """FLOPs, HBM traffic and roofline of what a module runs, and notes of what is not in them."""
    total, notes = np.zeros(3), []
    for instruction, scope, times in runs:
        total += times * _cost(module, scope, instruction, chip)
        if "tpu_custom_call" in instruction.rest and _declared(instruction) is None:
            notes.append(f"kernel {instruction.name[1:]} does not say its FLOPs; they count nothing")
    flops, traffic, seconds = map(float, total)
    return Cost(flops, traffic, max(seconds, traffic / (0.85 * chip.hbm_bandwidth))), notes


def peak_bytes(report: str) -> int:
    """Bytes of HBM that a program holds at once, arguments included, by the compiler's memory report."""
    total = re.search(r"^Memory Space: default .*\nTotal bytes: (\d+)", report, re.M)
    assert total is not None, "a memory report without the default memory space"
    return int(total[1])


def memory_by_kind(module: Module, report: str) -> dict[str, int]:
    """Bytes of HBM on one device by kind: the arguments by their names, with padding, and the rest of the peak."""
    memory = dict.fromkeys((*KINDS.values(), "other arguments"), 0)
    for instruction in module.computations[module.entry].values():
        if instruction.opcode == "parameter":
            name = re.search(r'op_name="(?:state\.)?(\w+)', instruction.rest)
            memory[KINDS.get(name[1] if name else "", "other arguments")] += rounded(int(size(instruction.shape)), 512)
    memory["activations and temporaries"] = peak_bytes(report) - sum(memory.values())
    return {kind: value for kind, value in memory.items() if value}


def _cost(module: Module, scope: Computation, instruction: Instruction, chip: Chip) -> np.ndarray:
    opcode = instruction.opcode
    kernel = "tpu_custom_call" in instruction.rest
    moves = opcode.endswith("-done") or opcode.removesuffix("-start") in (*COLLECTIVES, "send", "recv")
    if opcode in FREE or moves or (opcode == "custom-call" and not kernel):
        return np.zeros(3)  # such a custom call names memory and moves none
    flops, padded = (_declared(instruction) or 0.0,) * 2 if kernel else _products(module, scope, instruction, chip.tile)
    traffic = _traffic(module, scope, instruction)
    waited = 0.0 if opcode.endswith("-start") else traffic / (0.85 * chip.hbm_bandwidth)
    return np.array([flops, traffic, max(padded / (0.95 * chip.flops), waited)])


def _declared(kernel: Instruction) -> float | None:
    """The FLOPs that a custom kernel declares."""
    flops = re.search(r'"cost_estimate":\{[^}]*"flops":"?(\d+)', kernel.rest)
    return float(flops[1]) if flops else None


def _products(module: Module, scope: Computation, instruction: Instruction, tile: int) -> tuple[float, float]:
    """FLOPs of the products in an instruction, as they are and with channels and rows padded to the MXU's tiles."""
    if instruction.opcode == "dot":  # most often the compiler has made a convolution of it
        left = dims(scope[instruction.operands[0]].shape)
        axes = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", instruction.rest)
        flops = 2.0 * math.prod(dims(instruction.shape)) * math.prod(left[axis] for axis in numbers(axes[1] if axes else ""))
        return flops, flops
    if instruction.opcode == "convolution":
        left, right = (dims(scope[name].shape) for name in instruction.operands)
        return convolution_flops(dims(instruction.shape), left, right, instruction.rest, tile)
    inner = module.called(instruction, "calls") if instruction.opcode == "fusion" else {}
    flops = [_products(module, inner, each, tile) for each in inner.values()]
    return sum(dense for dense, _ in flops), sum(padded for _, padded in flops)


def convolution_flops(out: list[int], left: list[int], right: list[int], attributes: str, tile: int) -> tuple[float, float]:
    """FLOPs of a convolution without multiplications by padding, and those that the MXU's tiles make of them."""
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", attributes)
    assert labels is not None, "a convolution without dim_labels"
    left_axes, right_axes, out_axes = labels.groups()
    window = re.search(r"window=\{([^}]*)\}", attributes)
    fields = dict(field.split("=") for field in window[1].split()) if window else {}
    rows, columns, depth = out[out_axes.index("b")], out[out_axes.index("f")], right[right_axes.index("i")]
    taps, places, streamed = 1.0, 1, rounded(rows, 8)
    for axis in sorted(set(out_axes) - set("bf")):
        one = {name: value.split("x")[int(axis)] for name, value in fields.items()}
        outputs = out[out_axes.index(axis)]
        places *= outputs
        taps *= _taps(one, left[left_axes.index(axis)], outputs)
        streamed *= 1 if "lhs_dilate" in one and one["lhs_dilate"] == one["size"] else outputs  # a batch of products: other weights
    summed = taps / places * rounded(depth, tile) if depth >= tile else rounded(math.ceil(taps / places * depth), tile)
    padded = 2 * rounded(rows, 8) * max(1.0, tile / streamed) * places * rounded(columns, tile) * summed
    return 2 * taps * rows * columns * depth, padded


def _taps(window: dict[str, str], inputs: int, outputs: int) -> int:
    """Along one axis, how often a weight meets a value that is neither padding nor dilation."""
    stride, spread, dilation = (int(window.get(name, 1)) for name in ("stride", "lhs_dilate", "rhs_dilate"))
    low = int(window.get("pad", "0_0").split("_")[0])
    position = stride * np.arange(outputs)[:, None] + dilation * np.arange(int(window["size"])) - low
    return int(np.sum((position >= 0) & (position <= (inputs - 1) * spread) & (position % spread == 0)))


def _traffic(module: Module, scope: Computation, instruction: Instruction) -> float:
    """Bytes that an instruction moves from and to HBM: its operands and results; of a slice or an update only that part."""
    if instruction.opcode == "copy-start":
        return sum(hbm(array) for array in arrays(instruction.shape)[:2])
    if instruction.opcode == "async-start":
        inner = module.called(instruction, "calls")
        return sum(_traffic(module, inner, each) for each in inner.values() if each.opcode not in FREE)
    if instruction.opcode == "fusion":
        inner = list(module.called(instruction, "calls").values())
        parameters = {int(each.operands[0]): each.name for each in inner if each.opcode == "parameter"}
    else:
        parameters = {number: f"operand {number}" for number in range(len(instruction.operands))}
        inner = [instruction._replace(operands=list(parameters.values()))]
    operands = {parameters[number]: scope[name].shape for number, name in enumerate(instruction.operands)}
    shapes = {each.name: each.shape for each in inner} | operands
    return sum(_read(inner, name, shapes) for name in operands) + _written(inner, instruction, shapes)


def _read(inner: list[Instruction], name: str, shapes: dict[str, str]) -> float:
    """Bytes read of an operand, without one that is passed on to a collective that runs in parts beside fusions."""
    users = [each for each in inner if name in each.operands and each.opcode != "parameter"]
    passed_on = all(each.opcode in (*COLLECTIVES, "tuple") or "AsyncCollective" in each.rest for each in users)
    if passed_on and any(each.opcode in COLLECTIVES for each in inner):
        return 0.0
    whole = size(shapes[name])
    if users and all(each.opcode in SLICES | {"dynamic-update-slice"} and each.operands[0] == name for each in users):
        return min(whole, sum(size(each.shape, True) for each in users if each.opcode in SLICES))
    return whole


def _written(inner: list[Instruction], instruction: Instruction, shapes: dict[str, str]) -> float:
    """Bytes of the results, of updated ones that part, without those that a collective running beside a fusion carries."""
    updated = [each for each in inner if each.opcode == "dynamic-update-slice"]
    updates = {tuple(dims(each.shape)): size(shapes[each.operands[1]], True) for each in updated}
    results = arrays(instruction.shape)
    if any(each.opcode in COLLECTIVES for each in inner):
        moved = {each.name for each in inner if each.opcode in (*COLLECTIVES, "parameter")}
        root = inner[-1]
        results = [] if root.opcode == "custom-call" else results
        if root.opcode == "tuple" and len(root.operands) == len(results):
            results = [array for array, name in zip(results, root.operands, strict=True) if name not in moved]
    return sum(min(hbm(array), updates.get(tuple(numbers(array[1])), math.inf)) for array in results)
