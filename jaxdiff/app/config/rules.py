"""What the fields of a config must be, where their types do not say enough."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from jaxdiff.app.config import distillation
from jaxdiff.app.config.fields import Experiment

# Schedules between which a network that does not scale its input may change: x has the same size at the same logsnr.
FAMILIES = {
    "cosine": "variance preserving",
    "linear": "variance preserving",
    "linear_logsnr": "variance preserving",
    "learned": "variance preserving",
    "karras": "variance exploding",
    "lognormal": "variance exploding",
    "rectified_flow": "straight",
}


def rules(config: Experiment) -> Iterator[tuple[str, str, bool]]:
    """Name, rule, and whether it holds, of every field whose type does not say enough."""
    c = config
    height, width, channels = c.data.image_shape
    factor = 2 ** (len(c.model.multipliers) - 1)
    levels = len(c.model.multipliers)
    halves = f"divisible by {factor}, as {levels} model.multipliers halve it {levels - 1} times"
    yield "seed", "below 2^32", c.seed < 2**32
    yield "model.multipliers", "at least one number, each at least 1", bool(c.model.multipliers) and min(c.model.multipliers) > 0
    yield "data.image_shape", "three positive numbers", min(height, width, channels) > 0
    on_pixels = not c.sources.autoencoder  # else the latents' sizes count, which the autoencoder's run says
    yield "data.image_shape", halves, not on_pixels or (height % factor == 0 and width % factor == 0)
    yield "ema", "at least one name with a decay between 0 and 1", bool(c.ema) and all(0 <= d <= 1 for d in c.ema.values())
    yield "ema", "named in letters, digits, _ and - alone", all(re.fullmatch(r"[\w-]+", name) for name in c.ema)
    sizes = {height // 2**level for level in range(len(c.model.multipliers))}
    yield "model.attention", f"sizes that the network has: {sorted(sizes)}", not on_pixels or set(c.model.attention) <= sizes
    yield "evaluation.num", "0 or at least 10", c.evaluation.num == 0 or c.evaluation.num >= 10
    yield "sampling.eta", "0 for a sampler that is not ddim", c.sampling.sampler == "ddim" or c.sampling.eta == 0
    named = bool(c.sampling.classifier)
    yield "sampling.classifier_scale", "1 unless sampling.classifier names a run", named or c.sampling.classifier_scale == 1
    of_run = f"0 for {with_article(c.objective)}, which draws no samples while it trains"
    denoises = c.objective in distillation.DENOISERS
    yield "sampling.every", of_run, denoises or c.sampling.every == 0
    only = [(f"model.{name}", distillation.DENOISERS) for name in ("fourier", "heads", "transformer", "context_channels")]
    for name, where in (("model.dropout", (*distillation.DENOISERS, "classifier")), *only):
        yield name, f"not set for {with_article(c.objective)}, whose network has none", c.objective in where or not _value(c, name)
    yield "sampling.classifier", "empty for all but denoisers", denoises or not c.sampling.classifier
    coded = c.objective in ("vae", "autoencoder")
    yield "evaluation.num", f"0 for {with_article(c.objective)}, which has no labels", not coded or c.evaluation.num == 0
    yield from _steps_per_call_rules(c)
    yield from _source_rules(c)
    yield from distillation.rules(c)
    learned = c.diffusion.schedule == "learned"
    yield "diffusion.schedule", f"a fixed one for {with_article(c.objective)}", not learned or c.objective == "diffusion"
    yield "diffusion.weight", "elbo with a learned schedule, which lowers its variance", not learned or c.diffusion.weight == "elbo"
    short = c.diffusion.schedule in ("learned", "linear_logsnr")
    same = c.diffusion.sampling_schedule in ("", "linear_logsnr")
    yield "diffusion.sampling_schedule", "empty or linear_logsnr: training saw no levels beyond its ends", not short or same
    trained_only = c.diffusion.schedule == "lognormal" and not c.diffusion.sampling_schedule
    yield "diffusion.sampling_schedule", "set (to karras, say) when training draws lognormal levels", not trained_only
    families = {FAMILIES[name] for name in (c.diffusion.schedule, c.diffusion.sampling_schedule) if name}
    alike = f"of the family of {c.diffusion.schedule}, unless the prediction is edm: the network has not seen such inputs"
    yield "diffusion.sampling_schedule", alike, len(families) == 1 or c.diffusion.prediction == "edm"


def _steps_per_call_rules(c: Experiment) -> Iterator[tuple[str, str, bool]]:
    """Those of steps that are done together: nothing may happen between them."""
    yield "steps_per_call", "1 under pmap", c.steps_per_call == 1 or c.mesh.mapping == "jit"
    between = {"steps": c.steps, "log_every": c.log_every, "checkpoint_every": c.checkpoint_every}
    between |= {"sampling.every": c.sampling.every, "steps of a round": distillation.round_steps(c)}
    for name, every in between.items():
        yield "steps_per_call", f"a divisor of {name}, {every}", every % c.steps_per_call == 0


def _source_rules(c: Experiment) -> Iterator[tuple[str, str, bool]]:
    """Those of runs that a run starts from."""
    diffusion, compresses = c.objective in distillation.DENOISERS, c.objective == "autoencoder"
    height, width, _ = c.data.image_shape
    for name in ("autoencoder", "base"):
        yield f"sources.{name}", f"empty for {with_article(c.objective)}", diffusion or not _value(c, f"sources.{name}")
    yield "sources.features", f"empty for {with_article(c.objective)}", compresses or not c.sources.features
    wants = c.autoencoder.perceptual > 0
    yield (
        "sources.features",
        "given with autoencoder.perceptual, and only with it",
        not compresses or wants == bool(c.sources.features),
    )
    together = c.mesh.mapping == "jit" and c.optimizer.accumulate == 1
    yield (
        "autoencoder.codebook",
        "0 under pmap or accumulation, which would average revived codes",
        together or not c.autoencoder.codebook,
    )
    latent, enlarges = bool(c.sources.autoencoder), c.cascade.factor > 1
    yield "sampling.clip", "False in latent space, whose values have no bounds", not latent or not c.sampling.clip
    yield "sources.autoencoder", "empty in a cascade: its models work on pixels", not (latent and enlarges)
    yield "sampling.classifier", "empty in latent space", not (latent and c.sampling.classifier)
    yield "data.latents", "empty without sources.autoencoder, whose latents it holds", latent or not c.data.latents
    yield "sources.base", "given with cascade.factor above 1, and only with it", enlarges == bool(c.sources.base)
    fits = height % c.cascade.factor == 0 and width % c.cascade.factor == 0
    yield "diffusion.schedule", "a fixed one in a cascade", not (enlarges and c.diffusion.schedule == "learned")
    yield "data.image_shape", f"divisible by cascade.factor {c.cascade.factor}", fits
    below = c.cascade.augmentation <= c.cascade.max_augmentation
    yield "cascade.augmentation", "at most cascade.max_augmentation, which training has seen", below
    attends = bool(c.model.context_channels)
    yield "sampling.every", "0 with context vectors, which the data set brings", not attends or not c.sampling.every
    yield "data.latents", "empty with model.context_channels: a cache keeps no context", not attends or not c.data.latents
    yield "model.num_classes", "at least 1 for a classifier", c.objective != "classifier" or c.model.num_classes > 0
    yield (
        "evaluation.num",
        "0 with model.num_classes 0: there are no labels to judge by",
        c.model.num_classes > 0 or c.evaluation.num == 0,
    )
    late = c.autoencoder.adversarial and c.autoencoder.adversarial_start >= c.steps and compresses
    yield "autoencoder.adversarial_start", f"below steps, {c.steps}, or the discriminator never begins", not late
    seen = not c.sources.features.endswith(".npz") or (min(height, width) >= 16 and c.data.image_shape[2] in (1, 3))
    yield "data.image_shape", "of 1 or 3 channels and at least 16 pixels for features of VGG16", seen
    needs = "0 without model.transformer blocks to attend to them"
    yield "model.context_channels", needs, not attends or bool(c.model.transformer)


def with_article(objective: str) -> str:
    """The objective after its article."""
    return f"an {objective}" if objective[0] in "aeiou" else f"a {objective}"


def _value(config: Any, name: str) -> Any:
    for part in name.split("."):
        config = getattr(config, part)
    return config
