"""What a path to published weights holds: a UNet, an autoencoder, their noise schedule, and what jaxdiff does not open."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxdiff.interop import chains, configs, inferred
from jaxdiff.interop.chains import Chain
from jaxdiff.interop.params import Renamed, below, with_todays_names
from jaxdiff.interop.tensors import Tensors, open_tensors
from jaxdiff.interop.unet_names import COMPVIS, DIFFUSERS
from jaxdiff.io.errors import ConfigError, DataError, first_line

COMPVIS_UNET, COMPVIS_AUTOENCODER, COMPVIS_EMA = "model.diffusion_model.", "first_stage_model.", "model_ema.diffusion_model"


class Part(NamedTuple):
    """A network in a file: its options (see `configs.options`), its arrays by the names of a column, and where they are."""

    options: dict[str, Any]
    arrays: Mapping[str, np.ndarray]
    column: int
    where: str


class Found(NamedTuple):
    """What a path holds; `skipped` names what is not opened."""

    unet: Part | None
    autoencoder: Part | None
    chain: Chain | None
    skipped: tuple[str, ...]
    files: tuple[pathlib.Path, ...]


def find(path: pathlib.Path | str) -> Found:
    """The networks at a path: a pipeline or a network of diffusers, or a checkpoint of CompVis or OpenAI.

    Raises:
        ConfigError: there is nothing such.
        DataError: a file is damaged, or of a network that jaxdiff does not have; which parts it opens is said.
    """
    path = pathlib.Path(path).expanduser()
    if not path.exists():
        raise ConfigError(f"there is no {path}; write a folder or a file of weights, or OWNER/NAME of the Hugging Face hub")
    if (path / "model_index.json").is_file():
        return _pipeline(path)
    if (path / "config.json").is_file():
        part = _network(path)
        chain = _chain(path, part)
        return Found(*_by_kind(part), chain, (), (path,))
    return _checkpoint(path)


def _pipeline(folder: pathlib.Path) -> Found:
    index = _json(folder / "model_index.json")
    parts = {
        name: kind[1] for name, kind in index.items() if isinstance(kind, list) and len(kind) == 2 and isinstance(kind[1], str)
    }
    places = {name: folder / name if (folder / name).is_dir() else folder for name in parts}
    there = {name for name, place in places.items() if place != folder or (folder / "config.json").is_file()}
    ours = [name for name, kind in parts.items() if kind in configs.NETWORKS and name in there]
    left = {name: kind for name, kind in parts.items() if name not in ours and name != "scheduler"}
    absent = {name: ", not there" for name, kind in left.items() if kind in configs.NETWORKS}
    others = tuple(f"{name} ({kind}{absent.get(name, '')})" for name, kind in left.items())
    networks = [_network(places[name]) for name in ours]
    unets = [part for part in networks if part.options["kind"] == "unet"]
    if not unets:
        title = f"{folder} is a {index.get('_class_name', 'pipeline')} of {', '.join(others) or 'nothing'}, without a UNet"
        opened = ", ".join(f"{folder / name}" for name in ours)
        raise DataError(f"{title}; " + (f"jaxdiff opens its parts {opened}" if ours else "jaxdiff opens none of its parts"))
    autoencoders = [part for part in networks if part.options["kind"] == "autoencoder"]
    return Found(unets[0], autoencoders[0] if autoencoders else None, _chain(folder, unets[0]), others, (folder,))


def _network(folder: pathlib.Path) -> Part:
    where = folder / "config.json"
    if not where.is_file():
        raise DataError(f"there is no {where}, which says what network it is; fetch the folder again")
    config = _json(where)
    options, arrays = configs.options(config, str(where)), open_tensors(folder)
    return Part(options, with_todays_names(arrays), DIFFUSERS, str(folder))


def _chain(folder: pathlib.Path, part: Part) -> Chain | None:
    """The noise schedule beside a UNet of diffusers; if there is none, that of the family."""
    if part.options["kind"] != "unet":
        return None
    name = "scheduler_config.json"
    for path in (folder / "scheduler" / name, folder / name, folder.parent / "scheduler" / name, folder.parent / name):
        if path.is_file():
            return chains.chain(_json(path), str(path))
    return chains.STABLE_DIFFUSION if part.options.get("context_channels") else chains.DDPM


def _checkpoint(path: pathlib.Path) -> Found:
    """A file without a config: its names say whose it is."""
    arrays = open_tensors(path)
    shapes = {name: array.shape for name, array in arrays.arrays.items()}
    whole = any(name.startswith(COMPVIS_UNET) for name in shapes)
    unet = autoencoder = chain = None
    if whole or "input_blocks.0.0.weight" in shapes:
        own = below(arrays, COMPVIS_UNET) if whole else arrays
        options = inferred.unet({name: shapes[COMPVIS_UNET * whole + name] for name in own}, str(path))
        unet = Part(options, _averaged(arrays, own), COMPVIS, str(path))
        chain = inferred.chain(arrays, options, str(path))
        if not (whole or options["learned_variance"]):  # consistency models predict no variance, ADM does
            chain = chains.CONSISTENCY_MODELS
    prefix = COMPVIS_AUTOENCODER if whole else ""
    if f"{prefix}encoder.down.0.block.0.conv1.weight" in shapes:
        own = below(arrays, prefix) if prefix else arrays
        options = inferred.autoencoder({name: shapes[prefix + name] for name in own}, str(path))
        if "scale_factor" in arrays:
            options["scaling_factor"] = _scale_factor(arrays, path)
        elif unet and unet.options.get("pooled_channels"):
            options["scaling_factor"] = 0.13025  # Podell et al. (2023), published code
        autoencoder = Part(options, own, COMPVIS, str(path))
    if unet is None and autoencoder is None:
        known = inferred.family(shapes)
        what = f"looks like {known}" if known else f"holds {', '.join(list(shapes)[:3])}, names that jaxdiff does not know"
        hint = _where_to_go(known, path)
        raise DataError(f"{path} {what}; {hint}")
    heads = {name.split(".")[0] for name in shapes} - {"model", "first_stage_model", "model_ema", "betas"} if whole else set()
    networks = tuple(sorted(head for head in heads if any(name.startswith(f"{head}.") for name in shapes)))
    return Found(unet, autoencoder, chain, networks, (path,))


def _scale_factor(arrays: Tensors, path: pathlib.Path) -> float:
    factor = np.asarray(arrays["scale_factor"], np.float64)
    if factor.size != 1 or not 0 < factor.reshape(()) < np.inf:
        raise DataError(f"{path}: scale_factor {list(factor.shape)} must be one positive number; copy or download it again")
    return float(factor.reshape(()))


def _where_to_go(known: str, path: pathlib.Path) -> str:
    if known == "a LoRA":
        return "import it with --adapt RUN, the run of the network that it adapts"
    if "diffusers" in known:
        config = path.parent / "config.json"
        return f"write its folder, {path.parent}" if config.is_file() else f"its config.json is missing beside it ({config})"
    return "jaxdiff opens UNets and autoencoders of diffusers, CompVis and OpenAI (docs/weights.md)"


def _averaged(arrays: Tensors, own: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
    """The averages of a checkpoint's UNet if it has them (latent diffusion names them without dots), else its params."""
    names = {name: COMPVIS_EMA + name.replace(".", "") for name in own}
    return Renamed(arrays, names) if all(name in arrays for name in names.values()) else own


def _by_kind(part: Part) -> tuple[Part | None, Part | None]:
    return (part, None) if part.options["kind"] == "unet" else (None, part)


def _json(path: pathlib.Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text())
    except (ValueError, OSError, RecursionError) as error:
        raise DataError(f"{path} cannot be read as JSON ({first_line(error)}); fetch it again") from error
    if not isinstance(value, dict):
        raise DataError(f"{path} must hold an object; fetch it again")
    return value
