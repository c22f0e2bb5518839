"""Runs on disk, and the runs that they start from: an autoencoder, a cascade's base, a classifier."""

from __future__ import annotations

import json
import logging
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.app import build
from jaxdiff.app.config import (
    STUDENTS,
    Experiment,
    from_dict,
    num_halvings,
    round_steps,
    sampling_steps,
    uses_discrete_levels,
    with_article,
)
from jaxdiff.io import files, weights
from jaxdiff.io.errors import ConfigError
from jaxdiff.process import Level
from jaxdiff.training import as_float32, checkpoint, distributed

log = logging.getLogger(__name__)

RECORD = "sources.json"  # in a run's directory: the fingerprints of what it was trained on
VGG16_CONVOLUTIONS = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)  # their numbers in torchvision's network


def read_config(workdir: pathlib.Path, objective: str | None = None) -> Experiment:
    """The config that made a run, which must have trained that objective if one is given; a student counts as diffusion.

    Raises:
        ConfigError: no run in `workdir`, or one of another objective.
    """
    path = pathlib.Path(workdir) / "config.json"
    if not path.is_file():
        raise ConfigError(f"no run in {workdir}; train one: jaxdiff train CONFIG --workdir {workdir}")
    try:
        values = json.loads(path.read_text())
    except ValueError as error:
        raise ConfigError(f"{path} is no JSON: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path} must hold a config")
    model, before = ({} if not isinstance(found := values.get(name), dict) else found for name in ("model", "autoencoder"))
    if "vae" not in values and "pixels" in before:
        values["vae"] = values.pop("autoencoder")  # as it was named before there were other autoencoders
    if isinstance(remat := model.get("remat"), bool):
        model["remat"] = "everything" if remat else "none"  # as it was before there were policies
    config = from_dict(values, where=str(path))
    if objective not in (None, "diffusion" if config.objective in STUDENTS else config.objective):
        hint = " (--classifier takes the classifier)" if "classifier" in (objective, config.objective) else ""
        raise ConfigError(
            f"{workdir} is {with_article(config.objective)} run, here {with_article(str(objective))} run is wanted{hint}"
        )
    return config


def read_params(config: Experiment, workdir: pathlib.Path, ema: str | None = None) -> tuple[int, Any]:
    """Step and params of the named EMA (the first unless given) of a run; of the progressive student that config.sampling asks for.

    Raises:
        ConfigError: the run has no such EMA, or no such student yet.
    """
    name = ema_name(config, workdir, ema)
    single = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    sources = source_configs(config, workdir, ("autoencoder",))
    like = with_sharding(build.state_shapes(config, sources).ema[name], single)
    step, ema = checkpoint.restore_ema(workdir, name, like, _end_of_round(config, workdir))
    return step, as_float32(ema)


def ema_name(config: Experiment, workdir: pathlib.Path, ema: str | None) -> str:
    """The name of the EMA of a run, the first unless given.

    Raises:
        ConfigError: the run has no such EMA.
    """
    name = next(iter(config.ema)) if ema is None else ema
    if name not in config.ema:
        raise ConfigError(f"{workdir} has no ema {name!r}; write one of {', '.join(config.ema)}")
    return name


def read_levels(config: Experiment, workdir: pathlib.Path) -> Level | None:
    """The levels `[N + 1]` that the student whose params `read_params` reads was trained on; None where it knows no list.

    Raises:
        ConfigError: the config's levels are none of them.
    """
    if not uses_discrete_levels(config):
        return None
    step, found = checkpoint.read_levels(workdir, _end_of_round(config, workdir))
    trained, mine = (
        Level(*(jnp.asarray(found[name], jnp.float32) for name in ("alpha", "sigma"))),
        build.student_levels(config, step),
    )
    num = trained.sigma.size - 1
    same = mine.sigma.shape == trained.sigma.shape and np.allclose(mine.sigma, trained.sigma, atol=1e-5)
    if not same or num % config.sampling.steps:
        logsnr = np.asarray(trained[:-1].logsnr)
        raise ConfigError(
            f"{workdir} was at step {step} trained on {num} steps of levels from logsnr {logsnr[0]:.2f} to {logsnr[-1]:.2f}; "
            f"sample it on these, by the config that it was trained with and --steps that divide {num}"
        )
    return trained


def _end_of_round(config: Experiment, workdir: pathlib.Path) -> int | None:
    """The step at which the progressive student is done that the config's sampling asks for; None: the newest of any run."""
    if config.objective != "progressive":
        return None
    length, saved = round_steps(config), checkpoint.steps(workdir)
    if num_halvings(config) * length not in saved:
        known = [num for number, num in enumerate(sampling_steps(config), 1) if number * length in saved]
        raise ConfigError(
            f"{workdir} has no student of {config.sampling.steps} steps yet, but of {', '.join(map(str, known)) or 'none'}; "
            "train it on, or choose --steps"
        )
    return num_halvings(config) * length


def with_sharding(shapes: Any, sharding: Any) -> Any:
    """The shapes with a sharding each, or one for all."""

    def place(leaf: Any, where: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)

    if isinstance(sharding, jax.sharding.Sharding):
        return jax.tree.map(lambda leaf: place(leaf, sharding), shapes)
    return jax.tree.map(place, shapes, sharding)


def source_directories(config: Experiment, workdir: pathlib.Path | None = None) -> dict[str, pathlib.Path]:
    """The directories of the runs that a config names, by place; a file of weights is none.

    One that is not where it was is looked for beside the config's own run, `workdir`.
    """
    c = config.sources
    named = {"autoencoder": c.autoencoder, "base": c.base, "features": c.features, "teacher": c.teacher}
    named["classifier"] = config.sampling.classifier
    found = {place: pathlib.Path(name) for place, name in named.items() if name and not name.endswith(".npz")}
    if workdir is None:
        return found
    beside = {place: pathlib.Path(workdir).parent / path.name for place, path in found.items()}
    return {p: beside[p] if not path.exists() and beside[p].exists() else path for p, path in found.items()}


def sampling_sources(config: Experiment) -> tuple[str, ...]:
    """The places of the runs that sampling needs: of a teacher only the student that adapts it."""
    return ("autoencoder", "base", "classifier", *(["teacher"] if config.distillation.lora_rank else []))


def source_configs(
    config: Experiment, workdir: pathlib.Path | None = None, places: tuple[str, ...] | None = None
) -> dict[str, Experiment]:
    """The configs of the runs that a config, of the run in `workdir`, starts from, and under `base.` those of its base.

    Of those `places` alone if given.

    Raises:
        ConfigError: a run is missing, of another kind than its place, or does not fit the config.
    """
    wanted = {"autoencoder": "autoencoder", "base": "diffusion", "teacher": "diffusion"}
    found: dict[str, Experiment] = {}
    for place, directory in source_directories(config, workdir).items():
        if places is not None and place not in places:
            continue
        source = found[place] = read_config(directory, wanted.get(place, "classifier"))
        if place == "autoencoder":
            build.check_latents(config, source, str(directory))
        elif place == "classifier":
            build.check_guiding(config, source, str(directory))
        elif place == "features" and source.data.image_shape != config.data.image_shape:
            shapes = f"{source.data.image_shape}, this run {config.data.image_shape}"
            raise ConfigError(
                f"sources.features: the classifier {directory} has data.image_shape {shapes}; train one with the same"
            )
        elif place == "teacher":
            build.check_teacher(config, source, str(directory))
            _check_same_latents(config, workdir, directory)
            if (saved := checkpoint.steps(directory)) and saved[-1] < source.steps:
                log.warning("the teacher %s is at step %d of %d", directory, saved[-1], source.steps)
        elif place == "base":
            build.check_cascade(config, source, str(directory))
            found |= {f"base.{name}": below for name, below in source_configs(source, directory, sampling_sources(source)).items()}
    return found


def source_params(config: Experiment, workdir: pathlib.Path | None = None, places: tuple[str, ...] | None = None) -> dict[str, Any]:
    """The params of the runs that a config starts from, by place; of those `places` alone if given.

    Raises:
        ConfigError: the run in `workdir` was trained on another autoencoder than is there now.
    """
    where = source_directories(config, workdir)
    if workdir is not None:
        _check(pathlib.Path(workdir), where, places)
    found: dict[str, Any] = {}
    for place, directory in where.items():
        if places is not None and place not in places:
            continue
        source = read_config(directory)
        step, found[place] = read_params(source, directory)
        if place == "autoencoder":
            check_measured(source, found[place], step, directory)
        if place == "base":
            found |= {f"base.{name}": value for name, value in source_params(source, directory, sampling_sources(source)).items()}
    if config.sources.features.endswith(".npz") and (places is None or "features" in places):
        found["features"] = vgg16(pathlib.Path(config.sources.features))
    return found


def record_sources(config: Experiment, workdir: pathlib.Path) -> None:
    """Writes down the fingerprints of the runs that a run is trained on, or compares them with those that are there.

    Raises:
        ConfigError: they differ.
    """
    where, path = source_directories(config, workdir), pathlib.Path(workdir) / RECORD
    _check(pathlib.Path(workdir), where)
    trained_on = [place for place in build.FROZEN if place in where]
    if trained_on and not path.exists() and checkpoint.steps(workdir):
        place = trained_on[0]
        raise ConfigError(f"{workdir} was begun without sources.{place}; leave it out, or choose another --workdir")
    if trained_on and distributed.is_first():
        prints = {place: {"run": str(where[place]), "fingerprint": fingerprint(where[place])} for place in trained_on}
        files.write_text(path, json.dumps(prints, indent=2) + "\n")


def check_measured(config: Experiment, params: Any, step: int, workdir: pathlib.Path) -> None:
    """Whether an autoencoder's latents have been measured, as they are at the end of its training.

    Raises:
        ConfigError: its `params` are not of the last step, or hold the mean 0 and the standard deviation 1 that they began with.
    """
    fresh = np.all(np.asarray(params["latent"]["shift"]) == 0) and np.all(np.asarray(params["latent"]["scale"]) == 1)
    if step < config.steps or fresh:
        how = "train it on, by its recipe with more --steps" if fresh else "train it on"
        raise ConfigError(
            f"the autoencoder {workdir} is at step {step} of {config.steps}; its latents are measured at the end: {how}"
        )


def fingerprint(workdir: pathlib.Path) -> str:
    """What tells a run's averaged params from all others: eight hexadecimal digits."""
    return checkpoint.fingerprint(workdir, next(iter(read_config(workdir).ema)))


def vgg16(path: pathlib.Path) -> dict[str, Any]:
    """The params of `models.perceptual.vgg16` from a .npz file of torchvision's `vgg16().state_dict()`.

    With LPIPS's own `lin0.model.1.weight` to `lin4.model.1.weight` in it, they weigh the channels.

    Raises:
        ConfigError: no such file, or not these weights.
    """
    with weights.open_npz(path, "VGG16 as torchvision names them") as file:
        kernels, biases = ([file[f"features.{n}.{name}"] for n in VGG16_CONVOLUTIONS] for name in ("weight", "bias"))
        linear = [file[name].reshape(-1) for level in range(5) if (name := f"lin{level}.model.1.weight") in file]
        kernels, biases, linear = ([np.asarray(each, np.float32) for each in arrays] for arrays in (kernels, biases, linear))
    if any(kernel.ndim != 4 or kernel.shape[-1] != 3 for kernel in kernels):
        raise ConfigError(f"sources.features: {path}: the convolutions must be of 3x3, [out, in, 3, 3]")
    if len(linear) not in (0, 5):
        raise ConfigError(f"sources.features: {path} holds {len(linear)} of LPIPS's five lin*.model.1.weight; keep all, or none")
    layers = [{"kernel": k.transpose(2, 3, 1, 0), "bias": b} for k, b in zip(kernels, biases, strict=True)]
    return {"convolutions": layers, **({"weights": linear} if linear else {})}


def _check_same_latents(config: Experiment, workdir: pathlib.Path | None, teacher: pathlib.Path) -> None:
    """Whether the teacher was trained in the latents of the student's autoencoder."""
    known, mine = _record(teacher).get("autoencoder"), source_directories(config, workdir).get("autoencoder")
    if known and mine and known["fingerprint"] != fingerprint(mine):
        raise ConfigError(f"sources.autoencoder {mine} is not that of the teacher {teacher}, {known['run']}; name that one")


def _record(workdir: pathlib.Path) -> dict[str, Any]:
    path = workdir / RECORD
    try:
        found = json.loads(path.read_text()) if path.is_file() else {}
        return {place: {name: str(each[name]) for name in ("run", "fingerprint")} for place, each in found.items()}
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        how = "bring it back, or remove it and sample without knowing that the sources are the same"
        raise ConfigError(f"{path} no longer says what {workdir} was trained on: {how}") from error


def _check(workdir: pathlib.Path, where: Mapping[str, pathlib.Path], places: tuple[str, ...] | None = None) -> None:
    for place, before in _record(workdir).items():
        if places is not None and place not in places:
            continue
        now = fingerprint(where[place]) if place in where else "none"
        if now != before["fingerprint"]:
            raise ConfigError(
                f"{workdir} was trained with the {place} {before['run']} as it was then ({before['fingerprint']}), "
                f"{where.get(place, 'nothing')} is another ({now}); name that one (--sources.{place}) or choose another --workdir"
            )
