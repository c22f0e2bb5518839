"""The fields of a flow map, a student that jumps between any two levels."""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any, Literal

from pydantic import NonNegativeInt

from jaxdiff.app.config.field_types import PositiveInt, UpToOne


@dataclass(frozen=True)
class Flow:
    """How a flow map is trained (objective flow_map): the target of its jumps, and which jumps are drawn."""

    method: Literal["mean_flow", "improved_mean_flow", "alpha_flow", "shortcut"] = "mean_flow"
    """Where a jump should end: by its derivative along the flow, after a step of data and a jump, or after two shorter jumps."""
    equal: UpToOne = 0.75
    """Share of examples that learn jumps of no length, which is diffusion training."""
    draw: Literal["uniform", "logit_normal"] = "uniform"
    """Of the two times of a jump; logit_normal as Geng et al. (2025) draw them."""
    finest: PositiveInt = 128
    """Of shortcut: one over the length of its shortest jumps, a power of two."""
    anneal_steps: NonNegativeInt = 0
    """Training steps over which alpha_flow goes from steps of data to jumps; 0: all of them."""
    adaptive: UpToOne = 0.0
    """Power by which each example's error is divided by its own size; 1 in MeanFlow, then with the weight x0."""
    mix: UpToOne = 0.0
    """Share of the network's own denoiser given the label in guided training (kappa of MeanFlow)."""


ANY_METHOD = {"method", "equal", "adaptive", "mix"}
READ = {  # fields by the method that reads them
    "mean_flow": ANY_METHOD | {"draw"},
    "improved_mean_flow": ANY_METHOD | {"draw"},
    "alpha_flow": ANY_METHOD | {"draw", "anneal_steps"},
    "shortcut": ANY_METHOD | {"finest"},
}


def flow_rules(c: Any, jumps: bool) -> Iterator[tuple[str, str, object]]:
    """What a flow map allows, of a config that trains one (`jumps`); others leave its fields."""
    f, d, what = c.flow, c.distillation, c.flow.method if jumps else f"the objective {c.objective}"
    yield "sampling.sampler", "flow_map for a flow map, and only for one", (c.sampling.sampler == "flow_map") == jumps
    for field in fields(f):
        untouched = (jumps and field.name in READ[f.method]) or getattr(f, field.name) == field.default
        yield f"flow.{field.name}", f"left as it is: {what} does not read it", untouched
    if not jumps:
        return
    guided = d.guidance != (1.0, 1.0) and d.target == "data"
    yield "flow.finest", "a power of two", f.finest & (f.finest - 1) == 0
    yield "flow.mix", "0 without guided training on data (distillation.guidance)", guided or not f.mix
    known = c.model.num_classes or not guided
    yield "distillation.guidance", "1 1 without classes, by whose null label guided training knows what was dropped", known
    dropped = c.diffusion.label_dropout or not guided
    yield "diffusion.label_dropout", "above 0 for guided training, which needs the network without labels", dropped
    named = not d.target_ema or d.target_ema in c.ema
    yield "distillation.target_ema", f"empty or the name of an EMA: {', '.join(c.ema)}", named
    yield "sampling.classifier", "empty for a flow map, whose x0 is no mean to shift", not c.sampling.classifier
    fixed = c.diffusion.schedule != "lognormal"
    yield "diffusion.schedule", "one with levels from end to end, not lognormal, for a flow map", fixed
