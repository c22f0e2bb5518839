"""Our params from published arrays, and back, by a table of names."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxdiff.interop.layouts import LEAVES
from jaxdiff.interop.unet_names import OLD_ATTENTION, Row
from jaxdiff.io import few
from jaxdiff.io.errors import DataError
from jaxdiff.io.lazy import Lazy


class Renamed(Mapping[str, np.ndarray]):
    """Some arrays of a file by other names; each is read when it is looked at."""

    def __init__(self, arrays: Mapping[str, np.ndarray], names: Mapping[str, str]) -> None:
        """`names` are from the new ones to those of `arrays`."""
        self.arrays, self.names = arrays, names

    def __getitem__(self, name: str) -> np.ndarray:
        return self.arrays[self.names[name]]

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


def below(arrays: Mapping[str, np.ndarray], prefix: str) -> Mapping[str, np.ndarray]:
    """The arrays whose names begin so, without that beginning."""
    return Renamed(arrays, {name.removeprefix(prefix): name for name in arrays if name.startswith(prefix)})


def load(rows: Iterable[Row], shapes: Any, arrays: Mapping[str, np.ndarray], where: str, hint: str = "") -> Any:
    """The params of the shapes, float32 and lazy, from published arrays by name.

    Arrays that no row names are not read: see `unknown`.

    Raises:
        DataError: an array is missing or has another shape; the first ones are named.
    """
    flat: dict[Any, Any] = flatten_dict(shapes)
    missing, wrong, parts = [], [], {}
    for path, names, row in _named(rows, flat):
        absent = [name for name in names if name not in arrays]
        missing += absent
        if absent:
            continue
        empty = [np.broadcast_to(np.int8(0), arrays[name].shape) for name in names]
        found = _loaded(row, empty, path)
        if found is None or found.shape != flat[path].shape:
            wanted = row.layout.store(np.broadcast_to(np.int8(1), flat[path].shape), path[-1])
            pairs = list(zip(names, (list(part.shape) for part in empty), (list(each.shape) for each in wanted), strict=True))
            name, shape, other = next((pair for pair in pairs if pair[1] != pair[2]), pairs[0])
            wrong.append(f"{name} is {shape}, not {other}")
        parts[path] = names, row
    if missing or wrong:
        raise DataError(_fault(where, missing, wrong, hint))
    if strange := [path for path in flat if path not in parts]:
        raise ValueError(f"params: the table of names lacks {'/'.join(strange[0])}")
    kind = np.dtype(np.float32)
    found = {path: partial(_read, row, arrays, names, path) for path, (names, row) in parts.items()}
    return unflatten_dict({path: Lazy(flat[path].shape, kind, value) for path, value in found.items()})


def unknown(rows: Iterable[Row], shapes: Any, names: Iterable[str]) -> list[str]:
    """Those of the names that no row of the table has."""
    known = {name for _, each, _ in _named(rows, flatten_dict(shapes)) for name in each}
    return [name for name in names if name not in known]


def store(rows: Iterable[Row], params: Any) -> Iterator[tuple[str, np.ndarray]]:
    """The published arrays of our params, by name, in the order of the rows."""
    flat: dict[Any, Any] = flatten_dict(params)
    for path, names, row in _named(rows, flat):
        yield from zip(names, row.layout.store(np.asarray(flat[path]), path[-1]), strict=True)


def with_todays_names(arrays: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
    """The arrays, those of attention that diffusers named otherwise before version 0.15 by today's names."""

    def today(name: str) -> str:
        parts = name.split(".")
        if "attentions" in parts and parts[-2] in OLD_ATTENTION:
            parts[-2] = OLD_ATTENTION[parts[-2]]
        return ".".join(parts)

    return Renamed(arrays, {today(name): name for name in arrays})


def _named(rows: Iterable[Row], flat: Mapping[tuple[str, ...], Any]) -> Iterator[tuple[tuple[str, ...], list[str], Row]]:
    """The paths of our arrays, with their published names."""
    by_layer = {row.ours: row for row in rows}
    for path in flat:
        row = by_layer.get("/".join(path[:-1]))
        if row is not None:
            yield path, [f"{name}.{LEAVES[path[-1]]}" for name in row.names], row


def _loaded(row: Row, parts: list[np.ndarray], path: tuple[str, ...]) -> np.ndarray | None:
    try:
        return row.layout.load(parts, path[-1])
    except (ValueError, TypeError, IndexError):  # numpy cannot join or split arrays of such shapes
        return None


def _read(row: Row, arrays: Mapping[str, np.ndarray], names: list[str], path: tuple[str, ...]) -> np.ndarray:
    array = row.layout.load([arrays[name] for name in names], path[-1])
    return np.array(array, np.float32, order="C")  # a copy, so that the file's pages are free again


def _fault(where: str, missing: list[str], wrong: list[str], hint: str) -> str:
    said = [f"lacks {few(missing)}"] if missing else []
    said += [few(wrong)] if wrong else []
    return f"{where} does not fit its network: {'; '.join(said)}" + (f"; {hint}" if hint else "")


def shapes_of(init: Any, *arguments: Any, **given: Any) -> Any:
    """The shapes of a module's params, without computing them."""
    return jax.eval_shape(init, jax.random.key(0), *arguments, **given)["params"]
