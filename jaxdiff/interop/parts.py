"""What a path to published weights holds: a UNet, an autoencoder, text encoders, a noise schedule, and what is not opened."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxdiff.interop import chains, configs, dit_names, documents, inferred, text_configs, text_names, tokens
from jaxdiff.interop.chains import Chain
from jaxdiff.interop.params import Renamed, below, with_todays_names
from jaxdiff.interop.tensors import Tensors, open_tensors
from jaxdiff.interop.text_names import OPENCLIP, TRANSFORMERS
from jaxdiff.interop.unet_names import COMPVIS, DIFFUSERS
from jaxdiff.io.errors import ConfigError, DataError

COMPVIS_UNET, COMPVIS_AUTOENCODER, COMPVIS_EMA = "model.diffusion_model.", "first_stage_model.", "model_ema.diffusion_model"
TRANSFORMER = "blocks.0.adaLN_modulation.1.weight"  # which that of Peebles & Xie has
COMPVIS_TEXTS = {  # of Stable Diffusion 1, 2, and XL, which has two
    "cond_stage_model.transformer.": TRANSFORMERS,
    "cond_stage_model.model.": OPENCLIP,
    "conditioner.embedders.0.transformer.": TRANSFORMERS,
    "conditioner.embedders.1.model.": OPENCLIP,
}


DENOISERS = ("unet", "dit")  # kinds of networks


class Part(NamedTuple):
    """A network in a file: its options (see `configs.options`), its arrays by the names of a column, and where they are.

    `tokenizer` is the folder with that of a text encoder, if there is one beside it.
    """

    options: dict[str, Any]
    arrays: Mapping[str, np.ndarray]
    column: int
    where: str
    tokenizer: pathlib.Path | None = None


class Found(NamedTuple):
    """What a path holds; `skipped` names what is not opened.

    `texts` are the text encoders in the order in which a UNet is given their states; `image` is the image encoder of a CLIP.
    """

    unet: Part | None
    autoencoder: Part | None
    chain: Chain | None
    skipped: tuple[str, ...]
    files: tuple[pathlib.Path, ...]
    texts: tuple[Part, ...] = ()
    image: Part | None = None


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
        if _of_clip(path):
            halves = _encoders(path)
            texts, images = ([part for part in halves if part.options["kind"] == kind] for kind in ("text", "image"))
            return Found(None, None, None, (), (path,), tuple(texts), images[0] if images else None)
        part = _network(path)
        chain = _chain(path, part)
        return Found(*_by_kind(part), chain, (), (path,))
    return _checkpoint(path)


def _pipeline(folder: pathlib.Path) -> Found:
    index = documents.read(folder / "model_index.json")
    parts = {
        name: kind[1] for name, kind in index.items() if isinstance(kind, list) and len(kind) == 2 and isinstance(kind[1], str)
    }
    places = {name: folder / name if (folder / name).is_dir() else folder for name in parts}
    there = {name for name, place in places.items() if place != folder or (folder / "config.json").is_file()}
    ours = [name for name, kind in parts.items() if kind in configs.NETWORKS and name in there]
    texts = sorted(name for name, kind in parts.items() if kind in text_configs.TEXTS and (folder / name / "config.json").is_file())
    named = {*ours, *texts, "scheduler", *(f"tokenizer{name.removeprefix('text_encoder')}" for name in texts)}
    left = {name: kind for name, kind in parts.items() if name not in named}
    absent = {name: ", not there" for name, kind in left.items() if kind in (*configs.NETWORKS, *text_configs.TEXTS)}
    others = tuple(f"{name} ({kind}{absent.get(name, '')})" for name, kind in left.items())
    networks = [_network(places[name]) for name in ours]
    unets = [part for part in networks if part.options["kind"] in DENOISERS]
    if not unets:
        title = f"{folder} is a {index.get('_class_name', 'pipeline')} of {', '.join(others) or 'nothing'}, without a UNet"
        opened = ", ".join(f"{folder / name}" for name in (*ours, *texts))
        raise DataError(f"{title}; " + (f"jaxdiff opens its parts {opened}" if opened else "jaxdiff opens none of its parts"))
    autoencoders = [part for part in networks if part.options["kind"] == "autoencoder"]
    encoders = tuple(part for name in texts for part in _encoders(folder / name) if part.options["kind"] == "text")
    autoencoder, chain = autoencoders[0] if autoencoders else None, _chain(folder, unets[0])
    return Found(unets[0], autoencoder, chain, others, (folder,), encoders)


def _network(folder: pathlib.Path) -> Part:
    where = folder / "config.json"
    if not where.is_file():
        raise DataError(f"there is no {where}, which says what network it is; fetch the folder again")
    config = documents.read(where)
    options, arrays = configs.options(config, str(where)), open_tensors(folder)
    own = dit_names.named(arrays, str(folder)) if options["kind"] == "dit" else with_todays_names(arrays)
    return Part(options, own, DIFFUSERS, str(folder))


def _of_clip(folder: pathlib.Path) -> bool:
    return text_configs.architecture(documents.read(folder / "config.json")) in text_configs.KINDS


def _encoders(folder: pathlib.Path) -> list[Part]:
    """The encoders of CLIP in a folder, as the pipeline above it, if any, has them."""
    where, arrays, found = folder / "config.json", open_tensors(folder), []
    for options in text_configs.options(documents.read(where), str(where)):
        own = text_names.named(arrays, options["kind"])
        if options["kind"] == "text":
            pipeline = folder.parent / "model_index.json"
            name = documents.read(pipeline).get("_class_name") if pipeline.is_file() else None
            if str(name).startswith("StableDiffusionXL"):
                options = text_configs.penultimate(options)
            if not options["projection"]:  # some files have one that their config does not name
                own = Renamed(own, {each: each for each in own if not each.startswith("text_projection")})
        beside = folder.parent / f"tokenizer{folder.name.removeprefix('text_encoder')}"
        places = [place for place in (folder, beside) if tokens.is_there(place)]
        found.append(Part(options, own, TRANSFORMERS, str(folder), places[0] if places else None))
    return found


def _chain(folder: pathlib.Path, part: Part) -> Chain | None:
    """The noise schedule beside a UNet of diffusers; if there is none, that of the family."""
    if part.options["kind"] not in DENOISERS:
        return None
    name = "scheduler_config.json"
    for path in (folder / "scheduler" / name, folder / name, folder.parent / "scheduler" / name, folder.parent / name):
        if path.is_file():
            return chains.chain(documents.read(path), str(path))
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
    if TRANSFORMER in shapes:
        velocity = "sit" in path.name.lower()  # whose names and shapes are those of the others
        options = dit_names.inferred(shapes, str(path), velocity)
        unet = Part(options, dit_names.named(arrays, str(path)), dit_names.PUBLISHED, str(path))
        chain = chains.RECTIFIED_FLOW if velocity else chains.DDPM._replace(clip=False)
    prefix = COMPVIS_AUTOENCODER if whole else ""
    if f"{prefix}encoder.down.0.block.0.conv1.weight" in shapes:
        own = below(arrays, prefix) if prefix else arrays
        options = inferred.autoencoder({name: shapes[prefix + name] for name in own}, str(path))
        if "scale_factor" in arrays:
            options["scaling_factor"] = _scale_factor(arrays, path)
        elif unet and unet.options.get("pooled_channels"):
            options["scaling_factor"] = 0.13025  # Podell et al. (2023), published code
        autoencoder = Part(options, own, COMPVIS, str(path))
    texts = _compvis_texts(arrays, shapes, path)
    if unet is None and autoencoder is None:
        known = inferred.family(shapes)
        what = f"looks like {known}" if known else f"holds {', '.join(list(shapes)[:3])}, names that jaxdiff does not know"
        hint = _where_to_go(known, path)
        raise DataError(f"{path} {what}; {hint}")
    opened = {"model", "first_stage_model", "model_ema", "betas", *(prefix.split(".")[0] for prefix in texts)}
    heads = {name.split(".")[0] for name in shapes} - opened if whole else set()
    networks = tuple(sorted(head for head in heads if any(name.startswith(f"{head}.") for name in shapes)))
    return Found(unet, autoencoder, chain, networks, (path,), tuple(texts.values()))


def _compvis_texts(arrays: Tensors, shapes: Mapping[str, tuple[int, ...]], path: pathlib.Path) -> dict[str, Part]:
    """The text encoders of a checkpoint, by what their names begin with; those that are no CLIP are left out."""
    found: dict[str, Part] = {}
    for prefix, column in COMPVIS_TEXTS.items():
        own = text_names.named(below(arrays, prefix), "text")
        options = text_configs.inferred({name: shapes[prefix + own.names[name]] for name in own}, column)
        if options is not None:
            options = text_configs.penultimate(options) if prefix.startswith("conditioner.") else options
            found[prefix] = Part(options, own, column, f"{path}: {prefix.rstrip('.')}")
    return found


def _scale_factor(arrays: Tensors, path: pathlib.Path) -> float:
    factor = np.asarray(arrays["scale_factor"], np.float64)
    if factor.size != 1 or not 0 < factor.reshape(()) < np.inf:
        raise DataError(f"{path}: scale_factor {list(factor.shape)} must be one positive number; copy or download it again")
    return float(factor.reshape(()))


def _where_to_go(known: str, path: pathlib.Path) -> str:
    if known == "a LoRA":
        return "import it with --adapt RUN, the run of the network that it adapts"
    if "diffusers" in known or known == "a text encoder":
        config = path.parent / "config.json"
        return f"write its folder, {path.parent}" if config.is_file() else f"its config.json is missing beside it ({config})"
    return "jaxdiff opens UNets and autoencoders of diffusers, CompVis and OpenAI (docs/weights.md)"


def _averaged(arrays: Tensors, own: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
    """The averages of a checkpoint's UNet if it has them (latent diffusion names them without dots), else its params."""
    names = {name: COMPVIS_EMA + name.replace(".", "") for name in own}
    return Renamed(arrays, names) if all(name in arrays for name in names.values()) else own


def _by_kind(part: Part) -> tuple[Part | None, Part | None]:
    return (part, None) if part.options["kind"] in DENOISERS else (None, part)
