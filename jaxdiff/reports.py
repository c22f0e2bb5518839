"""What a run ends with: pictures of its samples, and measures of them."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff import files, lineage, pictures, progress, recipe
from jaxdiff.config import Experiment
from jaxdiff.run import cycling, generation

TIMES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)  # of its schedule, at which a classifier is measured


def finish(
    config: Experiment, workdir: pathlib.Path, out: pathlib.Path, classes: Sequence[int], data_dir: str | None = None
) -> str:
    """Samples a trained run and, where the config asks for it, judges the samples; what to print.

    Writes a grid to `out`, a .png, and the report beside it, with the same name and .json.
    """
    step, params = lineage.read_params(config, workdir)
    labels, context = cycling(classes, config.evaluation.num or config.sampling.num), None
    if config.model.context_channels:
        labels, context = conditions(config, len(labels), data_dir)
    samples = generation(config, config.evaluation.batch_size, workdir)(params, labels, config.seed, context)
    shown = samples[: config.sampling.num]
    pictures.save_grid(out, shown, columns=min(len(classes), 10))
    lines = [f"{len(shown)} samples of step {step}: {out}"]
    if config.evaluation.num:
        report = judge(config, config.evaluation.epochs, data_dir)(samples, labels)
        record = {"step": step, "sampling": dataclasses.asdict(config.sampling), "report": dataclasses.asdict(report)}
        files.write(out.with_suffix(".json"), json.dumps(record, indent=2) + "\n")
        lines.append(str(report))
    return "\n".join(lines)


def conditions(config: Experiment, num: int, data_dir: str | None) -> tuple[np.ndarray, np.ndarray]:
    """Labels and context vectors of the first images of the test split, over and over."""
    from jaxdiff import data

    test = data.of(config.data, config.data.held_out, data_dir)
    test = data.with_context(test, config.data, config.data.held_out, config.model.context_channels, data_dir)
    rows = test.rows(np.arange(num) % test.num_examples)
    return rows["label"], rows["context"]


def finish_vae(config: Experiment, workdir: pathlib.Path, data_dir: str | None = None) -> str:
    """Draws the pictures of a trained VAE; what to print."""
    from jaxdiff import autoencoding

    step, params = lineage.read_params(config, workdir)
    out = pathlib.Path(workdir) / "samples.png"
    labels = cycling([config.model.num_classes], config.sampling.num)
    pictures.save_grid(out, generation(config)(params, labels, config.seed), columns=10)
    drawn = autoencoding.draw(config, workdir, params, data_dir)
    return "\n".join([f"samples, reconstructions and interpolations of step {step}:", *map(str, [out, *drawn])])


def finish_autoencoder(config: Experiment, workdir: pathlib.Path, data_dir: str | None = None) -> str:
    """Measures a trained autoencoder on held-out images, and draws some; what to print. Writes `reconstruction.json`."""
    from jaxdiff import autoencoding

    step, params = lineage.read_params(config, workdir)
    found = autoencoding.reconstruction(config, workdir, params, data_dir)
    out = pathlib.Path(workdir) / "reconstruction.json"
    files.write(out, json.dumps({"step": step, **found}, indent=2) + "\n")
    usage = f", {found['codebook_usage']:.1%} of the codes used" if "codebook_usage" in found else ""
    return (
        f"reconstructions of step {step}: PSNR {found['psnr']:.2f} dB, mean of {found['num']} held-out images, "
        f"{found['ratio']:.3g} times fewer numbers{usage}: {out.with_name('reconstructions.png')}"
    )


def finish_classifier(config: Experiment, workdir: pathlib.Path, data_dir: str | None = None) -> str:
    """Measures a trained classifier on held-out images at several noise levels; what to print. Writes `accuracy.json`."""
    from jaxdiff import data, evaluate

    step, params = lineage.read_params(config, workdir)
    test = data.of(config.data, config.data.held_out, data_dir)
    levels = recipe.SCHEDULES[config.diffusion.schedule]()(jnp.array(TIMES))
    label, key = jax.jit(recipe.labeller(config)), jax.random.key(config.seed)
    rows = []
    for number, time in enumerate(progress.over(TIMES, "measuring", "level")):
        accuracy = evaluate.accuracy(lambda images, level=levels[number]: label(params, key, images, level), test)
        rows.append({"time": time, "logsnr": float(levels[number].logsnr), "accuracy": accuracy})
    out = pathlib.Path(workdir) / "accuracy.json"
    files.write(out, json.dumps({"step": step, "num": test.num_examples, "levels": rows}, indent=2) + "\n")
    lines = [
        f"logsnr {row['logsnr']:5.1f}: {row['accuracy']:.1%} of {test.num_examples} held-out images named right" for row in rows
    ]
    return "\n".join([f"accuracy of step {step}: {out}", *lines])


def judge(config: Experiment, epochs: int, data_dir: str | None = None) -> Callable[[np.ndarray, np.ndarray], Any]:
    """A function `(samples, labels)` to an `evaluate.Report` against the config's data set, by a classifier trained on it now."""
    from jaxdiff import data, evaluate

    c = config.data
    train, test = (data.of(c, split, data_dir) for split in (c.split, c.held_out))
    trained = evaluate.train_judge(train, test, epochs)
    return partial(evaluate.report, trained, evaluate.reference(trained, train, test))
