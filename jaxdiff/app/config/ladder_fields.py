"""A ladder: students of one data set, compared with their teachers at the same numbers of network calls."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from jaxdiff.app.config.bounds import NonNegativeInt, PositiveInt

Baseline = Literal["ddim", "dpmpp_2m", "dpmpp_3m", "heun", "unipc"]


@dataclass(frozen=True)
class Ladder:
    """Recipes of students, each a run beside the ladder's, and how all of them and their teachers are sampled and judged."""

    students: tuple[str, ...]
    """Recipes whose objective distils; what they start from is trained first."""
    calls: tuple[int, ...] = (1, 2, 4, 8)
    """Numbers of network calls for a sample; heun, which makes odd numbers of them, takes the most steps that need no more."""
    baselines: tuple[Baseline, ...] = ("ddim", "dpmpp_2m", "heun")
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


def rules(c: Ladder) -> Iterator[tuple[str, str, bool]]:
    """Name, rule, and whether it holds."""
    yield "students", "at least one recipe (.py)", bool(c.students) and all(name.endswith(".py") for name in c.students)
    yield "calls", "at least one number, each at least 1", bool(c.calls) and min(c.calls) > 0
    yield "num", "at least 10, and at least shown", c.num >= max(10, c.shown)
    yield "guidance", "at least one scale, each at least 1", bool(c.guidance) and min(c.guidance) >= 1
