"""Memory of a compiled program on one device, by what it holds."""

from __future__ import annotations

import re

from jaxdiff.app.plan.hlo import Module, rounded, size

KINDS = {
    "state.params": "params",
    "state.opt_state": "optimizer",
    "state.ema": "EMA",
    "state.frozen": "frozen",
    "params": "params",
    "frozen": "frozen",
    "batch": "batch",
    "given": "batch",
}
REST = "activations and temporaries"


def peak_bytes(report: str) -> int:
    """Bytes of HBM that a program holds at once, arguments included, by the compiler's memory report."""
    found = re.search(r"^Memory Space: default .*\nTotal bytes: (\d+)", report, re.M)
    assert found is not None, "a memory report without the default memory space"
    return int(found[1])


def by_kind(module: Module, report: str) -> dict[str, int]:
    """Bytes of HBM by kind: the arguments by their names, padded as they lie there, and the rest of the peak."""
    found: dict[str, int] = dict.fromkeys(("params", "optimizer", "EMA", "frozen", "batch", "other arguments"), 0)
    for instruction in module.computations[module.entry].values():
        if instruction.opcode == "parameter":
            name = re.search(r'op_name="([\w.]+)', instruction.rest)
            prefix = ".".join(name[1].split(".")[:2]) if name else ""
            kind = KINDS.get(prefix, KINDS.get(prefix.split(".")[0], "other arguments"))
            found[kind] += rounded(int(size(instruction.shape)), 512)
    found[REST] = peak_bytes(report) - sum(found.values())
    return {kind: value for kind, value in found.items() if value}
