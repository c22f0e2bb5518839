"""Scheduled HLO as the TPU compiler writes it: computations, shapes, and how often each instruction runs."""

from __future__ import annotations

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


class Module(NamedTuple):
    """The computations of a program by name, each its instructions by name, and the name of the entry."""

    computations: dict[str, Computation]
    entry: str

    def called(self, instruction: Instruction, role: str) -> Computation:
        """The computation that an instruction names as its `calls`, `body`, `condition` or `to_apply`."""
        return self.computations[_attribute(instruction, role)]


class Executed(NamedTuple):
    """An instruction, the computation it is in, and how often a run of the program runs it."""

    instruction: Instruction
    scope: Computation
    times: int


Array = tuple[str, str, str]  # type, dimensions, layout


def parsed(text: str) -> Module:
    """The module of an HLO text."""
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
    return Module(computations, entry)


def executed(module: Module) -> tuple[list[Executed], list[str]]:
    """What a run of the program runs, fusions as one, and notes of what its text does not say.

    The body of a loop counts as often as it runs; once where that is known at run time alone. Branches count nothing.
    """
    notes: list[str] = []
    return list(_executed(module, module.entry, 1, notes)), notes


def _executed(module: Module, name: str, times: int, notes: list[str]) -> Iterator[Executed]:
    scope = module.computations[name]
    for instruction in scope.values():
        if instruction.opcode == "while":
            runs = _trips(module, scope, instruction)
            if runs is None:
                notes.append(f"loop {instruction.name[1:]} runs as often as is known at run time alone; it counts once")
            yield from _executed(module, _attribute(instruction, "body"), times * (1 if runs is None else runs), notes)
        elif instruction.opcode == "call":
            yield from _executed(module, _attribute(instruction, "to_apply"), times, notes)
        elif instruction.opcode == "conditional":
            notes.append(f"branch {instruction.name[1:]} is chosen at run time; it counts nothing")
        else:
            yield Executed(instruction, scope, times)


def _trips(module: Module, scope: Computation, loop: Instruction) -> int | None:
    """How often a loop runs whose condition is `counter < constant`, from the counter's first value on; None: another."""
    condition = module.called(loop, "condition")
    end = list(condition.values())[-1]
    if end.opcode != "compare" or "direction=LT" not in end.rest:
        return None
    counter, bound = (condition[name] for name in end.operands)
    index = re.search(r"index=(\d+)", counter.rest)
    if counter.opcode != "get-tuple-element" or bound.opcode != "constant" or index is None:
        return None
    state = scope[loop.operands[0]]
    first = _constant(scope, state.operands[int(index[1])]) if state.opcode == "tuple" else 0
    return max(int(bound.operands[0]) - first, 0)


def _constant(scope: Computation, name: str) -> int:
    """The whole number that an instruction copies; 0, where loops begin, if it is not in sight."""
    found = scope[name]
    while found.opcode == "copy":
        found = scope[found.operands[0]]
    return int(found.operands[0]) if found.opcode == "constant" else 0


def _attribute(instruction: Instruction, role: str) -> str:
    found = re.search(rf"{role}=(%[\w.-]+)", instruction.rest)
    assert found is not None, f"{instruction.name} names no {role}"
    return found[1]


def arrays(shape: str) -> list[Array]:
    """Type, dimensions and layout of the arrays of a shape, which may be a tuple."""
    return re.findall(r"(\w+)\[([\d,]*)\](?:\{([^}]*)\})?", shape)


def dims(shape: str) -> list[int]:
    """The dimensions of a shape's first array."""
    return numbers(arrays(shape)[0][1])


def size(shape: str, anywhere: bool = False) -> float:
    """Bytes of a shape in HBM; wherever it is kept if `anywhere`."""
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


def dense(shape: str) -> list[float]:
    """Bytes of the arrays of a shape without padding."""
    return [BYTES.get(kind, 0) * math.prod(numbers(lengths)) for kind, lengths, _ in arrays(shape)]


def numbers(text: str) -> list[int]:
    """Whole numbers with commas between them."""
    return [int(number) for number in text.split(",") if number]


def rounded(value: int, multiple: int) -> int:
    """The smallest multiple that is not below a value."""
    return -(-value // multiple) * multiple
