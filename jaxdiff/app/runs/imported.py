"""Runs made of published weights: their config, a checkpoint that holds the weights once, and where they came from."""

import dataclasses
import hashlib
import json
import pathlib
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxdiff import interop
from jaxdiff.app import build
from jaxdiff.app.config import (
    Experiment,
    Sources,
    to_dict,
    uses_discrete_levels,
)
from jaxdiff.app.runs import experiments, storage
from jaxdiff.app.runs.experiments import Wanted
from jaxdiff.app.runs.sources import PUBLISHED, source_configs
from jaxdiff.interop import chains, loading, texts
from jaxdiff.interop.chains import Chain
from jaxdiff.interop.parts import Found, Part, find
from jaxdiff.interop.tensors import ENDINGS
from jaxdiff.io import count, files, paths
from jaxdiff.io.errors import ConfigError
from jaxdiff.models import lora
from jaxdiff.training import TrainState, checkpoint

LICENCE = "licence"  # the folder of a run that keeps what its source says of licences
LICENCES = ("LICENSE*", "LICENCE*", "license*", "README.md", "USE_POLICY*")
NETWORK = ("objective", "model", "text", "published", "betas", "diffusion", "autoencoder")  # of a config: what the weights are for


def import_weights(source: str, workdir: pathlib.Path, wanted: Wanted) -> str:
    """Makes a run of the UNet or the autoencoder of a source, beside runs of its autoencoder and text encoders; says what was made.

    Raises:
        ConfigError: there is no such source, or `workdir` holds another run.
        DataError: a file is damaged, does not fit its network, or is of a network that jaxdiff does not have.
    """
    path = interop.fetch(source) if interop.is_hub_name(source) else pathlib.Path(source).expanduser()
    found = find(path)
    autoencoder, latents = found.autoencoder, ""
    if found.unet is None:
        if autoencoder is None:
            raise ConfigError(f"{path} holds an encoder of texts or images alone; import the pipeline that it is of")
        _write(workdir, experiments.autoencoder_experiment(autoencoder, wanted), autoencoder, found, source)
        return f"{workdir}: an autoencoder, {_size(autoencoder)}"
    unet, chain = loading.with_options(found.unet, wanted.options), _chain(found, wanted)
    if autoencoder is not None:
        latents = str(workdir / "autoencoder")
        size = experiments.image_size(unet, wanted, experiments.factor(autoencoder))
        config = experiments.autoencoder_experiment(autoencoder, wanted._replace(size=size, options={}))
        _write(workdir / "autoencoder", config, autoencoder, found, source)
    encoders = _write_texts(workdir, found, wanted, source)
    runs = Sources(autoencoder=latents, **{place: str(workdir / place) for place in encoders})
    config = experiments.unet_experiment(unet, chain, wanted, runs, experiments.factor(autoencoder) if autoencoder else 1)
    _write(workdir, config, unet, found, source)
    said = [f"{workdir}: {_size(unet)}, images of {'x'.join(map(str, config.data.image_shape))}"]
    said += [f"{workdir / 'autoencoder'}: its autoencoder, {_size(autoencoder)}"] if autoencoder else []
    said += [f"{workdir / place}: its text encoder, {_size(part)}" for place, part in encoders.items()]
    closed = [*found.skipped, *(["text encoders without a tokenizer, see --tokenizer"] if len(found.texts) > len(encoders) else [])]
    said += [f"not opened: {', '.join(closed)}"] if closed else []
    return "\n".join(said)


def _write_texts(workdir: pathlib.Path, found: Found, wanted: Wanted, source: str) -> dict[str, Part]:
    """Writes runs of the text encoders of a source, each with its tokenizer, where all have one; by their places."""
    folders = wanted.tokenizers or [part.tokenizer for part in found.texts]
    if not found.texts or None in folders:
        return {}
    opened = [
        dataclasses.replace(each, length=part.options["positions"])
        for each, part in zip(texts.text_tokenizers(found, *wanted.tokenizers), found.texts, strict=True)
    ]
    for place, part, tokens in zip(build.TEXTS, found.texts, opened, strict=False):
        _write(workdir / place, experiments.text_experiment(part, tokens), part, found, source)
        tokens.save(paths.path(workdir) / place)
    return dict(zip(build.TEXTS, found.texts, strict=False))


def import_lora(path: pathlib.Path, base: pathlib.Path, workdir: pathlib.Path, scale: float = 1.0) -> str:
    """Makes a run of a run's params with a LoRA file merged in; says what was made.

    Raises:
        ConfigError: there is no such run, or `workdir` holds another one.
        DataError: the file is damaged, or adapts another network.
    """
    config = storage.read_config(base, "diffusion")
    _, params = storage.read_params(config, base)
    adapters = interop.load_lora(path, experiments.options(config, source_configs(config, base, ("autoencoder",))))
    found = storage.source_directories(config, base, ("autoencoder", *build.TEXTS))
    sources = dataclasses.replace(config.sources, **{place: str(folder) for place, folder in found.items()})
    before = record_of(base)
    record = {"source": path.name, "scale": scale, "base": before, "options": before.get("options", {}), **_hashes([path])}
    _save(workdir, dataclasses.replace(config, sources=sources), lambda: lora.merged(params, adapters.params, scale), record)
    skipped = f"; not opened: {count(len(adapters.skipped), 'array')} of text encoders" if adapters.skipped else ""
    return f"{workdir}: {base} with {path} at scale {scale:g}{skipped}"


def _write(workdir: pathlib.Path, config: Experiment, part: Part, found: Found, source: str) -> None:
    """Writes a run of a part."""
    load = {"autoencoder": loading.autoencoder_params, "text": texts.text_params}.get(config.objective, loading.unet_params)
    where = pathlib.Path(part.where) if pathlib.Path(part.where).exists() else found.files[0]  # of several parts in one file
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


def _size(part: Part) -> str:
    return count(sum(int(np.prod(array.shape)) for array in part.arrays.values()), "number")
