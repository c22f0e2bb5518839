"""Functions that may be called without `jit`: compiled once for each program, not once for each call.

JAX compiles a loop whenever its body is a new function, and the body of a sampler's loop is new in each call.
"""

from __future__ import annotations

import functools
import hashlib
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import jax
import numpy as np
from jax.core import Tracer, eval_jaxpr

PROGRAMS = 64  # compiled ones that are kept

P = ParamSpec("P")
T = TypeVar("T")

_programs: OrderedDict[Any, Callable[..., list[Any]]] = OrderedDict()


def compiled_once(function: Callable[P, T]) -> Callable[P, T]:
    """`function` of arrays and functions, run as one compiled program: a call that traces to the same program compiles nothing.

    It is traced in every call, so what a denoiser closes over may change between calls. The arrays that it closes over are
    arguments of the program, not constants, except for those of a jitted function within it. Inside `jit`, `grad` and `vmap` it is
    `function` itself.
    """
    plain: Callable[..., T] = function
    config: Any = jax.config

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        leaves, tree = jax.tree.flatten((args, kwargs))
        places = [place for place, leaf in enumerate(leaves) if isinstance(leaf, jax.Array | np.ndarray)]
        arrays = [leaves[place] for place in places]
        if config.jax_disable_jit or _traced(arrays):
            return function(*args, **kwargs)

        def of_arrays(arrays):
            filled = dict(enumerate(leaves)) | dict(zip(places, arrays, strict=True))
            args, kwargs = jax.tree.unflatten(tree, filled.values())
            return plain(*args, **kwargs)

        closed, shapes = jax.make_jaxpr(of_arrays, return_shape=True)(arrays)
        if _traced(closed.consts):
            return function(*args, **kwargs)
        return jax.tree.unflatten(jax.tree.structure(shapes), _program(closed, arrays)(closed.consts, arrays))

    return call


def traced_once(function: Callable[..., T]) -> Callable[..., T]:
    """`compiled_once(function)` of arrays alone, traced anew for other shapes only: what it closes over must stay as it is."""
    kept: dict[Any, tuple[Any, Callable[..., list[Any]], Any]] = {}

    def call(*args: Any) -> T:
        leaves, tree = jax.tree.flatten(args)
        key = tree, tuple(map(jax.typeof, leaves))
        if key not in kept:
            flat = lambda leaves: function(*jax.tree.unflatten(tree, leaves))  # noqa: E731
            closed, shapes = jax.make_jaxpr(flat, return_shape=True)(leaves)
            kept[key] = closed.consts, _program(closed, leaves), jax.tree.structure(shapes)
        consts, program, structure = kept[key]
        return jax.tree.unflatten(structure, program(consts, leaves))

    return call


def _traced(arrays: list[Any]) -> bool:
    return any(isinstance(array, Tracer) for array in arrays)


def _program(closed: Any, arrays: list[Any]) -> Callable[..., list[Any]]:
    """The compiled program of a jaxpr, a function of its constants and arguments, where it is kept or from now on."""
    lowered = jax.jit(lambda consts, arrays: eval_jaxpr(closed.jaxpr, consts, *arrays)).lower(closed.consts, arrays)
    given = (*closed.consts, *arrays)
    kinds = tuple(jax.typeof(array) for array in given)  # the text does not tell a typed key from one of uint32
    placed = tuple(getattr(array, "sharding", None) for array in given)
    name = hashlib.sha256(lowered.as_text().encode()).digest(), kinds, placed
    if name not in _programs:
        _programs[name] = lowered.compile()
        if len(_programs) > PROGRAMS:
            _programs.popitem(last=False)
    _programs.move_to_end(name)
    return _programs[name]
