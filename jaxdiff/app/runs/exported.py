"""Runs written as the world has them: a folder of diffusers, or a LoRA file, with a card that says what was measured."""

import dataclasses
import pathlib
from typing import Any

import numpy as np

from jaxdiff import interop, process
from jaxdiff.app import build
from jaxdiff.app.config import Experiment, guidance_is_input
from jaxdiff.app.runs import storage
from jaxdiff.app.runs.experiments import options, text_options
from jaxdiff.app.runs.imported import LICENCE, record_of
from jaxdiff.app.runs.sources import source_configs
from jaxdiff.interop import saving
from jaxdiff.interop.chains import PREDICTIONS, Chain
from jaxdiff.io import count, files, paths
from jaxdiff.io.errors import ConfigError
from jaxdiff.training import checkpoint

CARD = "README.md"
LORA = "pytorch_lora_weights.safetensors"  # diffusers' name


def export_run(workdir: pathlib.Path, out: pathlib.Path, dtype: str = "float32", ema: str | None = None) -> str:
    """Writes a run of diffusion, a student or an autoencoder into a new folder for diffusers; says what was written.

    A run that trained adapters is written as one LoRA file.

    Raises:
        ConfigError: the run is of another kind, or there is something in `out`.
        DataError: the run's network has an option that diffusers lacks.
    """
    config = storage.read_config(workdir)
    if config.objective in ("vae", "classifier", "text") or config.cascade.factor > 1:
        raise ConfigError(f"{workdir} is a {config.objective} run or a cascade's; diffusers has no such network")
    saving.check_new(out)
    with files.writing_to(out, "--out"), files.atomic_folder(out, CARD) as draft:
        _write(config, workdir, draft, dtype, ema)
        _add_licences(workdir, draft)
        files.write_text(draft / CARD, card(config, workdir))
        num = sum(1 for path in draft.rglob("*") if path.is_file())
    return f"{workdir} as {count(num, 'file')}: {out}"


def _write(config: Experiment, workdir: pathlib.Path, out: pathlib.Path, dtype: str, ema: str | None) -> None:
    """Writes the weights of a run, and what describes them."""
    if config.objective == "autoencoder":
        interop.save_network(out, _autoencoder(config, workdir, ema), dtype)
    elif config.distillation.lora_rank and guidance_is_input(config):
        raise ConfigError(f"{workdir} is told the guidance scale, which a LoRA file has no place for; train it with one scale")
    elif config.distillation.lora_rank:
        sources = source_configs(config, workdir, ("autoencoder",))
        interop.save_lora(out / LORA, storage.read_params(config, workdir, ema)[1], options(config, sources))
    else:
        chain = chain_of(config, workdir)
        directory = storage.source_directories(config, workdir).get("autoencoder")
        autoencoder = None if directory is None else _autoencoder(storage.read_config(directory), directory, None)
        interop.save_pipeline(out, _unet(config, workdir, ema), chain, autoencoder, dtype, _texts(config, workdir))


def chain_of(config: Experiment, workdir: pathlib.Path) -> Chain:
    """The noise schedule of a run, as published files have it.

    Raises:
        ConfigError: diffusers has no such schedule or prediction.
    """
    d, p, s = config.diffusion, config.published, config.sampling
    if p.told == "log_sigma" and d.schedule in ("karras", "lognormal") and d.prediction == "edm" and p.boundary:
        return Chain({"kind": "linear"}, "edm", "karras", clip=s.clip, consistency=p.boundary)
    if d.schedule != "betas" or p.told != "step":
        what = f"diffusion.schedule {d.schedule} and published.told {p.told}"
        raise ConfigError(f"{workdir} has {what}, which diffusers lacks; configs/cifar10_diffusers.py trains with betas and steps")
    if d.prediction not in PREDICTIONS.values():
        raise ConfigError(f"{workdir} predicts {d.prediction}, which diffusers lacks; train it with noise, v or x0")
    betas = {name: value for name, value in dataclasses.asdict(config.betas).items() if value or name == "first"}
    spacing = s.spacing if s.spacing in process.TIMESTEPS else "trailing"
    return Chain(betas, d.prediction, spacing, s.steps_offset, s.clip)


def card(config: Experiment, workdir: pathlib.Path) -> str:
    """A model card: what it is, how it is sampled, and the figures of the run's evaluations."""
    from jaxdiff import evaluate

    record, step = record_of(workdir), checkpoint.steps(workdir)[-1]
    came = f"published weights ({record['source']})" if record else f"{count(step, 'training step')} on {config.data.name}"
    shape = "x".join(map(str, config.data.image_shape))
    lines = [f"# {paths.resolved(workdir).name}", "", f"A {config.objective} network of jaxdiff for images of {shape}: {came}."]
    if config.objective != "autoencoder":
        lines += [f"Sampled by {evaluate.describe_sampling(vars(config.sampling))}."]
    if config.model.num_classes and config.diffusion.label_dropout:
        lines += [f"It knows {count(config.model.num_classes, 'label')}; the next, {config.model.num_classes}, is no label at all."]
    try:
        table = evaluate.results_table(
            [(evaluate.describe_sampling(each.sampling), each) for each in evaluate.results_of_run(workdir)]
        )
    except ConfigError:
        return "\n".join([*lines, ""])
    return "\n".join([*lines, "", "Measured by `jaxdiff evaluate`:", "", "```", table, "```", ""])


def _unet(config: Experiment, workdir: pathlib.Path, ema: str | None) -> saving.Network:
    sources = source_configs(config, workdir, ("autoencoder",))
    kept = record_of(workdir).get("options", {})
    size = build.space(config, sources)[:2]
    params = build.adapted(config, {}, storage.read_params(config, workdir, ema)[1])
    return saving.Network(params, {**options(config, sources), **kept}, size)


def _texts(config: Experiment, workdir: pathlib.Path) -> list[interop.TextNetwork]:
    """The frozen text encoders of a run, with their tokenizers; one that was trained with it has no place in diffusers."""
    if config.text.layers:
        raise ConfigError(f"{workdir} has a text encoder of its own words, which diffusers lacks")
    found = storage.source_directories(config, workdir, build.TEXTS)
    configs = {place: storage.read_config(folder, "text") for place, folder in found.items()}
    return [
        interop.TextNetwork(
            storage.read_params(each, found[place])[1], text_options(each.text), interop.tokenizer(paths.path(found[place]))
        )
        for place, each in configs.items()
    ]


def _autoencoder(config: Experiment, workdir: pathlib.Path, ema: str | None) -> saving.Network:
    """An autoencoder, whose latents diffusers scales by one number alone: several are folded into the layers beside them."""
    found, params = options(config), storage.read_params(config, workdir, ema)[1]
    shift, scale = (np.asarray(params["latent"][name]) for name in ("shift", "scale"))
    same = np.all(shift == shift[0]) and np.all(scale == scale[0])
    if not same and found["codebook"]:
        raise ConfigError(f"{workdir} has a codebook and a scale for each channel of its latents, which diffusers lacks")
    if same:
        scales = {"scaling_factor": float(f"{1 / scale[0]:.6g}"), "shift_factor": float(f"{shift[0]:.6g}")}
    else:
        params, scales = _folded(params, shift, scale), {"scaling_factor": 1.0, "shift_factor": 0.0}
    return saving.Network(params, {**found, **scales}, config.data.image_shape[:2])


def _folded(params: Any, shift: np.ndarray, scale: np.ndarray) -> Any:
    """The params of an autoencoder whose latents need no scale: it is in the last layer to them, and the first from them."""
    quant, post = params["encoder"]["quant"], params["decoder"]["post_quant"]
    width = len(scale)
    kernel, bias = np.array(quant["kernel"]), np.array(quant["bias"])
    kernel[:, :width] /= scale
    bias[:width] = (bias[:width] - shift) / scale
    bias[width:] -= np.log(scale)  # of the standard deviation
    after = np.asarray(post["kernel"])
    decoder = {"kernel": after * scale[:, None], "bias": np.asarray(post["bias"]) + shift @ after}
    encoder = {**params["encoder"], "quant": {"kernel": kernel, "bias": bias}}
    return {**params, "encoder": encoder, "decoder": {**params["decoder"], "post_quant": decoder}}


def _add_licences(workdir: pathlib.Path, out: pathlib.Path) -> None:
    """Copies the licence of published weights, for which whoever passes them on is answerable."""
    folder = paths.path(workdir) / LICENCE
    for path in folder.iterdir() if folder.is_dir() else ():
        name = "SOURCE_README.md" if path.name == CARD else path.name
        files.write_text(out / name, path.read_text())
