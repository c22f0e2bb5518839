"""What a run ends with: samples, reconstructions, and measures of them."""

import dataclasses
import json
import math
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff import data, evaluate
from jaxdiff.app import build
from jaxdiff.app.config import DENOISERS, Experiment, network_calls
from jaxdiff.app.runs import prompts, storage
from jaxdiff.app.runs.trained import cycle_labels, image_sampler, sample_file_name
from jaxdiff.data import Images, normalize
from jaxdiff.io import count, files, pictures, progress
from jaxdiff.io.errors import DataError
from jaxdiff.objectives import psnr
from jaxdiff.training import TrainState, distributed

COLUMNS = 10  # of pictures of reconstructions
CHUNK = 2**17  # pixels encoded at once
TIMES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)  # of its schedule, at which a classifier is measured


class Drawn(NamedTuple):
    """Samples `[N, H, W, C]` of a run at a step, and what they were drawn by: labels `[N]`, and captions of a run with text."""

    step: int
    samples: np.ndarray
    labels: np.ndarray
    captions: Sequence[str] = ()


def finish_run(config: Experiment, workdir: pathlib.Path, data_dir: str | None = None) -> str:
    """Writes what a finished run ends with: samples and their evaluation, reconstructions or accuracy; the text to print.

    What the data set does not allow is left out, and the text says why. All processes must call it, which draw the samples; the
    first does the rest.
    """
    lines = []
    try:
        for line in _endings(config, workdir, data_dir):
            lines.append(line)
    except DataError as error:
        lines.append(f"{workdir} is trained, but not measured: {error}")
    return "\n".join(lines)


def missing_measures(config: Experiment, data_dir: str | None = None) -> str:
    """What the data set will not allow to measure when the run is finished, and why; empty if nothing."""
    num = config.evaluation.num
    captioned = config.model.context_channels and not config.sampling.prompts
    if not (num or config.objective in ENDS or captioned):
        return ""
    try:
        evaluate.check_measures(config.data, num, evaluate.MEASURES if num else (), data_dir)
    except DataError as error:
        return f"at the end of the run: {error}"
    return ""


def _endings(config: Experiment, workdir: pathlib.Path, data_dir: str | None) -> Iterator[str]:
    """Writes what a finished run ends with; yields the text to print."""
    c, drawn = config.evaluation, None
    if config.objective not in ("autoencoder", "classifier"):
        shown = () if c.num else config.sampling.prompts
        drawn = draw_samples(config, workdir, c.num or config.sampling.num, data_dir, texts=shown)
    if not distributed.is_first():
        return
    if drawn:
        yield save_sample_grid(config, drawn, workdir / "samples.png", config.model.num_classes or COLUMNS)
    if config.objective in ENDS:
        step, params = storage.read_params(config, workdir)
        yield ENDS[config.objective](config, workdir, step, params, data_dir)
    elif drawn and c.num:
        evaluator = run_evaluator(config, c.num, data_dir)
        path = workdir / evaluate.FOLDER / sample_file_name(config, config.seed).replace(".png", ".json")
        yield f"{evaluate_samples(config, drawn, evaluator, path).result}\n{path}"


def draw_samples(
    config: Experiment,
    workdir: pathlib.Path,
    num: int,
    data_dir: str | None,
    classes: Sequence[int] = (),
    ema: str | None = None,
    texts: Sequence[str] = (),
) -> Drawn:
    """Samples of a run as its config says, of prompts or of the classes that `conditions` takes in turn.

    All processes must call it.
    """
    step, params = storage.read_params(config, workdir, ema)
    if texts:
        captions = np.resize(texts, num).tolist()
        given = prompts.prompted(config, workdir, captions)
    else:
        given, read, c = (
            conditions(config, workdir, num, data_dir, classes),
            prompts.held_out_captions(config, data_dir),
            config.data,
        )
        captions = read(np.arange(num) % data.num_images(c.name, c.held_out, data_dir)) if read else ()
    label = given.pop("label", cycle_labels([config.model.num_classes], num))
    generate = image_sampler(config, config.evaluation.batch_size, workdir)
    return Drawn(step, generate(params, label, config.seed, given), label, captions)


def save_sample_grid(config: Experiment, drawn: Drawn, out: pathlib.Path, columns: int) -> str:
    """Writes a grid of the first samples to `out`, a .png; the text to print."""
    shown = drawn.samples[: config.sampling.num]
    pictures.save_grid(out, shown, columns=min(columns, 10))
    return f"{count(len(shown), 'sample')} of step {drawn.step}: {out}"


def evaluate_samples(
    config: Experiment, drawn: Drawn, evaluator: evaluate.Evaluator, path: pathlib.Path, ema: str | None = None
) -> evaluate.Record:
    """The measures of samples; writes them to `path`, a .json."""
    how, name = dataclasses.asdict(config.sampling), ema or next(iter(config.ema))
    result = evaluator.measure(drawn.samples, drawn.labels, drawn.captions)
    record = evaluate.Record(drawn.step, how, network_calls(config), config.seed, name, result)
    evaluate.write_record(path, record)
    return record


def conditions(
    config: Experiment, workdir: pathlib.Path, num: int, data_dir: str | None, classes: Sequence[int] = ()
) -> dict[str, Any]:
    """Labels of the classes in turn, by default of all; of a run with text or context vectors all that held-out images have."""
    c = config.model
    if c.context_channels:
        test = load_images(config, workdir, config.data.held_out, data_dir)
        rows = test.rows(np.arange(num) % test.num_examples)
        return {name: each for name, each in rows.items() if name != "image"} | prompts.nulls(config, workdir, num)
    from_prior = config.objective == "vae" or not c.num_classes
    return {"label": cycle_labels(classes or ([c.num_classes] if from_prior else range(c.num_classes)), num)}


def load_images(config: Experiment, workdir: pathlib.Path, split: str, data_dir: str | None) -> Any:
    """The images of a split of the config's data set, with tokens of captions or context vectors where its network reads them."""
    c, channels = config.data, config.model.context_channels
    images = data.load_images(c, split, data_dir)
    if build.has_text(config) and config.objective in DENOISERS:
        return data.with_captions(images, c, split, prompts.tokenizer(config, workdir), data_dir)
    return data.with_context(images, c, split, channels, data_dir) if channels else images


def run_evaluator(
    config: Experiment, num: int, data_dir: str | None = None, *, network: evaluate.Network | None = None, names: Sequence[str] = ()
) -> evaluate.Evaluator:
    """The evaluator of `num` samples against the config's data set, by a network; by default by a classifier of the data.

    The classifier is trained on first use. The named measures are taken, by default all that apply: label agreement only where
    samples have labels, which are those of held-out images where these give the context; the CLIP score only where they have
    captions.
    """
    source = evaluate.data_set(config.data, data_dir)._replace(captions=prompts.held_out_captions(config, data_dir))
    network = network or evaluate.classifier(source, config.evaluation.epochs)
    if not (names or config.model.num_classes or config.model.context_channels):
        network = network._replace(labels=False)
    return evaluate.evaluator(network, source, num, names, config.evaluation.batch_size)


def _finish_classifier(config: Experiment, workdir: pathlib.Path, step: int, params: Any, data_dir: str | None) -> str:
    """Measures a classifier on held-out images at several noise levels; the text to print. Writes `accuracy.json`."""
    test = data.load_images(config.data, config.data.held_out, data_dir)
    levels = build.SCHEDULES[config.diffusion.schedule](config.betas)(jnp.array(TIMES))
    label, key = jax.jit(build.noisy_labels(config)), jax.random.key(config.seed)
    rows = []
    for number, time in enumerate(progress.track(TIMES, "measuring", "level")):
        accuracy = evaluate.accuracy(lambda images, level=levels[number]: label(params, key, images, level), test)
        rows.append({"time": time, "logsnr": float(levels[number].logsnr), "accuracy": accuracy})
    out = workdir / "accuracy.json"
    files.write_text(out, json.dumps({"step": step, "num": test.num_examples, "levels": rows}, indent=2) + "\n")
    line = f"logsnr {{logsnr:5.1f}}: {{accuracy:.1%}} of {count(test.num_examples, 'held-out image')} named right"
    return "\n".join([f"accuracy of step {step}: {out}", *(line.format(**row) for row in rows)])


def _finish_vae(config: Experiment, workdir: pathlib.Path, step: int, params: Any, data_dir: str | None) -> str:
    """Writes reconstructions.png (a row of held-out images above a row of theirs) and interpolations.png."""
    test = data.load_images(config.data, config.data.held_out, data_dir)
    x0 = normalize(test.fetch(np.arange(2 * COLUMNS) % test.num_examples)[0])
    grids = {
        "reconstructions": _facing(x0, reconstructions(config, params, x0)),
        "interpolations": interpolations(config, params, x0[:COLUMNS], x0[COLUMNS:], COLUMNS),
    }
    for name, images in grids.items():
        pictures.save_grid(workdir / f"{name}.png", images, COLUMNS)
    paths = "\n".join(str(workdir / f"{name}.png") for name in grids)
    return f"reconstructions and interpolations of step {step}:\n{paths}"


def reconstructions(config: Experiment, params: Any, x0: np.ndarray) -> np.ndarray:
    """Expected images of the posterior's mean codes of x0 `[B, H, W, C]`."""
    parts = build.vae(config)
    return np.asarray(jax.jit(lambda params, x0: parts.mean(params, parts.encode(params, x0).mean))(params, x0))


def interpolations(config: Experiment, params: Any, a: np.ndarray, b: np.ndarray, num: int) -> np.ndarray:
    """Expected images on straight lines between the codes of a and b `[B, H, W, C]`, ends included, `[B * num, H, W, C]`."""
    parts = build.vae(config)

    @jax.jit
    def between(params, a, b):
        first, last = (parts.encode(params, end).mean for end in (a, b))
        share = jnp.linspace(0, 1, num).reshape(1, num, *(1 for _ in first.shape[1:]))
        codes = first[:, None] * (1 - share) + last[:, None] * share
        return parts.mean(params, codes.reshape(-1, *first.shape[1:]))

    return np.asarray(between(params, a, b))


def _finish_autoencoder(config: Experiment, workdir: pathlib.Path, step: int, params: Any, data_dir: str | None) -> str:
    """Writes reconstructions.png (as that of a VAE) and reconstruction.json; the text to print.

    It holds the PSNR on held-out images, how many times fewer numbers the latents are, and the share of a codebook in use.
    """
    test, networks, c = data.load_images(config.data, config.data.held_out, data_dir), build.codec(config), config.autoencoder

    @jax.jit
    def rebuilt(params: Any, x0: jax.Array) -> tuple[jax.Array, jax.Array]:
        z = networks.encode(params, x0).mean
        index = build.nearest_codes(params, z) if c.codebook else jnp.zeros((), jnp.int32)
        return networks.decode(params, z), index

    ratios, counts = [], []
    for x0 in _chunks(test, test.num_examples):
        images, index = rebuilt(params, x0)
        if not ratios:
            some = np.arange(4 * COLUMNS) % len(x0)
            pictures.save_grid(workdir / "reconstructions.png", _facing(x0[some], np.asarray(images)[some]), COLUMNS)
        ratios.append(psnr(jnp.asarray(x0), images))
        counts.append(np.bincount(np.ravel(index), minlength=max(c.codebook, 1)))
    height, width, channels = networks.latent_shape(config.data.image_shape)
    fewer = math.prod(config.data.image_shape) / (height * width * (1 if c.codebook else channels))
    measures = {"psnr": float(np.mean(np.concatenate(ratios))), "num": test.num_examples, "ratio": fewer}
    text = f"PSNR {measures['psnr']:.2f} dB, mean of {count(test.num_examples, 'held-out image')}, {fewer:.3g} times fewer numbers"
    if c.codebook:
        measures["codebook_usage"] = float(np.mean(np.sum(counts, axis=0) > 0))
        text += f", {measures['codebook_usage']:.1%} of the codes used"
    files.write_text(workdir / "reconstruction.json", json.dumps({"step": step, **measures}, indent=2) + "\n")
    return f"reconstructions of step {step}: {text}: {workdir / 'reconstructions.png'}"


def measure_latents(config: Experiment, source: Images, state: TrainState) -> TrainState:
    """The state with shift and scale of its latents, as the first process measures them on some training images."""
    networks, params = build.codec(config), distributed.replicate_locally(next(iter(state.ema.values())))
    measured = build.measure_latents(networks, params, _chunks(source, min(config.autoencoder.measured, source.num_examples)))
    agreed = distributed.broadcast_from_first({name: np.asarray(value).tolist() for name, value in measured.items()})

    def scaled(params: Any) -> Any:
        latent = {name: np.asarray(agreed[name], leaf.dtype) for name, leaf in params["latent"].items()}
        sharding = jax.tree.map(lambda leaf: leaf.sharding, params["latent"])
        return {**params, "latent": distributed.shard_from_host(latent, sharding)}

    return dataclasses.replace(state, params=scaled(state.params), ema={name: scaled(params) for name, params in state.ema.items()})


def _facing(x0: np.ndarray, images: np.ndarray) -> np.ndarray:
    """Rows of COLUMNS images, each above a row of theirs."""
    rows = np.stack([x0, images]).reshape(2, -1, COLUMNS, *x0.shape[1:])
    return rows.swapaxes(0, 1).reshape(-1, *x0.shape[1:])


def _chunks(source: Images, num: int) -> Iterator[np.ndarray]:
    size = max(1, CHUNK // math.prod(source.fetch(np.zeros(1, np.int64))[0].shape[1:3]))
    for start in progress.track(range(0, num, size), "encoding", "batch"):
        yield normalize(source.fetch(np.arange(start, min(start + size, num)))[0])


ENDS = {"vae": _finish_vae, "autoencoder": _finish_autoencoder, "classifier": _finish_classifier}
