"""Scheduled HLO as the TPU compiler writes it: computations, shapes, and how often each instruction runs."""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

BYTES = {"bf16": 2, "f16": 2, "f32": 4, "s32": 4, "u32": 4, "pred": 1, "s8": 1, "u8": 1, "u16": 2, "s16": 2, "s64": 8, "u64": 8}


class Instruction(NamedTuple):
    """One line of HLO: `name = shape opcode(operands)rest`."""

    name: str
    shape: str
    opcode: str
    operands: list[str]
    rest: str


Computation = dict[str, Instruction]
Array = tuple[str, str, str]  # type, dimensions, layout


class Module(NamedTuple):
    """The computations of a program by name, each its instructions by name, and the name of the entry."""

    computations: dict[str, Computation]
    entry: str

    def called(self, instruction: Instruction, role: str) -> Computation:
        """The computation that an instruction names as its `calls`, `body`, `condition` or `to_apply`."""
        name = re.search(rf"{role}=(%[\w.-]+)", instruction.rest)
        assert name is not None, f"{instruction.name} names no {role}"
        return self.computations[name[1]]


Executed = tuple[Instruction, Computation, int]  # an instruction, the computation it is in, and how often a run executes it


def parsed(text: str) -> Module:
    """The module of an HLO text."""
    computations: dict[str, Computation] = {}
    entry, current = "", {}
    for line in text.splitlines():
        if header := re.match(r"(ENTRY )?(%[\w.-]+) \(.*\{$", line):
            current = computations[header[2]] = {}
            entry = header[2] if header[1] else entry
        elif parts := re.match(r"\s+(?:ROOT )?(%[\w.-]+) = (.*?) ([a-z][\w-]*)\(([^)]*)\)(.*)", line):
            name, shape, opcode, operands, rest = parts.groups()
            inside = [operands] if opcode in ("parameter", "constant") else re.findall(r"%[\w.-]+", operands)
            current[name] = Instruction(name, shape, opcode, inside, rest)
    return Module(computations, entry)


def executed(module: Module) -> tuple[list[Executed], list[str]]:
    """The instructions that a run executes, a fusion as one, and notes of what the text leaves open.

    The body of a loop counts as often as it runs, or once where only the run determines that. Branches count nothing.
    """
    notes: list[str] = []
    return list(_executed(module, module.computations[module.entry], 1, notes)), notes


def _executed(module: Module, scope: Computation, times: int, notes: list[str]) -> Iterator[Executed]:
    for instruction in scope.values():
        if instruction.opcode == "while":
            trips = _trips(module, scope, instruction)
            if trips is None:
                notes.append(f"loop {instruction.name[1:]} runs as often as is known at run time alone; it counts once")
            yield from _executed(module, module.called(instruction, "body"), times * (1 if trips is None else trips), notes)
        elif instruction.opcode == "call":
            yield from _executed(module, module.called(instruction, "to_apply"), times, notes)
        elif instruction.opcode == "conditional":
            notes.append(f"branch {instruction.name[1:]} is chosen at run time; it counts nothing")
        else:
            yield instruction, scope, times


def _trips(module: Module, scope: Computation, loop: Instruction) -> int | None:
    """How often a loop runs whose condition is `counter < constant`; None for any other condition."""
    condition = module.called(loop, "condition")
    end = list(condition.values())[-1]
    if end.opcode != "compare" or "direction=LT" not in end.rest:
        return None
    counter, bound = (condition[name] for name in end.operands)
    index = re.search(r"index=(\d+)", counter.rest)
    if counter.opcode != "get-tuple-element" or bound.opcode != "constant" or index is None:
        return None
    state, first = scope[loop.operands[0]], 0  # where loops begin, if the first value is not in sight
    if state.opcode == "tuple":
        start = scope[state.operands[int(index[1])]]
        while start.opcode == "copy":
            start = scope[start.operands[0]]
        first = int(start.operands[0]) if start.opcode == "constant" else 0
    return max(int(bound.operands[0]) - first, 0)


def arrays(shape: str) -> list[Array]:
    """Type, dimensions and layout of the arrays of a shape, which may be a tuple."""
    return re.findall(r"(\w+)\[([\d,]*)\](?:\{([^}]*)\})?", shape)


def dims(shape: str) -> list[int]:
    """The dimensions of a shape's first array."""
    return numbers(arrays(shape)[0][1])


def size(shape: str, anywhere: bool = False) -> float:
    """Bytes of a shape in HBM; in any memory if `anywhere`."""
    return sum(hbm(array, anywhere) for array in arrays(shape))


def hbm(array: Array, anywhere: bool = False) -> float:
    """Bytes of an array with its padding; 0 where it is in another memory than HBM, unless `anywhere`."""
    kind, lengths, layout = array
    if "S(" in layout and not anywhere:
        return 0.0
    sizes = numbers(lengths)
    order, _, tiles = layout.partition(":")
    tile = re.match(r"T\(([\d,]+)\)", tiles)
    for axis, multiple in zip(numbers(order), reversed(numbers(tile[1]) if tile else []), strict=False):
        sizes[axis] = rounded(sizes[axis], multiple)
    return BYTES.get(kind, 0) * math.prod(sizes)


def numbers(text: str) -> list[int]:
    """The integers in a list that is separated by commas."""
    return [int(number) for number in text.split(",") if number]


def rounded(value: int, multiple: int) -> int:
    """The value rounded up to a multiple."""
    return -(-value // multiple) * multiple
