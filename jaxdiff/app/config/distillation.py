"""The fields of a distilled student, or one that is its own teacher, and what they allow."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any, Literal

from jaxdiff.app.config.bounds import NonNegativeInt, PositiveFloat, PositiveInt

STUDENTS = ("guided", "progressive", "consistency")
TWO_CALLS = ("heun", "heun_edm")  # samplers that call the network twice a step, but once in the last
DENOISERS = ("diffusion", *STUDENTS)  # objectives that train what samplers can walk with
Spacing = Literal["time", "logsnr", "karras", "quadratic"]


@dataclass(frozen=True)
class Distillation:
    """How a student is trained: one of sources.teacher (guided, progressive, consistency) or of data alone (consistency)."""

    steps: PositiveInt = 32
    """Steps of the list of levels: of a progressive student's first teacher (a power of two), or the finest of consistency."""
    final_steps: PositiveInt = 1
    """Of the last progressive student."""
    spacing: Spacing = "time"
    """Of the list, as sampling.spacing."""
    guidance: tuple[float, float] = (1.0, 1.0)
    """The teacher's guidance scales; where the two differ, the scale is an input of the student's network."""
    clip: bool = True
    """Clip the teacher's x0 to [-1, 1]."""
    target: Literal["teacher", "data"] = "teacher"
    """data: consistency training, along the data's own noise; the params then start as those of sources.teacher, if given."""
    curriculum: Literal["constant", "doubling", "square_root", "shrinking", "continuous"] = "constant"
    """Of consistency: how fine the list is at which training step, or no list: s close to t (easy consistency tuning), or sCM."""
    first_steps: PositiveInt = 2
    """Of the list at the first training step, of doubling and square_root."""
    shrink_every: PositiveInt = 1000
    """Training steps after which shrinking halves the distance from t to s."""
    skip: PositiveInt = 1
    """How many steps of the list the target of consistency is ahead: latent consistency models take several."""
    draw: Literal["uniform", "lognormal"] = "uniform"
    """Of the list's levels for training; lognormal: sigma / alpha as Song & Dhariwal (2023) draw it."""
    solver: Literal["ddim", "heun", "heun_edm"] = "ddim"
    """With which the teacher goes ahead."""
    weight: Literal["diffusion", "inverse_gap"] = "diffusion"
    """Of consistency: diffusion.weight at the noisier level, or one over the distance between the two."""
    distance: Literal["squared", "pseudo_huber"] = "squared"
    """Of consistency on pairs of levels."""
    huber: PositiveFloat = 0.00054
    """Where pseudo_huber turns from squared to linear, for one value."""
    target_ema: str = ""
    """Name of the EMA that computes the targets of consistency; empty: the params themselves."""
    warmup_steps: NonNegativeInt = 0
    """Training steps over which continuous consistency brings in the slope of the network."""
    every_level: bool = False
    """Train a progressive student at each of its teacher's levels, for the stochastic sampler overshoot."""
    lora_rank: NonNegativeInt = 0
    """Train low-rank adapters of the teacher's kernels alone, of this rank; 0: all params."""


def guidance_is_input(c: Any) -> bool:
    """Whether the guidance scale is an input of the config's network."""
    return c.objective in STUDENTS and c.distillation.guidance[0] != c.distillation.guidance[1]


def uses_discrete_levels(c: Any) -> bool:
    """Whether the config's student knows the levels of one list alone."""
    listed = c.distillation.curriculum in ("constant", "doubling", "square_root")
    return c.objective == "progressive" or (c.objective == "consistency" and listed)


def num_rounds(c: Any) -> int:
    """Into how many rounds the training steps of a config are cut: one, but of progressive distillation one a halving."""
    return max((c.distillation.steps // c.distillation.final_steps).bit_length() - 1, 1) if c.objective == "progressive" else 1


def round_steps(c: Any) -> int:
    """Training steps of a round."""
    return c.steps // num_rounds(c)


def num_halvings(c: Any) -> int:
    """After how many rounds the student is there that the config's sampling asks for."""
    return (c.distillation.steps * _stride(c) // c.sampling.steps).bit_length() - 1


def sampling_steps(c: Any) -> list[int]:
    """The numbers of sampling steps that a student of a list was trained for, most first."""
    d = c.distillation
    if c.objective == "progressive":
        return [_stride(c) * d.steps // 2**halving for halving in range(1, num_rounds(c) + 1)]
    return [num for num in range(d.steps, 0, -1) if d.steps % num == 0]


def network_calls(c: Any) -> int:
    """How often the config's own network is called for a sample: guidance is a second call where a student has not learned it."""
    twice = c.objective not in STUDENTS and c.sampling.guidance not in (0, 1)
    return sampler_calls(c.sampling.sampler, c.sampling.steps) * (2 if twice else 1)


def sampler_calls(sampler: str, steps: int) -> int:
    """How often the sampler calls its denoiser in so many steps."""
    return 2 * steps - 1 if sampler in TWO_CALLS else steps


def steps_within(sampler: str, calls: int) -> int:
    """The most steps that the sampler can take with so many calls of its denoiser."""
    return (calls + 1) // 2 if sampler in TWO_CALLS else calls


def _stride(c: Any) -> int:
    """How many sampling steps a progressive student's own step is long."""
    return 2 if c.sampling.sampler == "overshoot" else 1


def _power_of_two(number: int) -> bool:
    return number > 0 and number & (number - 1) == 0


def rules(c: Any) -> Iterator[tuple[str, str, bool]]:
    """Name, rule and whether it holds, of a config whose objective is a student's, or of what is left for others."""
    yield "sources.teacher", "empty without an objective that distils", c.objective in STUDENTS or not c.sources.teacher
    consistent = c.objective == "consistency"
    yield "sampling.sampler", "another: consistency samples consistency students", consistent or c.sampling.sampler != "consistency"
    stochastic = c.objective == "progressive" and c.distillation.every_level
    alone = "another: overshoot samples progressive students trained with distillation.every_level"
    yield "sampling.sampler", alone, stochastic or c.sampling.sampler != "overshoot"
    for field in fields(Distillation):
        read = field.name in _read(c) or getattr(c.distillation, field.name) == field.default
        yield f"distillation.{field.name}", f"left as it is: {_what(c)} does not read it", read
    if c.objective in STUDENTS:
        yield from _student_rules(c)
    if c.objective == "progressive":
        yield from _progressive_rules(c)
    if c.objective == "consistency":
        yield from _consistency_rules(c)
    if uses_discrete_levels(c):
        yield from _list_rules(c)


def _read(c: Any) -> set[str]:
    """The fields that a config may set."""
    taught = {"guidance", "clip"}
    if c.objective == "guided":
        return {*taught, "lora_rank"}
    if c.objective == "progressive":
        return {*taught, "steps", "final_steps", "spacing", "every_level"}
    if c.objective != "consistency":
        return set()
    chosen = {field.name for field in fields(Distillation)} - {"final_steps", "every_level"}
    unread = {"continuous": {"solver", "weight", "distance", "target_ema", "skip"}, "shrinking": {"skip", "draw"}}
    return chosen - unread.get(c.distillation.curriculum, set())  # others wait for another curriculum


def _what(c: Any) -> str:
    return f"{c.distillation.curriculum} consistency" if c.objective == "consistency" else f"the objective {c.objective}"


def _student_rules(c: Any) -> Iterator[tuple[str, str, bool]]:
    d = c.distillation
    taught = d.target == "teacher"
    yield "sources.teacher", f"a run or a recipe to distil: {c.objective} learns from it", bool(c.sources.teacher) or not taught
    yield "distillation.guidance", "two scales, the lower first, at least 0", 0 <= d.guidance[0] <= d.guidance[1]
    yield "distillation.guidance", "1 1 without a teacher to guide", taught or d.guidance == (1.0, 1.0)
    yield (
        "distillation.guidance",
        "1 1 without classes or context",
        d.guidance == (1.0, 1.0) or bool(c.model.num_classes or c.model.context_channels),
    )
    yield "diffusion.schedule", "a fixed one for a student", c.diffusion.schedule != "learned"
    yield "cascade.factor", "1 for a student", c.cascade.factor == 1
    yield "distillation.clip", "False in latent space, whose values have no bounds", not (c.sources.autoencoder and d.clip)
    input_of = "0 where the scale is an input, of which the teacher has no params"
    yield "distillation.lora_rank", input_of, not (d.lora_rank and guidance_is_input(c))
    yield "distillation.lora_rank", "0 without sources.teacher, which it adapts", not d.lora_rank or bool(c.sources.teacher)
    low, high = d.guidance
    inside = f"{low:g}, the guidance that" if low == high else f"between {low:g} and {high:g}, the guidance that"
    yield "sampling.guidance", f"{inside} the student was trained with", low <= c.sampling.guidance <= high


def _progressive_rules(c: Any) -> Iterator[tuple[str, str, bool]]:
    d = c.distillation
    yield "distillation.steps", "a power of two, at least 2", _power_of_two(d.steps) and d.steps > 1
    fewer = _power_of_two(d.final_steps) and d.final_steps < d.steps
    yield "distillation.final_steps", f"a power of two below distillation.steps, {d.steps}", fewer
    even = f"divisible by the {num_rounds(c)} rounds from {d.steps} steps to {d.final_steps}"
    yield "steps", even, c.steps % num_rounds(c) == 0
    yield "sampling.sampler", "ddim (or overshoot) for a progressive student", c.sampling.sampler in ("ddim", "overshoot")
    yield "sampling.every", "0 for a progressive student, whose rounds are sampled at their ends", c.sampling.every == 0


def _list_rules(c: Any) -> Iterator[tuple[str, str, bool]]:
    d = c.distillation
    known = sampling_steps(c)
    named = f"one of {', '.join(map(str, known))}: the student was trained on levels of these numbers of steps"
    yield "sampling.steps", named, c.sampling.steps in known
    yield "sampling.spacing", f"{d.spacing}, of the levels that the student was trained on", c.sampling.spacing == d.spacing
    yield "sampling.eta", "0 for a student of a list of levels", c.sampling.eta == 0
    trained_only = c.diffusion.schedule == "lognormal" and not c.diffusion.sampling_schedule
    yield "diffusion.sampling_schedule", "set (to karras, say): the list of levels is cut from it", not trained_only


def _consistency_rules(c: Any) -> Iterator[tuple[str, str, bool]]:
    d = c.distillation
    yield "sampling.sampler", "consistency for a consistency student", c.sampling.sampler == "consistency"
    yield "sampling.classifier", "empty for a consistency student, whose x0 is no mean to shift", not c.sampling.classifier
    growing = d.curriculum in ("doubling", "square_root")
    yield "distillation.first_steps", "between 1 and distillation.steps", not growing or d.first_steps <= d.steps
    times = d.steps % d.first_steps == 0 and _power_of_two(d.steps // d.first_steps)
    yield "distillation.steps", f"first_steps, {d.first_steps}, times a power of two", d.curriculum != "doubling" or times
    named = f"empty or the name of an EMA: {', '.join(c.ema)}"
    yield "distillation.target_ema", named, not d.target_ema or d.target_ema in c.ema
    circle = c.diffusion.schedule in ("cosine", "linear", "linear_logsnr")
    yield (
        "diffusion.schedule",
        "variance preserving (cosine, say) for continuous consistency",
        circle or d.curriculum != "continuous",
    )
