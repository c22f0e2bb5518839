"""Runs made of published weights: their config, a checkpoint that holds the weights once, and where they came from."""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxdiff import interop
from jaxdiff.app import build
from jaxdiff.app.config import (
    Autoencoder,
    Betas,
    Data,
    Diffusion,
    Distillation,
    Evaluation,
    Experiment,
    Model,
    Published,
    Sampling,
    Sources,
    to_dict,
    uses_discrete_levels,
    validated,
)
from jaxdiff.app.runs import storage
from jaxdiff.app.runs.sources import PUBLISHED, source_configs
from jaxdiff.interop import chains, loading
from jaxdiff.interop.chains import Chain
from jaxdiff.interop.parts import Found, Part, find
from jaxdiff.interop.tensors import ENDINGS
from jaxdiff.io import count, files, paths
from jaxdiff.io.errors import ConfigError
from jaxdiff.models import lora
from jaxdiff.models.attention import head_count
from jaxdiff.training import TrainState, checkpoint

LICENCE = "licence"  # the folder of a run that keeps what its source says of licences
LICENCES = ("LICENSE*", "LICENCE*", "license*", "README.md", "USE_POLICY*")
NETWORK = ("objective", "model", "published", "betas", "diffusion", "autoencoder")  # of a config: what the weights are for
PIXELS_PER_LATENT = 8  # where no autoencoder says it


class Wanted(NamedTuple):
    """What a user says of weights: what their files do not say, and how the run begins."""

    size: tuple[int, int] | None = None
    data: str = ""
    options: Mapping[str, Any] = {}  # of the network, such as head_channels
    chain: Mapping[str, Any] = {}  # prediction, kind of betas


def import_weights(source: str, workdir: pathlib.Path, wanted: Wanted) -> str:
    """Makes a run of the UNet or the autoencoder of a source; says what was made.

    Raises:
        ConfigError: there is no such source, or `workdir` holds another run.
        DataError: a file is damaged, does not fit its network, or is of a network that jaxdiff does not have.
    """
    path = interop.fetch(source) if interop.is_hub_name(source) else pathlib.Path(source).expanduser()
    found = find(path)
    autoencoder, latents = found.autoencoder, ""
    if found.unet is None:
        assert autoencoder is not None
        _write(workdir, autoencoder_experiment(autoencoder, wanted), autoencoder, found, source)
        return f"{workdir}: an autoencoder, {_size(autoencoder)}"
    unet, chain = loading.with_options(found.unet, wanted.options), _chain(found, wanted)
    if autoencoder is not None:
        latents = str(workdir / "autoencoder")
        size = _image_size(unet, wanted, _factor(autoencoder))
        config = autoencoder_experiment(autoencoder, wanted._replace(size=size, options={}))
        _write(workdir / "autoencoder", config, autoencoder, found, source)
    config = unet_experiment(unet, chain, wanted, latents, _factor(autoencoder) if autoencoder else 1)
    _write(workdir, config, unet, found, source)
    said = [f"{workdir}: {_size(unet)}, images of {'x'.join(map(str, config.data.image_shape))}"]
    said += [f"{workdir / 'autoencoder'}: its autoencoder, {_size(autoencoder)}"] if autoencoder else []
    said += [f"not opened: {', '.join(found.skipped)}"] if found.skipped else []
    return "\n".join(said)


def import_lora(path: pathlib.Path, base: pathlib.Path, workdir: pathlib.Path, scale: float = 1.0) -> str:
    """Makes a run of a run's params with a LoRA file merged in; says what was made.

    Raises:
        ConfigError: there is no such run, or `workdir` holds another one.
        DataError: the file is damaged, or adapts another network.
    """
    config = storage.read_config(base, "diffusion")
    _, params = storage.read_params(config, base)
    adapters = interop.load_lora(path, options(config, source_configs(config, base, ("autoencoder",))))
    autoencoder = storage.source_directories(config, base).get("autoencoder")
    sources = dataclasses.replace(config.sources, autoencoder=str(autoencoder or ""))
    before = record_of(base)
    record = {"source": path.name, "scale": scale, "base": before, "options": before.get("options", {}), **_hashes([path])}
    _save(workdir, dataclasses.replace(config, sources=sources), lambda: lora.merged(params, adapters.params, scale), record)
    skipped = f"; not opened: {count(len(adapters.skipped), 'array')} of text encoders" if adapters.skipped else ""
    return f"{workdir}: {base} with {path} at scale {scale:g}{skipped}"


def unet_experiment(part: Part, chain: Chain, wanted: Wanted, latents: str, factor: int) -> Experiment:
    """The config of a UNet's run; of a latent one `latents` is its autoencoder's run, which makes images `factor` times smaller."""
    o, context = part.options, part.options.get("context_channels", 0)
    factor = factor if latents or not context else PIXELS_PER_LATENT
    shape = (*_image_size(part, wanted, factor), o["in_channels"])
    pixels = (*shape[:2], 3) if latents else (shape[0] // factor, shape[1] // factor, shape[2])
    prediction: Any = chain.prediction
    spacing: Any = chain.spacing
    latent, consistency = bool(latents or context), chain.consistency > 0
    sampling = Sampling(
        sampler="consistency" if consistency else "ddim",
        steps=1 if consistency else 50,
        spacing=spacing,
        steps_offset=chain.steps_offset,
        guidance=1.0,
        clip=chain.clip and not latent,
        num=16,
        batch_size=4 if latent else 32,
    )
    listed = Distillation(target="data", steps=40, spacing="karras", clip=chain.clip)  # Song et al. (2023) train on 40 levels
    return validated(
        Experiment(
            objective="consistency" if consistency else "diffusion",
            data=Data(name=wanted.data, image_shape=pixels, fit="crop"),
            model=_fields(Model, {"attention": (), "num_classes": 0, **o}),
            published=_fields(Published, {**o, **chain.told, "boundary": chain.consistency}),
            betas=Betas() if consistency else Betas(**chain.betas),
            diffusion=Diffusion(
                schedule="karras" if consistency else "betas",
                prediction=prediction,
                weight=prediction,
                label_dropout=0.1 if context else 0.0,
            ),
            sources=Sources(autoencoder=latents),
            ema={"ema": 0.9999},
            steps=1,
            sampling=sampling,
            evaluation=Evaluation(batch_size=sampling.batch_size),
            distillation=listed if consistency else Distillation(),
        ),
        where=part.where,
    )


def autoencoder_experiment(part: Part, wanted: Wanted) -> Experiment:
    """The config of an autoencoder's run."""
    o = part.options
    height, width = wanted.size or (o.get("sample_size") or 256,) * 2
    return validated(
        Experiment(
            objective="autoencoder",
            data=Data(name=wanted.data, image_shape=(height, width, o["in_channels"]), fit="crop"),
            model=_fields(Model, {"attention": (), "num_classes": 0, **o}),
            published=_fields(Published, o),
            autoencoder=Autoencoder(latent_channels=o["latent_channels"], codebook=o["codebook"]),
            ema={"ema": 0.9999},
            steps=1,
        ),
        where=part.where,
    )


def options(config: Experiment, sources: build.Sources = build.NONE) -> dict[str, Any]:
    """The options of a run's network, as published files are opened and written by them; `sources` holds its autoencoder."""
    height, _, channels = build.space(config, sources)
    levels = range(len(config.model.multipliers))
    by_size = tuple(level for level in levels if height >> level in config.model.attention)
    network = {**vars(config.published), **vars(config.model), "in_channels": channels}
    network |= {"attention": (), "attention_levels": config.published.attention_levels or by_size}
    if config.objective != "autoencoder":
        return network | {"kind": "unet"}
    codes = {"latent_channels": config.autoencoder.latent_channels, "codebook": config.autoencoder.codebook}
    return network | codes | {"kind": "autoencoder", "heads": _heads(config)}


def _heads(config: Experiment) -> int:
    """Of the autoencoder's attention, which is in its coarsest level: as diffusers has it, 1."""
    width = config.model.channels * config.model.multipliers[-1]
    return head_count(width, config.model.head_channels, config.model.heads)


def _write(workdir: pathlib.Path, config: Experiment, part: Part, found: Found, source: str) -> None:
    """Writes a run of a part."""
    load = loading.autoencoder_params if config.objective == "autoencoder" else loading.unet_params
    where = pathlib.Path(part.where)
    weights = [where] if where.is_file() else [path for path in sorted(where.iterdir()) if path.name.endswith(ENDINGS)]
    kept = {name: part.options[name] for name in ("linear_projection", "new_order") if name in part.options}
    name = source if interop.is_hub_name(source) else pathlib.Path(source).name
    _save(workdir, config, lambda: load(part), {"source": name, **_hashes(weights), "options": kept})
    for folder in {where if where.is_dir() else where.parent, *found.files}:
        for pattern in LICENCES if folder.is_dir() else ():
            for path in folder.glob(pattern):
                files.write_text(paths.path(workdir) / LICENCE / path.name, path.read_text(errors="replace"))


def _save(workdir: pathlib.Path, config: Experiment, load: Any, record: dict[str, Any]) -> None:
    """Writes config, weights and where they came from; nothing where the same is there already."""
    if checkpoint.steps(workdir):
        before, old = record_of(workdir), storage.read_config(workdir)
        same = all(getattr(old, group) == getattr(config, group) for group in NETWORK)
        if not same or any(before.get(name) != record[name] for name in ("sha256", "options")):
            raise ConfigError(f"{workdir} holds another run; choose another --workdir")
        storage.write_config(workdir, config)  # of another data set, maybe
        return
    storage.check_or_write_config(workdir, config)
    state = TrainState(jnp.asarray(config.steps, jnp.int32), {}, {name: load() for name in config.ema}, ())
    levels = vars(build.student_levels(config, config.steps)) if uses_discrete_levels(config) else None
    # Before the checkpoint: one without this record would be taken for another run's when the command is run again.
    files.write_text(paths.path(workdir) / PUBLISHED, json.dumps(record, indent=2) + "\n")
    with checkpoint.manager(workdir) as to:
        checkpoint.save(to, state, to_dict(config), levels)


def record_of(workdir: pathlib.Path) -> dict[str, Any]:
    """Where the weights of a run came from; empty where it was trained."""
    return files.read_json(paths.path(workdir) / PUBLISHED)


def _hashes(weights: list[pathlib.Path]) -> dict[str, Any]:
    digests = {}
    for path in weights:
        with path.open("rb") as stream:
            digests[path.name] = hashlib.file_digest(stream, "sha256").hexdigest()
    return {"sha256": digests}


def _chain(found: Found, wanted: Wanted) -> Chain:
    chain = found.chain or chains.DDPM
    if not wanted.chain:
        return chain
    kind = wanted.chain.get("betas")
    plain = chains.DDPM._replace(spacing="leading") if chain.consistency else chain
    betas = plain.betas if kind is None else {**plain.betas, "kind": kind}
    return plain._replace(betas=betas, prediction=wanted.chain.get("prediction") or plain.prediction)


def _image_size(part: Part, wanted: Wanted, factor: int) -> tuple[int, int]:
    """Height and width of the images of a UNet, whose latents are `factor` times smaller."""
    if wanted.size:
        return wanted.size
    size = part.options.get("sample_size")
    if isinstance(size, int) or size is None:
        size = (size or 64,) * 2
    return size[0] * factor, size[1] * factor


def _factor(part: Part) -> int:
    return 2 ** (len(part.options["multipliers"]) - 1)


def _size(part: Part) -> str:
    return count(sum(int(np.prod(array.shape)) for array in part.arrays.values()), "number")


def _fields(kind: Any, values: Mapping[str, Any]) -> Any:
    """The dataclass with those of the values that are its fields."""
    return kind(**{field.name: values[field.name] for field in dataclasses.fields(kind) if field.name in values})
