"""The fields of a distilled student, or one that is its own teacher, and of a ladder of students; and what follows from them."""

from dataclasses import dataclass
from typing import Any, Literal

from pydantic import NonNegativeInt, PositiveFloat

from jaxdiff.app.config.field_types import STUDENTS, TWO_CALLS, Deterministic, PositiveInt, Spacing

SELF_TAUGHT = ("consistency", "flow_map")  # objectives that need no teacher


@dataclass(frozen=True)
class Distillation:
    """How a student is trained: one of sources.teacher, or of data alone (consistency, flow_map)."""

    steps: PositiveInt = 32
    """Steps of the list of levels: of a progressive student's first teacher (a power of two), the finest of consistency, or those
    in which a generator (distribution_matching) samples."""
    final_steps: PositiveInt = 1
    """Of the last progressive student."""
    spacing: Spacing = "time"
    """Of the list, as sampling.spacing."""
    guidance: tuple[float, float] = (1.0, 1.0)
    """The teacher's guidance scales, or those of a flow map's own; where the two differ, the scale is an input of the network."""
    clip: bool = True
    """Clip the teacher's x0 to [-1, 1]."""
    target: Literal["teacher", "data"] = "teacher"
    """data: training along the data's own noise; the params of consistency then start as those of sources.teacher, if given."""
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
    """Name of the EMA that computes the targets of consistency and flow maps; empty: the params themselves."""
    warmup_steps: NonNegativeInt = 0
    """Training steps over which continuous consistency brings in the slope of the network."""
    every_level: bool = False
    """Train a progressive student at each of its teacher's levels, for the stochastic sampler overshoot."""
    lora_rank: NonNegativeInt = 0
    """Train low-rank adapters of the teacher's kernels alone, of this rank; 0: all params."""


@dataclass(frozen=True)
class Ladder:
    """Recipes of students, each a run beside the ladder's, and how all of them and their teachers are sampled and judged."""

    students: tuple[str, ...]
    """Recipes whose objective distils; what they start from is trained first."""
    calls: tuple[int, ...] = (1, 2, 4, 8)
    """Numbers of network calls for a sample; heun, which makes odd numbers of them, takes the most steps that need no more."""
    baselines: tuple[Deterministic, ...] = ("ddim", "dpmpp_2m", "heun")
    """Samplers of the teachers; guidance doubles their calls."""
    guidance: tuple[float, ...] = (1.0, 2.0)
    """Scales of teachers, and of those students that were trained with them; 1 is none."""
    reference_steps: PositiveInt = 50
    """Of DDIM, for the teacher at its best."""
    num: int = 1000
    """Samples to judge in each place."""
    shown: PositiveInt = 100
    """Samples in each picture."""
    epochs: PositiveInt = 30
    """Of the judging classifier's training."""
    seed: NonNegativeInt = 0


def guidance_is_input(c: Any) -> bool:
    """Whether the guidance scale is an input of the config's network."""
    return c.objective in STUDENTS and c.distillation.guidance[0] != c.distillation.guidance[1]


def uses_discrete_levels(c: Any) -> bool:
    """Whether the config's student knows the levels of one list alone."""
    listed = c.distillation.curriculum in ("constant", "doubling", "square_root")
    return c.objective in ("progressive", "distribution_matching") or (c.objective == "consistency" and listed)


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
