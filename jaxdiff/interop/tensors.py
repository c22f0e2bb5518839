"""Files of weights: safetensors, PyTorch's archives, and folders of shards; arrays by name, mapped into memory.

The safetensors library checks headers. Its NumPy reader copies every array where these are views, as an archive's are, and by
default keeps all that it has read resident; its writer wants all arrays in memory at once. Both are done here instead.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import mmap
import pathlib
import re
import struct
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import safetensors

from jaxdiff.interop import archives
from jaxdiff.io import files, paths
from jaxdiff.io.errors import ConfigError, DataError, first_line

TAGS = {"U64": "uint64", "I64": "int64", "F64": "float64", "F32": "float32", "U32": "uint32", "I32": "int32", "BF16": "bfloat16"}
TAGS |= {
    "F16": "float16",
    "U16": "uint16",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}  # as the library sorts them
DTYPES = {tag: archives.DTYPES[name] for tag, name in TAGS.items()}
ARCHIVES = (".pt", ".pth", ".bin", ".ckpt")
ENDINGS = (".safetensors", ".index.json", *ARCHIVES)
NAMES = ("diffusion_pytorch_model", "pytorch_model", "model")  # of a network's file in a folder


@dataclasses.dataclass(frozen=True, eq=False)
class Tensors(Mapping[str, np.ndarray]):
    """Arrays of one or several files by name, in the files' order: read-only, mapped into memory, in the dtypes that are stored.

    Names, shapes and dtypes are known without reading an array; its values are read where they are looked at. Taking an array
    out gives back the memory that the values of others hold, which are read again if they are looked at again: whoever goes
    through a large file needs memory for about one array at a time. Files must not be shortened while their arrays are in use.
    """

    arrays: Mapping[str, np.ndarray]
    maps: tuple[mmap.mmap, ...]
    metadata: Mapping[str, str]  # of a safetensors file

    def __getitem__(self, name: str) -> np.ndarray:
        array = self.arrays[name]
        self.release()
        return array

    def __iter__(self) -> Iterator[str]:
        return iter(self.arrays)

    def __len__(self) -> int:
        return len(self.arrays)

    def release(self) -> None:
        """Gives back the memory that values of the files hold; arrays stay as they are."""
        for file in self.maps:
            file.madvise(mmap.MADV_DONTNEED)


def open_tensors(path: pathlib.Path | str) -> Tensors:
    """The arrays of a file of weights, or of the single one in a folder.

    A file is a `.safetensors`, an archive of torch.save (`.pt`, `.pth`, `.bin`, `.ckpt`), or an `.index.json` of shards beside
    it. In a folder, files by the names of diffusers and transformers come first, safetensors before archives, whole files before
    shards, and a variant such as `model.fp16.safetensors` only if there is nothing else.

    Raises:
        ConfigError: there is no such file, or none or several in the folder.
        DataError: a file is damaged, incomplete, or of a dtype or a kind that is not read.
    """
    path = paths.path(path)
    if paths.in_bucket(path):
        raise ConfigError(f"{path} is in a bucket; copy it to a disk, from where it can be mapped into memory")
    file = _file_in(path) if path.is_dir() else path
    if not file.is_file():
        raise ConfigError(f"there is no file {file}; write the path of a {', '.join(ENDINGS)} file, or of the folder that holds it")
    try:
        if not file.stat().st_size:
            raise DataError(f"{file} is empty; {archives.AGAIN}")
        if file.suffix == ".json":
            return _open_index(file)
        return _open_file(file)
    except OSError as error:
        raise DataError(f"{file} cannot be read ({error.strerror or first_line(error)})") from error


def _file_in(folder: pathlib.Path) -> pathlib.Path:
    """The file of weights in a folder."""
    ranks = {file.name: _rank(file.name) for file in sorted(folder.iterdir()) if file.is_file()}
    known = {name: rank for name, rank in ranks.items() if rank is not None}
    best = [name for name, rank in known.items() if rank == min(known.values())]
    if len(best) == 1:
        return folder / best[0]
    found = f"several files of weights: {', '.join(best)}; write the path of one" if best else f"no {', '.join(ENDINGS)} file"
    raise ConfigError(f"{folder} holds {found}")


def _rank(name: str) -> tuple[bool, int] | None:
    """Where a name stands among those of a folder, the least first; None if it is no file of weights, or one shard of several."""
    variant = r"(\.[\w-]+)?"
    found = re.fullmatch(rf"(.+?){variant}\.(safetensors|bin|pt|pth|ckpt)(\.index{variant}\.json)?", name)
    if found is None or re.search(r"-\d{5}-of-\d{5}", name):
        return None
    stem, first, kind, index, second = found.groups()
    named = stem in NAMES and kind in ("safetensors", "bin")
    return bool(first or second), 2 * (kind == "bin") + bool(index) if named else 4


def _open_file(path: pathlib.Path) -> Tensors:
    if path.suffix in ARCHIVES:
        arrays, file = archives.read_archive(path)
        return Tensors(arrays, (file,), {})
    if path.suffix != ".safetensors":
        raise ConfigError(f"{path} is no file of weights by its name; write the path of a {', '.join(ENDINGS)} file")
    return _open_safetensors(path)


def _open_safetensors(path: pathlib.Path) -> Tensors:
    """The arrays of a safetensors file, which the library has checked: they follow the header, in its order and without a gap."""
    try:
        with safetensors.safe_open(path, "np") as checked:
            slices = {name: checked.get_slice(name) for name in checked.offset_keys()}
            stored = {name: (slice.get_dtype(), tuple(slice.get_shape())) for name, slice in slices.items()}
            metadata = dict(checked.metadata() or {})
    except safetensors.SafetensorError as error:
        raise DataError(f"{path} is not a whole safetensors file ({first_line(error)}); {archives.AGAIN}") from error
    if not stored:
        raise DataError(f"{path} holds no tensors; write the path of another file")
    for name, (tag, _) in stored.items():
        if tag not in DTYPES:
            raise archives.unsupported(path, name, tag)
    with path.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        file = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    sizes = [DTYPES[tag].itemsize * math.prod(shape) for tag, shape in stored.values()]
    offsets = itertools.accumulate(sizes, initial=8 + length)
    pairs = zip(stored.items(), offsets, strict=False)
    return Tensors({name: np.ndarray(shape, DTYPES[tag], file, at) for (name, (tag, shape)), at in pairs}, (file,), metadata)


def _open_index(path: pathlib.Path) -> Tensors:
    """The arrays that an index of shards lists."""
    shards = files.read_json(path).get("weight_map")
    if not isinstance(shards, dict) or not shards or not all(isinstance(shard, str) for shard in shards.values()):
        raise DataError(f"{path} is no index of shards (weight_map, of names to files, is missing); {archives.AGAIN}")
    opened: dict[str, Tensors] = {}
    for shard in sorted(set(shards.values())):
        file = path.parent / shard
        if pathlib.PurePath(shard).name != shard or not file.is_file():
            raise DataError(
                f"{path} names the shard {shard!r}, which is not beside it; copy or download all {len(set(shards.values()))}"
            )
        opened[shard] = _open_file(file)
    for name, shard in shards.items():
        if name not in opened[shard].arrays:
            raise DataError(f"{path} says that {shard!r} holds {name!r}, and it does not; copy or download both again")
    metadata = {key: value for each in opened.values() for key, value in each.metadata.items()}
    maps = tuple(file for each in opened.values() for file in each.maps)
    return Tensors({name: opened[shard].arrays[name] for name, shard in shards.items()}, maps, metadata)


def save_tensors(path: pathlib.Path | str, tensors: Mapping[str, Any], metadata: Mapping[str, str] | None = None) -> None:
    """Writes a safetensors file, whole or not at all; the same tensors give the same bytes, which are those of the library.

    Values are arrays, or `Lazy` ones, of which one at a time is in memory. Readers of PyTorch may want the metadata
    `{"format": "pt"}`.

    Raises:
        ConfigError: a dtype that is not written.
        ValueError: a Lazy array turns out to be of another shape or dtype.
    """
    tags = {name: tag for tag, name in TAGS.items()}
    stored: dict[str, tuple[str, tuple[int, ...]]] = {}
    for name, array in tensors.items():
        dtype = np.dtype(array.dtype).name
        if dtype not in tags or name == "__metadata__":
            raise ConfigError(f"{path}: {name} of {dtype} cannot be written; convert it to float16, bfloat16 or float32")
        stored[name] = tags[dtype], tuple(array.shape)
    order = sorted(stored, key=lambda name: (list(TAGS).index(stored[name][0]), name.encode()))
    with files.atomic_write(paths.path(path)) as draft, draft.open("wb") as stream:
        stream.write(_header({name: stored[name] for name in order}, metadata))
        for name in order:
            tag, shape = stored[name]
            array = np.asarray(tensors[name])
            if array.shape != shape or array.dtype.name != TAGS[tag]:
                raise ValueError(
                    f"{name} is {array.dtype.name} {list(array.shape)}, and {TAGS[tag]} {list(shape)} was to be written"
                )
            stream.write(np.ascontiguousarray(array, DTYPES[tag]).reshape(-1).view(np.uint8).data)


def _header(stored: Mapping[str, tuple[str, tuple[int, ...]]], metadata: Mapping[str, str] | None) -> bytes:
    """The length of the JSON, and the JSON, padded so that arrays begin at a multiple of 8 bytes."""
    entries: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    start = 0
    for name, (tag, shape) in stored.items():
        end = start + DTYPES[tag].itemsize * math.prod(shape)
        entries[name] = {"dtype": tag, "shape": shape, "data_offsets": (start, end)}
        start = end
    text = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text
