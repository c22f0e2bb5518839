"""`jaxdiff inspect`: its flags, and what it does."""

import pathlib
from collections.abc import Iterator
from dataclasses import dataclass

import tyro

from jaxdiff.interop import inferred, tensors
from jaxdiff.io import count


@dataclass(frozen=True)
class Inspect:
    """List the arrays of a file of weights, or of a folder's, and the family that their names are of. Nothing in it is run.

    Example: jaxdiff inspect downloads/model.safetensors
    """

    file: tyro.conf.Positional[pathlib.Path]
    """A .safetensors, an archive of PyTorch, an index of shards, or a folder of one."""


def inspect(args: Inspect) -> int:
    found = tensors.open_tensors(args.file)
    print("\n".join(_lines(found)))
    return 0


def _lines(found: tensors.Tensors) -> Iterator[str]:
    for name, array in found.arrays.items():
        yield f"{name}  {'x'.join(map(str, array.shape)) or 'a number'}  {array.dtype}"
    size, numbers = sum(array.nbytes for array in found.arrays.values()), sum(array.size for array in found.arrays.values())
    known = inferred.family(found.arrays) or "none that jaxdiff knows"
    yield f"{count(len(found), 'array')}, {count(numbers, 'number')}, {size / 1e6:.1f} MB; family: {known}"
