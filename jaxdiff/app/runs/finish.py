"""What a run ends with: pictures of its samples, and measures of them."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff import evaluate
from jaxdiff.app import build
from jaxdiff.app.config import Experiment, network_calls
from jaxdiff.app.runs import storage
from jaxdiff.app.runs.train import cycle_labels, image_sampler, sample_file_name
from jaxdiff.io import files, pictures, progress

TIMES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)  # of its schedule, at which a classifier is measured


class Drawn(NamedTuple):
    """Samples `[N, H, W, C]` of a run at a step, and the labels `[N]` that they were asked to be."""

    step: int
    samples: np.ndarray
    labels: np.ndarray


def finish(
    config: Experiment, workdir: pathlib.Path, out: pathlib.Path, classes: Sequence[int], data_dir: str | None = None
) -> str:
    """Samples a trained run and, where the config asks for it, judges the samples; what to print.

    Writes a grid to `out`, a .png, and what was measured into the run's `evaluations`.
    """
    c = config.evaluation
    drawn = draw_samples(config, workdir, classes, c.num or config.sampling.num, data_dir)
    lines = [save_sample_grid(config, drawn, out, len(classes))]
    if c.num:
        judged = run_evaluator(config, c.num, c.epochs, data_dir)
        path = workdir / evaluate.FOLDER / sample_file_name(config, config.seed).replace(".png", ".json")
        lines += [str(evaluate_samples(config, drawn, judged, path).result), str(path)]
    return "\n".join(lines)


def draw_samples(
    config: Experiment,
    workdir: pathlib.Path,
    classes: Sequence[int],
    num: int,
    data_dir: str | None = None,
    ema: str | None = None,
) -> Drawn:
    """Samples of a run of these classes in turn; with context vectors those of held-out images."""
    step, params = storage.read_params(config, workdir, ema)
    labels, context = cycle_labels(classes, num), None
    if config.model.context_channels:
        labels, context = conditions(config, num, data_dir)
    return Drawn(step, image_sampler(config, config.evaluation.batch_size, workdir)(params, labels, config.seed, context), labels)


def save_sample_grid(config: Experiment, drawn: Drawn, out: pathlib.Path, columns: int) -> str:
    """Writes a grid of the first samples to `out`, a .png; what to print."""
    shown = drawn.samples[: config.sampling.num]
    pictures.save_grid(out, shown, columns=min(columns, 10))
    return f"{len(shown)} samples of step {drawn.step}: {out}"


def evaluate_samples(
    config: Experiment, drawn: Drawn, judged: evaluate.Evaluator, path: pathlib.Path, ema: str | None = None
) -> evaluate.Record:
    """Measures samples by a judge; writes what it finds to `path`, a .json."""
    how, name = dataclasses.asdict(config.sampling), ema or next(iter(config.ema))
    result = judged.measure(drawn.samples, drawn.labels)
    record = evaluate.Record(drawn.step, how, network_calls(config), config.seed, name, result)
    evaluate.write_record(path, record)
    return record


def conditions(config: Experiment, num: int, data_dir: str | None) -> tuple[np.ndarray, np.ndarray]:
    """Labels and context vectors of the first images of the test split, over and over."""
    from jaxdiff import data

    test = data.load_images(config.data, config.data.held_out, data_dir)
    test = data.with_context(test, config.data, config.data.held_out, config.model.context_channels, data_dir)
    rows = test.rows(np.arange(num) % test.num_examples)
    return rows["label"], rows["context"]


def finish_vae(config: Experiment, workdir: pathlib.Path, data_dir: str | None = None) -> str:
    """Draws the pictures of a trained VAE; what to print."""
    from jaxdiff.app.runs import reconstruction

    step, params = storage.read_params(config, workdir)
    out = pathlib.Path(workdir) / "samples.png"
    labels = cycle_labels([config.model.num_classes], config.sampling.num)
    pictures.save_grid(out, image_sampler(config)(params, labels, config.seed), columns=10)
    drawn = reconstruction.draw_reconstructions(config, workdir, params, data_dir)
    return "\n".join([f"samples, reconstructions and interpolations of step {step}:", *map(str, [out, *drawn])])


def finish_autoencoder(config: Experiment, workdir: pathlib.Path, data_dir: str | None = None) -> str:
    """Measures a trained autoencoder on held-out images, and draws some; what to print. Writes `reconstruction.json`."""
    from jaxdiff.app.runs import reconstruction

    step, params = storage.read_params(config, workdir)
    found = reconstruction.evaluate_reconstructions(config, workdir, params, data_dir)
    out = pathlib.Path(workdir) / "reconstruction.json"
    files.write_text(out, json.dumps({"step": step, **found}, indent=2) + "\n")
    usage = f", {found['codebook_usage']:.1%} of the codes used" if "codebook_usage" in found else ""
    return (
        f"reconstructions of step {step}: PSNR {found['psnr']:.2f} dB, mean of {found['num']} held-out images, "
        f"{found['ratio']:.3g} times fewer numbers{usage}: {out.with_name('reconstructions.png')}"
    )


def finish_classifier(config: Experiment, workdir: pathlib.Path, data_dir: str | None = None) -> str:
    """Measures a trained classifier on held-out images at several noise levels; what to print. Writes `accuracy.json`."""
    from jaxdiff import data

    step, params = storage.read_params(config, workdir)
    test = data.load_images(config.data, config.data.held_out, data_dir)
    levels = build.SCHEDULES[config.diffusion.schedule]()(jnp.array(TIMES))
    label, key = jax.jit(build.noisy_labels(config)), jax.random.key(config.seed)
    rows = []
    for number, time in enumerate(progress.track(TIMES, "measuring", "level")):
        accuracy = evaluate.accuracy(lambda images, level=levels[number]: label(params, key, images, level), test)
        rows.append({"time": time, "logsnr": float(levels[number].logsnr), "accuracy": accuracy})
    out = pathlib.Path(workdir) / "accuracy.json"
    files.write_text(out, json.dumps({"step": step, "num": test.num_examples, "levels": rows}, indent=2) + "\n")
    lines = [
        f"logsnr {row['logsnr']:5.1f}: {row['accuracy']:.1%} of {test.num_examples} held-out images named right" for row in rows
    ]
    return "\n".join([f"accuracy of step {step}: {out}", *lines])


def run_evaluator(
    config: Experiment,
    num: int,
    epochs: int,
    data_dir: str | None = None,
    *,
    weights: pathlib.Path | None = None,
    names: Sequence[str] = (),
) -> evaluate.Evaluator:
    """What measures `num` samples against the config's data set: by the classifier of it, or InceptionV3 with a file's weights.

    The classifier is trained for so many epochs, on first use. What is named is measured, or all that applies.

    Raises:
        ConfigError: what is named is unknown or does not apply, or the file holds no weights.
        DataError: the data set cannot be read.
    """
    source = evaluate.data_set(config.data, data_dir)
    network = evaluate.classifier(source, epochs) if weights is None else evaluate.inception(weights)
    return evaluate.evaluator(network, source, num, names or _measures(config, network), config.evaluation.batch_size)


def _measures(config: Experiment, network: evaluate.Network) -> list[str]:
    """All that apply."""
    labelled = network.labels and config.model.num_classes > 0
    return [name for name in evaluate.MEASURES if labelled or name != "label_agreement"]
