"""PyTorch's zip archives (`torch.save` since PyTorch 1.6), read without PyTorch and without running anything that they hold.

An archive is a pickle, which says how tensors are made of storages, and one uncompressed entry for each storage. The pickle is
read by an unpickler that knows nothing but tensors and containers: every name in it is looked up in a table of ours, or refused.
"""

from __future__ import annotations

import io
import mmap
import pathlib
import pickle
import pickletools
import re
import struct
import zipfile
from collections.abc import Iterator
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from jaxdiff.io.errors import DataError, first_line

WRAPPERS = ("state_dict", "model", "params")
RESAVE = "save the state_dict alone with torch.save, or as safetensors"
AGAIN = "copy or download it again, whole"


class Storage(NamedTuple):
    """An entry of the archive, and the dtype that it is read as: the name of one where NumPy has none, None if untyped."""

    key: str
    dtype: np.dtype | str | None


class View(NamedTuple):
    """A tensor as the pickle describes it; offset and strides count elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class Container(dict):
    """A dict of the pickle, which ignores attributes such as the `_metadata` of a state_dict."""

    __slots__ = ()

    def __setstate__(self, state: object) -> None:
        pass


class Known(NamedTuple):
    """A name that a pickle may hold: a dtype, or what is called in place of the function that it names.

    The unpickler gets these alone, and no class, function or module. A tuple cannot be changed by the pickle.
    """

    dtype: np.dtype | str | None = None
    make: Any = None

    def __call__(self, *args: object) -> Any:
        """What the function of that name would make."""
        return self.make(*args)


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, grad: Any, hooks: Any, metadata: Any = None) -> View:
    whole = type(offset) is int and all(type(n) is int for n in (*shape, *strides))
    if not isinstance(storage, Storage) or not whole or len(shape) != len(strides) or metadata:
        raise pickle.UnpicklingError("a tensor of a kind that is not known")
    return View(storage, offset, tuple(shape), tuple(strides))


def _typed_tensor(storage: Any, *rest: Any) -> View:
    layout, (dtype, *metadata) = rest[:5], rest[5:]
    return _tensor(Storage(storage.key, dtype.dtype), *layout, *metadata)


def _nothing(*args: object) -> Container:
    """In place of values that hold no tensor."""
    return Container()


STORAGES = {"Float": "float32", "Double": "float64", "Half": "float16", "BFloat16": "bfloat16", "Long": "int64", "Int": "int32"}
STORAGES |= {"Short": "int16", "Char": "int8", "Byte": "uint8", "Bool": "bool"}
DTYPES = {name: np.dtype(name) for name in (*STORAGES.values(), "uint16", "uint32", "uint64") if name != "bfloat16"}
DTYPES["bfloat16"] = np.dtype(ml_dtypes.bfloat16)
NAMES = {
    "collections.OrderedDict": Known(make=Container),
    "torch.Size": Known(make=tuple),
    "torch._utils._rebuild_tensor_v2": Known(make=_tensor),
    "torch._utils._rebuild_tensor_v3": Known(make=_typed_tensor),
    "torch._utils._rebuild_parameter": Known(make=lambda data, grad, hooks: data),
    "torch.storage.UntypedStorage": Known(),
    **{f"torch.{name}Storage": Known(DTYPES[dtype]) for name, dtype in STORAGES.items()},
    **{f"torch.{name}": Known(dtype) for name, dtype in DTYPES.items()},
    **dict.fromkeys(("torch.device", "numpy.dtype", "_codecs.encode"), Known(make=_nothing)),
    **dict.fromkeys(("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar"), Known(make=_nothing)),
}
NO_DTYPE = re.compile(r"torch\.((float[48]|complex|q?u?int)\d*\w*|(Q|Complex)\w+Storage)")  # of quantised and complex tensors


class Reader(pickle.Unpickler):
    """An unpickler that makes tensors, containers and numbers alone."""

    def __init__(self, path: pathlib.Path, data: bytes) -> None:
        super().__init__(io.BytesIO(data))
        self.path = path

    def find_class(self, module: str, name: str, /) -> Any:
        """What stands in for a name; nothing is imported."""
        full = f"{module}.{name}"
        if known := NAMES.get(full):
            return known
        if NO_DTYPE.fullmatch(full):
            return Known(full)
        raise DataError(f"{self.path} holds {full[:100]!r}, which is not a tensor; nothing of it was run; {RESAVE}")

    def persistent_load(self, pid: Any, /) -> Storage:
        """The storage that a tensor lies in."""
        kind, storage, key, *_ = pid
        if kind != "storage" or not isinstance(storage, Known) or type(key) is not str:
            raise pickle.UnpicklingError("a storage of a kind that is not known")
        return Storage(key, storage.dtype)


def read_archive(path: pathlib.Path) -> tuple[dict[str, np.ndarray], mmap.mmap]:
    """The tensors of an archive by name, as views of the file, which is mapped into memory and not read; and that map.

    Dicts, lists and tuples inside each other give names with dots. If all tensors are inside one `state_dict`, `model` or `params`,
    names start there: `{"state_dict": {"weight": w}, "epoch": 3}` holds `weight`. Values that are no tensors are left out.

    Raises:
        DataError: the file is damaged, is of another format, or holds what is not a tensor.
    """
    try:
        with path.open("rb") as stream:
            if stream.read(4) != b"PK\3\4":
                raise DataError(f"{path} is not a zip archive, as PyTorch writes them since 1.6; load it in PyTorch, and {RESAVE}")
            file = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
            with zipfile.ZipFile(stream) as archive:
                return _read(path, archive, file), file
    except DataError:
        raise
    except Exception as error:  # zipfile and pickle raise many kinds
        raise DataError(f"{path} is not a whole archive of PyTorch ({first_line(error)}); {AGAIN}, or {RESAVE}") from error


def _read(path: pathlib.Path, archive: zipfile.ZipFile, file: mmap.mmap) -> dict[str, np.ndarray]:
    entries = {info.filename.partition("/")[2]: info for info in archive.infolist()}
    if "byteorder" in entries and (order := bytes(_stored(file, entries["byteorder"]))) != b"little":
        raise DataError(f"{path} has the byte order {order.decode(errors='replace')!r}, not 'little'; save it as safetensors")
    _stored(file, entries["data.pkl"])
    data = archive.read(entries["data.pkl"])  # compares its checksum
    for code, argument, _ in pickletools.genops(data):  # also finds lengths beyond the end, for which pickle takes memory first
        if code.name.startswith("EXT") or (code.name in ("PUT", "LONG_BINPUT") and int(argument or 0) > len(data)):
            raise pickle.UnpicklingError(f"its pickle holds {code.name}")
    views = _views(path, Reader(path, data).load())
    return {name: _array(path, name, view, entries, file) for name, view in views.items()}


def _views(path: pathlib.Path, tree: Any) -> dict[str, View]:
    """The tensors of a tree by their names with dots, from the single wrapper on that holds all of them."""
    while isinstance(tree, dict) and len(full := [key for key, value in tree.items() if any(_leaves(value))]) == 1:
        if full[0] not in WRAPPERS or not isinstance(tree[full[0]], dict):
            break
        tree = tree[full[0]]
    pairs = list(_leaves(tree)) if isinstance(tree, dict) else []
    views = dict(pairs)
    if not views or len(views) < len(pairs):
        what = "two tensors of one name" if views else "no dict of tensors"
        raise DataError(f"{path} holds {what}; {RESAVE}")
    return views


def _leaves(tree: Any, name: str = "") -> Iterator[tuple[str, View]]:
    if isinstance(tree, View):
        yield name, tree
    elif isinstance(tree, dict | list | tuple):
        for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
            yield from _leaves(value, f"{name}.{key}" if name else str(key))


def _array(path: pathlib.Path, name: str, view: View, entries: dict[str, zipfile.ZipInfo], file: mmap.mmap) -> np.ndarray:
    """A read-only view of the storage. NumPy also checks that it stays inside, but in 64 bits, which may overflow."""
    dtype, key = view.storage.dtype, f"data/{view.storage.key}"
    if not isinstance(dtype, np.dtype):
        raise unsupported(path, name, dtype or "of no dtype")
    if key not in entries:
        raise DataError(f"{path} lacks {key!r}, which holds {name!r}; {AGAIN}")
    data, size = _stored(file, entries[key]), dtype.itemsize
    last = view.offset + sum((n - 1) * stride for n, stride in zip(view.shape, view.strides, strict=True))
    inside = 0 in view.shape or (last + 1) * size <= len(data)
    if not inside or min(view.offset, *view.shape, *view.strides, 0) < 0:
        raise DataError(f"{path}: {name!r} does not fit in {key!r}; {AGAIN}")
    try:
        return np.ndarray(view.shape, dtype, data, size * view.offset, tuple(size * stride for stride in view.strides))
    except ValueError as error:
        raise DataError(f"{path}: {name!r} does not fit in {key!r} ({first_line(error)}); {AGAIN}") from error


def _stored(file: mmap.mmap, entry: zipfile.ZipInfo) -> memoryview:
    """The bytes of an entry in the file, unread; the lengths in its own header may differ from those in the archive's directory."""
    if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
        raise zipfile.BadZipFile(f"{entry.filename} is compressed or encrypted")
    signature, name, extra = struct.unpack_from("<4s22xHH", file, entry.header_offset)
    if signature != b"PK\3\4":
        raise zipfile.BadZipFile(f"{entry.filename} is not where the archive says")
    start = entry.header_offset + 30 + name + extra
    return memoryview(file)[start : start + entry.file_size]


def unsupported(path: pathlib.Path, name: str, dtype: str) -> DataError:
    """The error of a tensor that has no dtype of ours."""
    return DataError(f"{path}: {name!r} is {dtype}; convert its tensors to float16, bfloat16 or float32, and save them again")
