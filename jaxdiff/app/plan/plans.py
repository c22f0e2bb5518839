"""A plan: the figures of one compiled program, and the bounds that follow from them."""

import gzip
import json
import pathlib
import pickle
import re
import tempfile
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from jaxdiff.app.config import Experiment
from jaxdiff.app.plan import compiling, hlo
from jaxdiff.app.plan.chips import VALID, Topology
from jaxdiff.app.plan.collectives import MOVES, Grid, Traffic, traffic
from jaxdiff.app.plan.cost import Cost, cost, memory_by_kind
from jaxdiff.io import files
from jaxdiff.io.errors import ConfigError

GIB = 2**30


class Job(NamedTuple):
    """A program to plan: a training step, or the sampler."""

    config: Experiment
    what: Literal["train", "sample"]
    where: Topology
    cache: pathlib.Path  # the directory of compiled programs
    limit_s: float = 900.0  # how long a compilation may take
    full: bool = False  # compile to the finished executable

    @property
    def batch(self) -> int:
        """Images that a run of the program makes or sees, over all devices."""
        return self.config.data.batch_size if self.what == "train" else self.config.sampling.num


@dataclass(frozen=True)
class Plan:
    """What the compiler says of a job, per device."""

    job: Job
    mesh: dict[str, int]  # sizes of its axes by name
    memory: dict[str, int]  # bytes of HBM by kind; empty for a program that is too big
    cost: Cost
    traffic: tuple[Traffic, ...]
    notes: tuple[str, ...]
    too_big: str  # the compiler's message where the program does not fit
    lowering_s: float
    compiled_s: float  # how long compiling took, when it was done
    cached: bool  # whether it was done before

    @property
    def devices(self) -> int:
        """How many devices run the program."""
        return 1 if self.job.what == "sample" else self.job.where.devices

    @property
    def peak_bytes(self) -> float:
        """Of HBM at once; of a program that is too big what it asked for."""
        if not self.too_big:
            return sum(self.memory.values())
        used = re.search(r"Used ([\d.]+)([KMGT]) of|\(([\d.]+)([KMGT])\) exceeds", self.too_big)
        number, unit = [each for each in used.groups() if each] if used else ("nan", "G")
        return float(number) * 1024 ** ("KMGT".index(unit) + 1)

    @property
    def fits(self) -> bool:
        """Whether the memory that the compiler allows on a device suffices."""
        return not self.too_big and self.peak_bytes <= self.job.where.chip.hbm_gib * GIB

    def wire_s(self, hidden: bool) -> float:
        """Time on the wire of the collectives that run beside the computation, or of those that it waits for."""
        return sum(each.seconds for each in self.traffic if each.hidden == hidden)

    @property
    def bound_s(self) -> float:
        """The lower bound of a run: the roofline, or what hides behind it if that is longer, and what nothing hides."""
        return max(self.cost.seconds, self.wire_s(hidden=True)) + self.wire_s(hidden=False)

    @property
    def images_per_s(self) -> float:
        """The upper bound over all devices; 0 of a program that does not fit."""
        return self.job.batch / self.bound_s if self.fits and self.bound_s else 0.0

    @property
    def utilisation(self) -> float:
        """Share of the peak FLOPs at the bound, recomputed ones included."""
        return self.cost.flops / (self.bound_s * self.job.where.chip.flops) if self.bound_s else 0.0

    @property
    def flops_per_image(self) -> float:
        """Of all devices."""
        return self.cost.flops * self.devices / self.job.batch

    @property
    def moved(self) -> list[Traffic]:
        """Collectives that shuffle activations (or keys), which a good layout for training avoids."""
        return [each for each in self.traffic if each.kind in MOVES]


def cache_dir(directory: pathlib.Path | None = None) -> pathlib.Path:
    """The directory of compiled programs: the one given, or one in the environment's or the user's cache."""
    return files.cache_dir() / "plan" if directory is None else directory


def planned(job: Job) -> Plan:
    """The plan of a job; takes minutes unless its program was compiled before.

    Raises:
        ConfigError: the config does not fit the topology.
        CompilerError: the compiler stopped, or took longer than the limit.
    """
    program, about, cached = _compiled(job)
    times: Any = {"lowering_s": about["lowering_s"], "compiled_s": program.seconds, "cached": cached}
    if program.too_big:
        return Plan(job, about["mesh"], {}, Cost(0.0, 0.0, 0.0), (), tuple(about["notes"]), program.too_big, **times)
    module = hlo.parsed(program.hlo)
    runs, unknown = hlo.executed(module)
    spent, uncounted = cost(module, runs, job.where.chip)
    sent = tuple(traffic(module, runs, Grid(about["mesh"], about["slices"]), job.where))
    notes = (*about["notes"], *unknown, *uncounted)
    return Plan(job, about["mesh"], memory_by_kind(module, program.report), spent, sent, notes, "", **times)


def _compiled(job: Job) -> tuple[compiling.Compiled, dict[str, Any], bool]:
    """What the compiler says of a job, what its child process says about the program, and whether it was in the cache."""
    with tempfile.TemporaryDirectory(prefix="jaxdiff_plan_") as name:
        folder = pathlib.Path(name)
        (folder / "job.pickle").write_bytes(pickle.dumps(job))
        try:
            arguments = ["-m", "jaxdiff.app.plan.program", str(folder / "job.pickle")]
            program = compiling.compiled(arguments, job.limit_s, job.full, folder)
        except compiling.CompilerError as error:
            if (folder / "error.txt").exists():
                raise ConfigError((folder / "error.txt").read_text()) from error
            if isinstance(error, compiling.Aborted):
                raise compiling.CompilerError(f"--topology {job.where.name}: {error}; write {VALID}") from error
            raise
        about = json.loads((folder / "program.json").read_text())
    cached = job.cache / f"{about['key']}.gz"
    if program is None:
        return compiling.Compiled(**json.loads(gzip.decompress(cached.read_bytes()))), about, True
    with files.atomic_write(cached) as draft:
        draft.write_bytes(gzip.compress(json.dumps(program._asdict()).encode()))
    return program, about, False
