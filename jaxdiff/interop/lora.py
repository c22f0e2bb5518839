"""LoRA files as adapters of our networks (`models.lora`), and back: by the names of peft, diffusers and kohya's scripts."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxdiff.interop import lora_names, lora_settings, text_names
from jaxdiff.interop.layouts import PLAIN
from jaxdiff.interop.loading import unet_shapes
from jaxdiff.interop.tensors import Tensors, open_tensors, save_tensors
from jaxdiff.interop.texts import text_shapes
from jaxdiff.interop.unet_names import COMPVIS, DIFFUSERS, Row, table
from jaxdiff.io.errors import DataError
from jaxdiff.models import lora

BASES = {768: "Stable Diffusion 1", 1024: "Stable Diffusion 2", 1280: "Stable Diffusion XL's refiner", 2048: "Stable Diffusion XL"}


class Adapters(NamedTuple):
    """Adapters as `models.lora.merged` takes them, at the file's own strength where scale is 1: of the UNet, and of text encoders.

    `skipped` are the file's tensors of other text encoders, which were not read.
    """

    params: dict[str, Any]
    skipped: tuple[str, ...]
    texts: tuple[dict[str, Any], ...] = ()


class _Place(NamedTuple):
    """Where in our network a layer of a file belongs: the row, the kernel's shape, and which of the row's names it has."""

    row: Row
    kernel: Any
    number: int

    @property
    def path(self) -> tuple[str, ...]:
        return (*self.row.ours.split("/"), "kernel")

    def published(self) -> list[np.ndarray]:
        """Stand-ins of the row's published kernels."""
        return self.row.layout.store(np.broadcast_to(np.int8(0), self.kernel.shape), "kernel")


def load_lora(path: pathlib.Path | str, options: Mapping[str, Any], texts: Sequence[Mapping[str, Any]] = ()) -> Adapters:
    """The LoRA at a path as adapters of the UNet of such options (`interop.load(base).config`), float32.

    `alpha / rank` is part of up (Hu et al. 2021, section 4.1); without alphas it is 1. A convolution's down `[rank, in, h, w]` is
    the matrix `[h * w * in, rank]`. Where our network has queries, keys and values in one kernel, their ranks add up, unless all
    have the same down. Of text encoders those of the options `texts` are read, in their order; one that the file does not adapt
    has no adapters.

    Raises:
        ConfigError: there is no such file.
        DataError: the file is damaged, is no LoRA, one of another kind (DoRA, LoHa, LoKr, Tucker), or one of another network.
    """
    if options.get("kind") == "dit":
        raise DataError(f"{path}: LoRA files of transformers are not opened; jaxdiff trains one by distillation.lora_rank")
    arrays = open_tensors(path)
    numbers = {name: lora_names.text_number(name) for name in arrays}
    skipped = tuple(name for name, number in numbers.items() if number >= len(texts))
    names = lora_names.layers(arrays, path, skipped)
    own = {layer: each for layer, each in names.items() if lora_names.text_number(f"{layer}.") < 0}
    context = _context_hint({layer: arrays.arrays[each["down"]].shape for layer, each in own.items()}, options)
    settings = lora_settings.read(arrays, pathlib.Path(path), "unet.")
    adapters = _adapters(arrays, own, _places(options), settings, path, context)
    found = []
    for number, each in enumerate(texts):
        own = {layer: names[layer] for layer in names if lora_names.text_number(f"{layer}.") == number}
        settings = lora_settings.read(arrays, pathlib.Path(path), f"text_encoder{f'_{number + 1}' if number else ''}.")
        found.append(_adapters(arrays, own, _text_places(each), settings, path, ""))
    return Adapters(adapters, skipped, tuple(found))


def _adapters(
    arrays: Tensors, names: Mapping[str, Mapping[str, str]], places: Mapping[str, _Place], settings: Any, path: Any, hint: str
) -> dict[str, Any]:
    """The adapters of one network, of the names of its layers' tensors; `hint` ends what is said of another one."""
    found: dict[tuple[str, ...], tuple[_Place, dict[int, tuple[np.ndarray, np.ndarray]]]] = {}
    for layer, each in names.items():
        place = places.get(lora_names.flattened(layer))
        if place is None:
            shape = list(arrays.arrays[each["down"]].shape)
            raise DataError(f"{path} is not for this network, which has no place for {each['down']} {shape}{hint}")
        if fault := _misfit(place, {kind: (name, arrays.arrays[name].shape) for kind, name in each.items()}):
            raise DataError(f"{path} is not for this network: {fault}{hint}")
        matrices = found.setdefault(place.path, (place, {}))[1]
        if place.number in matrices:
            raise DataError(f"{path} has {each['down']} and another LoRA of the same layer; save it with one")
        down, up = (np.asarray(arrays[each[kind]], np.float32) for kind in ("down", "up"))
        matrices[place.number] = down, up * np.float32(lora_settings.strength(arrays, each, layer, settings, path))
    return unflatten_dict({path: _adapter(*each) for path, each in found.items()})


def save_lora(path: pathlib.Path | str, adapters: Any, options: Mapping[str, Any]) -> None:
    """Writes adapters of the UNet of such options as one safetensors file, as `load_lora_weights` of diffusers takes it.

    `load_lora` gives back the same bits. Ranks that differ are also said in the header, by which diffusers knows that each
    layer's alpha is its rank.

    Raises:
        DataError: an adapter is in a layer that has no published name.
        ValueError: the adapters do not fit the network.
    """
    if options.get("kind") == "dit":
        raise DataError("adapters of a transformer (model.network dit) have no published names; write them by save_tensors")
    shapes, pairs = unet_shapes(options), _pairs(adapters)
    jax.eval_shape(lora.merged, shapes, adapters)
    flat: dict[Any, Any] = flatten_dict(shapes)
    tensors, ranks = {}, {}
    for row in table(options, DIFFUSERS, options.get("linear_projection", True)):
        where = (*row.ours.split("/"), "kernel")
        if where not in pairs:
            continue
        pair = pairs.pop(where)
        kernel, rank = flat[where], pair["down"].shape[1]
        down = PLAIN._replace(trailing=row.layout.trailing).store(pair["down"].reshape(*kernel.shape[:-1], rank), "kernel")[0]
        ups = row.layout._replace(trailing=down.ndim - 2).store(pair["up"], "kernel")
        for name, up in zip(row.names, ups, strict=True):
            tensors |= {f"unet.{name}.lora_A.weight": down, f"unet.{name}.lora_B.weight": up}
            ranks[name] = rank
    if pairs:
        raise DataError(f"diffusers has no layer {'/'.join(next(iter(pairs))[:-1])}; leave its adapter out")
    save_tensors(path, tensors, {"format": "pt", **_header(ranks)})


def _pairs(adapters: Any) -> dict[tuple[str, ...], dict[str, np.ndarray]]:
    pairs: dict[tuple[str, ...], dict[str, np.ndarray]] = {}
    for path, leaf in flatten_dict(adapters).items():
        pairs.setdefault(path[:-1], {})[path[-1]] = np.asarray(leaf)
    return pairs


def _header(ranks: Mapping[str, int]) -> dict[str, str]:
    """The settings of peft, where it would have to guess alphas."""
    if len(set(ranks.values())) < 2:
        return {}
    first = next(iter(ranks.values()))
    others = {name: rank for name, rank in ranks.items() if rank != first}
    settings = {"r": first, "lora_alpha": first, "rank_pattern": others, "alpha_pattern": others, "target_modules": list(ranks)}
    return {"lora_adapter_metadata": json.dumps({f"unet.{name}": value for name, value in settings.items()})}


def _places(options: Mapping[str, Any]) -> dict[str, _Place]:
    """Kernels of our UNet by their published names, underscores for dots."""
    linear, new_order = options.get("linear_projection", True), options.get("new_order", False)
    rows = [row for column in (COMPVIS, DIFFUSERS) for row in table(options, column, linear, new_order)]
    return _by_names(rows, unet_shapes(options))


def _text_places(options: Mapping[str, Any]) -> dict[str, _Place]:
    """Kernels of a text encoder of ours by their names in transformers."""
    return _by_names(text_names.table(options, text_names.TRANSFORMERS), text_shapes(options))


def _by_names(rows: Iterable[Row], shapes: Any) -> dict[str, _Place]:
    flat, places = flatten_dict(shapes), {}
    for row in rows:
        kernel = flat.get((*row.ours.split("/"), "kernel"))
        if kernel is not None:
            places |= {name.replace(".", "_"): _Place(row, kernel, number) for number, name in enumerate(row.names)}
    return places


def _misfit(place: _Place, stored: Mapping[str, tuple[str, tuple[int, ...]]]) -> str:
    """Which of a layer's two tensors has another shape than its place; empty if none."""
    (down, down_shape), (up, up_shape) = stored["down"], stored["up"]
    rank, kernel = (down_shape or (0,))[0], place.published()[place.number].shape
    for name, shape, wanted in ((down, down_shape, (rank, *kernel[1:])), (up, up_shape, (kernel[0], rank))):
        if not rank or _plain(shape) != _plain(wanted):
            return f"{name} is {list(shape)}, not {[rank or 'rank', *wanted[1:]] if name == down else list(wanted)}"
    return ""


def _plain(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A shape without the size of a kernel over single pixels."""
    return shape[:2] if shape[2:] == (1,) * (len(shape) - 2) else shape


def _context_hint(shapes: Mapping[str, tuple[int, ...]], options: Mapping[str, Any]) -> str:
    """Which base a LoRA was made for, as far as the width of its context says another one."""
    widths = (shape[1] for layer, shape in shapes.items() if lora_names.flattened(layer).endswith("attn2_to_k") and len(shape) > 1)
    width, ours = next(widths, 0), options.get("context_channels", 0)
    if width in (0, ours):
        return ""
    known = f" ({BASES[width]})" if width in BASES else ""
    return f"; it was made for a context {width} wide{known}, and this network's is {ours or 'none'}"


def _adapter(place: _Place, matrices: Mapping[int, tuple[np.ndarray, np.ndarray]]) -> dict[str, np.ndarray]:
    """Down and up of a kernel of ours, of the matrices of those of its published kernels that have any."""
    kernels, downs = place.published(), [down for down, _ in matrices.values()]
    shared = all(np.array_equal(down, downs[0]) for down in downs)
    blocks = dict(zip(matrices, _starts([0 if shared else len(down) for down in downs]), strict=True))
    rank = len(downs[0]) if shared else sum(map(len, downs))
    ups = [np.zeros((len(kernel), rank), np.float32) for kernel in kernels]
    for number, (_, up) in matrices.items():
        ups[number][:, blocks[number] : blocks[number] + up.shape[1]] = up.reshape(up.shape[:2])
    columns = [PLAIN.load([down], "kernel").reshape(-1, len(down)) for down in (downs[:1] if shared else downs)]
    up = np.ascontiguousarray(place.row.layout.load(ups, "kernel"))
    return {"down": np.ascontiguousarray(np.concatenate(columns, axis=1)), "up": up}


def _starts(lengths: list[int]) -> Iterator[int]:
    start = 0
    for length in lengths:
        yield start
        start += length
