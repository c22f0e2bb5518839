"""Low-rank adapters: a difference of params as a small tree, added to the params where they are used.

A network does not know of them, `network(merged(params, adapters), ...)`: inside jit the sum is a part of the program, whose
gradient reaches the adapters; merged once, a student costs what its base does. Differences add up over several calls of
`merged`, and one made on a base may be merged with another base of the same shape (LCM-LoRA, Luo et al. 2023b).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import Array
from jax.typing import ArrayLike, DTypeLike

Params = Any
Chosen = Callable[[tuple[str, ...], Any], bool]  # (path, array or its shape) -> whether it gets an adapter


def kernels(path: tuple[str, ...], kernel: Any) -> bool:
    """Whether it is a kernel of a dense layer or a convolution."""
    return path[-1] == "kernel"


def projections(path: tuple[str, ...], kernel: Any) -> bool:
    """Whether it is a kernel of a dense layer, attention's among them."""
    return path[-1] == "kernel" and kernel.ndim == 2


def init(key: Array, params: Params, rank: int, chosen: Chosen = kernels) -> Params:
    """Adapters `{"down": [fan_in, rank], "up": [rank, out]}` in the places of the chosen kernels, where they are smaller.

    Hu et al. (2021), section 4.1: down is normal, up is zero, so that merged params start as the params. A convolution
    `[h, w, in, out]` counts as the matrix `[h * w * in, out]`: its adapter is one to `rank` channels, and a 1x1 one from them.
    At least float32, whatever the params are, which may be shapes.

    Raises:
        ValueError: no chosen kernel is larger than its adapter; the rank is too high, or nothing is chosen.
    """
    if rank < 1:
        raise ValueError(f"adapters: rank must be 1 or more, got {rank}")
    shapes = {path: leaf for path, leaf in _flat(params).items() if leaf.ndim > 1 and chosen(path, leaf)}
    smaller = {path: leaf for path, leaf in shapes.items() if rank * sum(_matrix(leaf)) < math.prod(leaf.shape)}
    if not smaller:
        raise ValueError(
            f"adapters: of {len(shapes)} chosen kernels none is larger than its adapter of rank {rank}; lower the rank"
        )

    def adapter(key: Array, kernel: Any) -> dict[str, Array]:
        (fan_in, out), dtype = _matrix(kernel), _wide(kernel.dtype)
        down = jax.random.normal(key, (fan_in, rank), dtype) / math.sqrt(fan_in)
        return {"down": down, "up": jnp.zeros((rank, out), dtype)}

    keys = jax.random.split(key, len(smaller))
    return unflatten_dict({path: adapter(key, leaf) for key, (path, leaf) in zip(keys, smaller.items(), strict=True)})


def merged(params: Params, adapters: Params, scale: ArrayLike = 1.0) -> Params:
    """The params with `W + scale * down @ up` for each adapted kernel W, in W's dtype, and the others as they are.

    Hu et al. (2021), equation 3, without their `alpha / rank`: the scale goes from the base (0, exactly) to the student (1),
    and may be an argument of a compiled function.

    Raises:
        ValueError: the adapters were made for params of other names or shapes.
    """
    flat, pairs = _flat(params, keep_empty_nodes=True), {}
    for path, leaf in _flat(adapters).items():
        pairs.setdefault(path[:-1], {})[path[-1]] = leaf
    for path, pair in pairs.items():
        _check(path, flat.get(path), pair)
    return unflatten_dict({**flat, **{path: _sum(flat[path], **pair, scale=scale) for path, pair in pairs.items()}})


def _flat(tree: Params, **options: Any) -> dict[tuple[str, ...], Any]:
    return flatten_dict(tree, **options)


def _sum(kernel: Array, down: Array, up: Array, scale: ArrayLike) -> Array:
    dtype = _wide(kernel.dtype)
    product = jnp.matmul(down.astype(dtype), up.astype(dtype), precision="highest")
    return (kernel.astype(dtype) + jnp.asarray(scale, dtype) * product.reshape(kernel.shape)).astype(kernel.dtype)


def _check(path: tuple[str, ...], kernel: Any, pair: dict[str, Any]) -> None:
    where, fitting = f"adapters: {'/'.join(path)}", "give adapters that were made for these params"
    if pair.keys() != {"down", "up"}:
        raise ValueError(f"{where} has {', '.join(sorted(pair))}, and not down and up; {fitting}")
    if kernel is None:
        raise ValueError(f"{where} is not among the params; {fitting}")
    down, up = pair["down"].shape, pair["up"].shape
    if kernel.ndim < 2 or (*down[:-1], *up[1:]) != _matrix(kernel) or down[1:] != up[:-1]:
        raise ValueError(f"{where} is {kernel.shape}, which down {down} and up {up} do not fit; {fitting}")


def _matrix(kernel: Any) -> tuple[int, int]:
    return math.prod(kernel.shape[:-1]), kernel.shape[-1]


def _wide(dtype: DTypeLike) -> DTypeLike:
    return jnp.float64 if dtype == jnp.float64 else jnp.float32  # a small difference is lost in bfloat16
