"""Bits per dimension of a trained run on a test split, by every estimator that applies to it."""

import dataclasses
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxdiff import data, likelihood, process
from jaxdiff.app import build
from jaxdiff.app.config import STUDENTS, Experiment
from jaxdiff.app.runs import storage
from jaxdiff.data import Images, normalize
from jaxdiff.io import files, paths, progress
from jaxdiff.io.errors import ConfigError, NonFiniteError
from jaxdiff.likelihood import Estimate
from jaxdiff.samplers import dpmpp_3m

Estimator = Callable[[Any, Array, Array, Array], Estimate]  # (params, key, x0 [B, ...], label [B]) -> nats [B]


@dataclass(frozen=True)
class Effort:
    """How much each estimator computes."""

    steps: int = 1000  # of the discrete chain
    times: int = 32  # intervals of time of the continuous bound, two network calls in each
    flow_steps: int = 256  # of the probability-flow ODE
    probes: int = 1  # of its divergence at each step; 0 is the exact divergence
    codes: int = 64  # of a VAE's bounds


@dataclass(frozen=True)
class Measured:
    """The images whose likelihood is estimated: the first of a split, each given its label or none."""

    split: str = "test"
    num: int = 1000
    conditional: bool = True
    batch_size: int = 100  # images at once
    data_dir: str | None = None


@dataclass(frozen=True)
class Report:
    """Estimates of the same images, in bits per dimension, and of each its difference from the first, image by image."""

    step: int
    num: int
    of: str
    effort: Effort
    estimates: Mapping[str, Estimate]
    differences: Mapping[str, Estimate]

    def __str__(self) -> str:
        lines = [f"likelihood of step {self.step}, {self.num} {self.of} (bits/dim with standard error, less is better)"]
        for name, each in self.estimates.items():
            terms = ", ".join(f"{term} {float(value):.3f}" for term, value in each.terms.items())
            lines.append(f"{name:>13} {float(each.value):7.4f} +- {float(each.standard_error):.4f}   {terms}")
        first = next(iter(self.estimates))
        for name, each in self.differences.items():
            lines.append(f"{name} - {first}: {float(each.value):+.4f} +- {float(each.standard_error):.4f} on the same images")
        if not {"flow", "flow_uniform"}.isdisjoint(self.estimates):
            lines.append(f"the flow's errors leave out that of its {self.effort.flow_steps} steps: compare with half as many")
        return "\n".join(lines)


def diffusion_estimators(config: Experiment, effort: Effort) -> dict[str, Estimator]:
    """Those of a diffusion run: bounds in discrete and continuous time, and the flow's density by either dequantization.

    The flow's log-density is that of the data with the cleanest level's noise; `flow` draws that noise as its variational
    dequantization, which suits a model of 8-bit data; `flow_uniform` is for one trained on dequantized data.
    """
    divergence = likelihood.hutchinson(effort.probes) if effort.probes else likelihood.exact()
    denoiser, gaussian = partial(build.conditional_denoiser, config), likelihood.discretized_gaussian

    def smooth(params):
        return process.uniform_logsnr(build.sampling_schedule(config, params))

    def discrete(params, key, x0, label):
        levels = process.grid(smooth(params), effort.steps, t_min=0)
        return likelihood.discrete_bound(denoiser(params, label), x0, levels, key, gaussian, num_samples=1)

    def continuous(params, key, x0, label):
        learned = config.diffusion.schedule == "learned" and not config.diffusion.sampling_schedule
        schedule = build.sampling_schedule(config, params) if learned else smooth(params)
        return likelihood.continuous_bound(denoiser(params, label), x0, schedule, key, gaussian, num_times=effort.times)

    def flow(params, key, x0, label, by=likelihood.diffused):
        levels = process.grid(smooth(params), effort.flow_steps, t_min=0)
        denoise = denoiser(params, label)

        def log_density(x, key):
            return likelihood.flow_log_density(denoise, x, levels, key, dpmpp_3m(), divergence)

        return likelihood.dequantized_bound(log_density, x0, key, by(denoise, levels[-2]), num_samples=1)

    uniform = partial(flow, by=lambda denoise, level: likelihood.uniform)
    return {"discrete": discrete, "continuous": continuous, "flow": flow, "flow_uniform": uniform}


def vae_estimators(config: Experiment, effort: Effort) -> dict[str, Estimator]:
    """Those of a VAE: its ELBO, and the importance-weighted bound, which is higher."""
    parts = build.vae(config)

    def bound(of, params, key, x0, label):
        return of(partial(parts.encode, params), partial(parts.log_prob, params), x0, key, effort.codes)

    return {"elbo": partial(bound, likelihood.elbo), "importance": partial(bound, likelihood.importance_bound)}


def estimators(config: Experiment, names: Sequence[str], effort: Effort) -> dict[str, Estimator]:
    """The named estimators of a run's config, which must apply to such a run, by default all but `flow_uniform`."""
    objective, sources = config.objective, config.sources
    latent = objective == "autoencoder" or sources.autoencoder or sources.base
    density = objective == "vae" and config.vae.pixels == "gaussian"
    refused = {
        "a classifier has no likelihood of images; give a diffusion or a vae run": objective == "classifier",
        f"a {objective} student has none: it no longer denoises its data; give a diffusion run": objective in STUDENTS,
        "of images there is none in latents or in a cascade; give a run on pixels, or a vae run": latent,
        "is not made for runs with context vectors; give one without model.context_channels": config.model.context_channels,
        "gaussian pixels have a density, not a probability; train with vae.pixels logistic": density,
    }
    if reasons := [reason for reason, holds in refused.items() if holds]:
        raise ConfigError(f"--likelihood: {reasons[0]}")
    known = (vae_estimators if objective == "vae" else diffusion_estimators)(config, effort)
    if wrong := [name for name in names if name not in known]:
        raise ConfigError(f"--estimators {wrong[0]}: does not apply to a {objective} run; write some of {', '.join(known)}")
    return {name: known[name] for name in names or [name for name in known if name != "flow_uniform"]}


def estimate(
    chosen: Mapping[str, Estimator], params: Any, source: Images, num: int, null_label: int | None, batch_size: int, seed: int
) -> dict[str, Estimate]:
    """The estimates of the first `num` images, in nats, `[num]` each; with a `null_label` of the unconditional model."""
    size, key = min(batch_size, num), jax.random.key(seed)
    estimates: dict[str, Estimate] = {}
    for name, estimator in chosen.items():
        compiled, parts = jax.jit(estimator), []
        for start in progress.track(range(0, num, size), name, "batch"):
            pixels, label = source.fetch(np.arange(start, start + size) % num)
            x0 = normalize(pixels)
            likelihood.check_data(x0, likelihood.discretized_gaussian)
            label = label if null_label is None else np.full_like(label, null_label)
            parts.append(jax.device_get(compiled(params, jax.random.fold_in(key, start), x0, label)))
        estimates[name] = jax.tree.map(lambda *leaves: np.concatenate(leaves)[:num], *parts)
        if not np.isfinite(estimates[name].value).all():
            raise NonFiniteError(f"likelihood: {name} has NaN or infinite values; try more --steps")
    return estimates


def evaluate_likelihood(
    workdir: pathlib.Path, names: Sequence[str] = (), effort: Effort = Effort(), images: Measured = Measured()
) -> Report:
    """The report of a run on images of its data set, by the named estimators. Writes `likelihood.json`.

    Raises:
        ConfigError: an estimator does not apply, there are not two images, or they are padded: padding would count as data.
        NonFiniteError: an estimate is NaN or infinite.
    """
    config = storage.read_config(workdir)
    c, chosen = config.data, estimators(config, names, effort)
    source = data.load_images(c, images.split, images.data_dir)
    if c.fit == "pad" and source.native_shape != c.image_shape:
        padded = f"{workdir} pads images of {source.native_shape} to {c.image_shape}, and padding counts as easy data"
        how = f"train with --data.image-shape {' '.join(map(str, source.native_shape))}"
        raise ConfigError(f"--likelihood: {padded}; {how}")
    num = min(images.num, source.num_examples)
    if num < 2:
        raise ConfigError(f"--likelihood: {num} image has no error bar; give --num and --split at least two")
    step, params = storage.read_params(config, workdir)
    unlabelled = config.objective == "vae" or not (images.conditional and config.model.num_classes)
    each = estimate(chosen, params, source, num, config.model.num_classes if unlabelled else None, images.batch_size, config.seed)
    of = f"{images.split} images of {c.name}" + ("" if unlabelled else ", each given its label")
    if config.objective == "vae" and config.vae.pixels == "binary":
        of += ", cut to black and white"

    def mean(values: Estimate) -> Estimate:
        return likelihood.in_bits_per_dim(likelihood.mean(jax.tree.map(jnp.asarray, values)), c.image_shape)

    (_, first), *others = each.items()
    differences = {name: mean(dataclasses.replace(own, value=own.value - first.value, terms={})) for name, own in others}
    report = Report(step, num, of, effort, {name: mean(own) for name, own in each.items()}, differences)
    text = json.dumps(dataclasses.asdict(report), indent=2, default=float)
    files.write_text(paths.path(workdir) / "likelihood.json", text + "\n")
    return report
