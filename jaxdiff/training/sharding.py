"""Sharding rules: which dimension of which parameter is split over which axis of a device mesh.

A parameter's dimensions are named by its name and rank (`dimensions`), and `Rules` say which of those names each mesh axis
may split. Optimizer moments and averages hold arrays of the same names, so they lie as their parameters do.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

DATA, FSDP, TENSOR = AXES = ("data", "fsdp", "tensor")


@dataclass(frozen=True)
class Rules:
    """What each mesh axis may split, by the names of dimensions, the first that it divides first.

    Attributes:
        batch: mesh axes over which the rows of a batch are spread.
        fsdp: of all parameters, or else the longest dimension that can be divided; they are gathered where they are used
            (ZeRO: Rajbhandari et al. 2020, stage 3).
        tensor: of parameters that stay split where they are used, so that each device computes part of the features between
            two layers (Shoeybi et al. 2019): inside residual blocks and feed-forward layers.
        small: arrays of fewer values are held whole by every device: moving them costs more than keeping them.
    """

    batch: tuple[str, ...] = (DATA, FSDP)
    fsdp: tuple[str, ...] = ("outputs", "inputs", "features", "classes")
    tensor: tuple[str, ...] = ("hidden",)
    small: int = 2**12


RULES = Rules()
KINDS = {4: "convolution", 3: "other", 2: "dense", 1: "norm and bias", 0: "scalar"}


def dimensions(path: Any, rank: int) -> tuple[str, ...]:
    """The names of a parameter's dimensions, such as `("height", "width", "inputs", "outputs")` of a convolution's kernel."""
    names = [str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path]
    name, layer, inside = ([""] * 3 + names)[-1], ([""] * 3 + names)[-2], ([""] * 3 + names)[-3]
    if name == "embedding":
        return ("classes", "features")
    if name != "kernel" or rank not in (2, 4):
        return ("features",) if rank == 1 else ("other",) * rank
    inputs, outputs = "inputs", "outputs"
    if inside.startswith("residual_"):
        inputs, outputs = {"Conv_0": ("inputs", "hidden"), "Conv_1": ("hidden", "outputs")}.get(layer, (inputs, outputs))
    if inside == "feed" and layer == "out":
        inputs = "hidden"
    if inside.removesuffix("_out").endswith(("_mlp", "_attention")):  # of transformers: features, and heads
        inputs, outputs = ("hidden", "outputs") if layer == "out" else ("inputs", "hidden")
    return ("height", "width", inputs, outputs)[-rank:]


def spec(path: Any, shape: tuple[int, ...], mesh: Mesh, rules: Rules = RULES) -> PartitionSpec:
    """Where the mesh axes `fsdp` and `tensor` split a parameter; nowhere if it is small, or no dimension can be divided."""
    taken: list[str | None] = [None] * len(shape)
    if math.prod(shape) < rules.small:
        return PartitionSpec()
    names = dimensions(path, len(shape))
    longest = sorted(range(len(shape)), key=lambda place: -shape[place])
    for axis, wanted, others in ((TENSOR, rules.tensor, []), (FSDP, rules.fsdp, longest)):
        size = mesh.shape[axis]
        places = [place for name in wanted for place, each in enumerate(names) if each == name] + others
        able = [place for place in places if taken[place] is None and shape[place] % size == 0]
        if size > 1 and able:
            taken[able[0]] = axis
    return PartitionSpec(*taken) if any(taken) else PartitionSpec()


def shardings(mesh: Mesh, tree: Any, rules: Rules = RULES) -> Any:
    """The sharding of every array (or shape) of a tree of parameters, or of what follows them."""
    return jax.tree_util.tree_map_with_path(lambda path, leaf: NamedSharding(mesh, spec(path, leaf.shape, mesh, rules)), tree)


def table(mesh: Mesh, params: Any, rules: Rules = RULES) -> str:
    """How the params are split, a line for each kind of array and split: arrays, values, and the share that a device holds."""
    counts: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0, 0])
    for path, leaf in jax.tree.leaves_with_path(params):
        axes, names = spec(path, leaf.shape, mesh, rules), dimensions(path, leaf.ndim)
        split = [f"{names[place]} over {axis} {mesh.shape[axis]}" for place, axis in enumerate(axes) if axis is not None]
        kind = "embedding" if names[:1] == ("classes",) else KINDS.get(leaf.ndim, "other")
        entry = counts[kind, ", ".join(split) or "whole on each device"]
        parts = math.prod(mesh.shape[axis] for axis in axes if axis is not None)
        for place, value in enumerate((1, leaf.size, leaf.size // parts)):
            entry[place] += value
    lines = [f"  {'params':<14}{'arrays':>7}{'values':>14}{'a device':>14}  split"]
    for (kind, split), (arrays, values, held) in sorted(counts.items(), key=lambda item: -item[1][1]):
        lines.append(f"  {kind:<14}{arrays:>7}{values:>14,}{held:>14,}  {split}")
    return "\n".join(lines)
