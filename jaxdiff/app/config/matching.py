"""The fields of distribution matching: a generator, the fake denoiser of its samples, and a critic maybe."""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

from pydantic import NonNegativeFloat, PositiveFloat

from jaxdiff.app.config.field_types import PositiveInt


@dataclass(frozen=True)
class Matching:
    """How a generator is trained whose steps are those of distillation.steps (Yin et al. 2024)."""

    generator_every: PositiveInt = 5
    """Training steps of the fake denoiser to one of the generator."""
    fake_rate: PositiveFloat = 1.0
    """Learning rate of the fake denoiser, times optimizer.learning_rate."""
    adversarial: NonNegativeFloat = 0.0
    """Weight of an adversarial loss in the generator's, by a classifier of the fake denoiser's middle features; 0 is none."""
    classification: NonNegativeFloat = 1e-2
    """Weight of the classifier's loss beside the fake denoiser's."""
    classifier_channels: PositiveInt = 64
    classifier_layers: PositiveInt = 2
    """Convolutions of the classifier."""


def matching_rules(c: Any, matched: bool) -> Iterator[tuple[str, str, object]]:
    """What a generator allows, of a config that trains one (`matched`); others leave its fields."""
    d, m, name = c.distillation, c.matching, "a generator that matches distributions"
    for field in fields(m):
        untouched = matched or getattr(m, field.name) == field.default
        yield f"matching.{field.name}", f"left as it is: the objective {c.objective} does not read it", untouched
    if not matched:
        return
    yield "sampling.sampler", f"consistency for {name}", c.sampling.sampler == "consistency"
    yield "sampling.classifier", f"empty for {name}", not c.sampling.classifier
    yield "distillation.guidance", f"one scale twice for {name}", d.guidance[0] == d.guidance[1]
    yield "text.layers", f"0 for {name}", not c.text.layers
    plain = c.published.told == "logsnr" and not (c.model.context_channels or c.published.pooled_channels)
    yield "matching.adversarial", "0 for networks with context or of published weights", plain or not m.adversarial
    middle = c.model.network == "unet" or not m.adversarial
    yield "matching.adversarial", "0 for a dit, which has no middle to classify by", middle
