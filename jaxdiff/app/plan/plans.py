"""A plan: the figures of one compiled program, and the bounds that follow from them."""

from __future__ import annotations

import pathlib
import re
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from jaxdiff.app.config import Experiment, to_dict
from jaxdiff.app.plan import compiling
from jaxdiff.app.plan.chips import Topology
from jaxdiff.app.plan.collectives import MOVES, Grid, Traffic, traffic
from jaxdiff.app.plan.cost import Cost, cost
from jaxdiff.app.plan.hlo import executed, parsed
from jaxdiff.app.plan.memory import by_kind

GIB = 2**30
What = Literal["train", "sample"]


class Job(NamedTuple):
    """A program to plan.

    Attributes:
        what: a training step, or the sampler.
        where: the chips.
        cache: the directory where compiled programs are kept.
        limit_s: how long a compile may take.
        full: compile to the finished executable.
    """

    config: Experiment
    what: What
    where: Topology
    cache: pathlib.Path
    limit_s: float = 900.0
    full: bool = False

    @property
    def batch(self) -> int:
        """Images that a run of the program makes or sees, over all devices."""
        return self.config.data.batch_size if self.what == "train" else self.config.sampling.num


@dataclass(frozen=True)
class Plan:
    """What the compiler says of a job, per device.

    Attributes:
        mesh: sizes of the mesh's axes by name.
        memory: bytes of HBM by kind; of a program that is too big empty.
        too_big: the compiler's message where the program does not fit.
        compiled_s: how long compiling took, when it was done.
        cached: whether it was done before.
    """

    job: Job
    mesh: dict[str, int]
    memory: dict[str, int]
    cost: Cost
    traffic: tuple[Traffic, ...]
    notes: tuple[str, ...]
    too_big: str
    lowering_s: float
    compiled_s: float
    cached: bool

    @property
    def devices(self) -> int:
        """How many run the program."""
        return 1 if self.job.what == "sample" else self.job.where.devices

    @property
    def allowed_bytes(self) -> float:
        """Of HBM, as the chip's compiler allows a program."""
        return self.job.where.chip.hbm_gib * GIB

    @property
    def peak_bytes(self) -> float:
        """Of HBM at once; of a program that is too big what it asked for."""
        if not self.too_big:
            return sum(self.memory.values())
        found = re.search(r"Used ([\d.]+)([KMGT]) of|\(([\d.]+)([KMGT])\) exceeds", self.too_big)
        number, unit = [each for each in found.groups() if each] if found else ("nan", "G")
        return float(number) * 1024 ** ("KMGT".index(unit) + 1)

    @property
    def fits(self) -> bool:
        """Whether a device's memory suffices."""
        return not self.too_big and self.peak_bytes <= self.allowed_bytes

    @property
    def exposed_s(self) -> float:
        """Time on the wire of collectives for which the computation waits, as they are scheduled."""
        return sum(each.seconds for each in self.traffic if not each.hidden)

    @property
    def hidden_s(self) -> float:
        """Time on the wire of collectives beside which the computation may go on."""
        return sum(each.seconds for each in self.traffic if each.hidden)

    @property
    def bound_s(self) -> float:
        """The lower bound of a run: the roofline, or what hides behind it if that is longer, and what nothing hides."""
        return max(self.cost.seconds, self.hidden_s) + self.exposed_s

    @property
    def images_per_s(self) -> float:
        """The upper bound over all devices; 0 of a program that does not fit."""
        return self.job.batch / self.bound_s if self.fits and self.bound_s else 0.0

    @property
    def utilisation(self) -> float:
        """Share of the peak FLOPs that the bound leaves, recomputed ones included."""
        return self.cost.flops / (self.bound_s * self.job.where.chip.flops) if self.bound_s else 0.0

    @property
    def flops_per_image(self) -> float:
        """Of all devices."""
        return self.cost.flops * self.devices / self.job.batch

    @property
    def moved(self) -> list[Traffic]:
        """Collectives that shuffle activations (or keys), which a layout for training does without."""
        return [each for each in self.traffic if each.kind in MOVES]


def planned(job: Job) -> Plan:
    """The plan of a job; takes minutes unless its program was compiled before.

    Raises:
        UserError: the config does not fit the topology, or the compiler failed.
    """
    where = job.where
    said = {"what": job.what, "topology": where.name, "slices": where.slices, "full": job.full, "cache": str(job.cache)}
    found, about = compiling.program({"config": to_dict(job.config), "limit_s": job.limit_s, **said})
    memory, spent, sent, notes = _figures(job, found, about)
    times = {"lowering_s": about["lowering_s"], "compiled_s": found.seconds, "cached": about["cached"]}
    return Plan(job, about["mesh"], memory, spent, tuple(sent), tuple(about["notes"] + notes), found.too_big, **times)


def _figures(job: Job, found: compiling.Compiled, about: dict[str, Any]) -> tuple[dict[str, int], Cost, list[Traffic], list[str]]:
    if found.too_big:
        return {}, Cost(0.0, 0.0, 0.0), [], []
    module = parsed(found.hlo)
    runs, notes = executed(module)
    spent, more = cost(module, runs, job.where.chip)
    sent = traffic(module, runs, Grid(about["mesh"], about["slices"]), job.where)
    return by_kind(module, found.report), spent, sent, notes + more
