"""What the TPU compiler says of a config's real step on chips that are only described: memory, work, collectives, a bound."""

import gzip
import hashlib
import itertools
import json
import math
import pathlib
import pickle
import re
import tempfile
import typing
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

from jaxdiff.app.config import Experiment, Model, validated
from jaxdiff.app.plan import compiling, cost, hlo
from jaxdiff.app.plan.chips import CHIPS, VALID, Topology, topology
from jaxdiff.app.plan.collectives import MOVES, Grid, Traffic, traffic
from jaxdiff.io import count, files, locks
from jaxdiff.io.errors import ConfigError

GIB = 2**30
GROWN = 1.02  # FLOPs an image, where XLA has begun to recompute what no longer fits
FINE = 16  # the search ends when the next batch is larger by less than this fraction, 1 / FINE


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
        return self.config.data.batch_size if self.what == "train" else self.config.sampling.batch_size * self.where.devices


@dataclass(frozen=True)
class Plan:
    """What the compiler says of a job, per device."""

    job: Job
    mesh: dict[str, int]  # sizes of its axes by name
    memory: dict[str, int]  # bytes of HBM by kind; empty for a program that is too big
    cost: cost.Cost
    traffic: tuple[Traffic, ...]
    notes: tuple[str, ...]
    too_big: str  # the compiler's message where the program does not fit
    lowering_s: float
    compiled_s: float  # how long compiling took, when it was done
    cached: bool  # whether it was done before

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
        return self.cost.flops * self.job.where.devices / self.job.batch

    @property
    def moved(self) -> list[Traffic]:
        """Collectives that shuffle activations (or keys), which a good layout for training avoids."""
        return [each for each in self.traffic if each.kind in MOVES]


def cache_dir(directory: pathlib.Path | None = None) -> pathlib.Path:
    """The directory of compiled programs: the one given, or one in the environment's or the user's cache."""
    return files.cache_dir() / "plan" if directory is None else directory


def planned(job: Job) -> Plan:
    """The plan of a job; takes minutes unless its program was compiled before, or another process compiles it now.

    Raises:
        ConfigError: the config does not fit the topology.
        CompilerError: the compiler stopped, or took longer than the limit.
    """
    name = hashlib.sha256(repr(job._replace(limit_s=0.0)).encode()).hexdigest()
    with locks.take_turns(job.cache / f".{name}.lock", f"the plan for {job.where.name}"):
        program, about, cached = _compiled(job)
    times: Any = {"lowering_s": about["lowering_s"], "compiled_s": program.seconds, "cached": cached}
    if program.too_big:
        return Plan(job, about["mesh"], {}, cost.Cost(0.0, 0.0, 0.0), (), tuple(about["notes"]), program.too_big, **times)
    module = hlo.parsed(program.hlo)
    runs, unknown = hlo.executed(module)
    spent, uncounted = cost.cost(module, runs, job.where.chip)
    sent = tuple(traffic(module, runs, Grid(about["mesh"], about["slices"]), job.where))
    notes = (*about["notes"], *unknown, *uncounted)
    return Plan(job, about["mesh"], cost.memory_by_kind(module, program.report), spent, sent, notes, "", **times)


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


def with_batch(job: Job, batch: int) -> Job:
    """The job with another number of images, at least 1, over all devices."""
    c, devices = job.config, job.where.devices
    if job.what == "sample":
        if batch % devices:
            raise ConfigError(f"a batch of {count(batch, 'sample')} is not divisible by {count(devices, 'device')}")
        c = replace(c, sampling=replace(c.sampling, batch_size=batch // devices))
    else:
        c = replace(c, data=replace(c.data, batch_size=batch))
    return job._replace(config=validated(c, where="jaxdiff plan"))


def largest_batch(job: Job, plan: Callable[[Job], Plan] = planned) -> Iterator[Plan]:
    """Plans on the way to the largest batch that fits, a multiple of the number of devices: by doubling, then by bisection.

    The search starts at the job's own batch. The last one that fits is the largest, to a sixteenth.
    """
    unit = job.where.devices
    low, high, size = 0, math.inf, max(job.batch // unit, 1)
    while high - low > max(1, low // FINE):
        candidate = plan(with_batch(job, size * unit))
        yield candidate
        low, high = (size, high) if candidate.fits else (low, size)
        size = 2 * low if high == math.inf else (low + int(high)) // 2


def conclusion(plans: Sequence[Plan]) -> str:
    """The result of a search for the largest batch, in a line or two."""
    fitting = sorted((each for each in plans if each.fits), key=lambda each: each.job.batch)
    if not fitting:
        return f"no batch fits: {count(plans[-1].job.batch, 'image')} do not"
    best, first = fitting[-1], fitting[0]
    above = min((each.job.batch for each in plans if each.job.batch > best.job.batch), default=None)
    beyond = f"; {above:,} do not" if above else ""
    batch, each = best.job.batch, best.job.batch // best.job.where.devices
    line = f"the largest batch that fits: {count(batch, 'image', ',')}, {each:,} a device{beyond}"
    if grown := [each for each in fitting if each.flops_per_image > GROWN * first.flops_per_image]:
        more = f"{100 * (best.flops_per_image / first.flops_per_image - 1):+.0f}% FLOPs an image at the largest"
        line += f"\nfrom {count(grown[0].job.batch, 'image', ',')} on XLA recomputes by itself to make it fit: {more}"
    return line


def variants(job: Job, remats: Sequence[str] = (), batches: Sequence[int] = ()) -> list[Job]:
    """The job on data-parallel, fully sharded and mixed meshes, with each of the remat policies, by default all, and batches."""
    policies = typing.get_args(typing.get_type_hints(Model)["remat"])
    if unknown := set(remats) - set(policies):
        raise ConfigError(f"--remats {sorted(unknown)[0]}: write some of {', '.join(policies)}")
    jobs, sizes = [], sorted(batches or (job.batch, 2 * job.batch))
    for (data, fsdp), remat, batch in itertools.product(_meshes(job), remats or policies, sizes):
        c = with_batch(job, batch).config
        c = replace(c, mesh=replace(c.mesh, data=data, fsdp=fsdp), model=replace(c.model, remat=remat))
        jobs.append(job._replace(config=c))
    return jobs


def sweep(jobs: Sequence[Job], plan: Callable[[Job], Plan] = planned) -> Iterator[Plan]:
    """Plans of the jobs, without batches above one of the same mesh and policy that did not fit."""
    full: set[Any] = set()
    for job in jobs:
        kind = (job.config.mesh, job.config.model.remat)
        if kind not in full:
            candidate = plan(job)
            if not candidate.fits:
                full.add(kind)
            yield candidate


def images_per_s(plan: Plan) -> str:
    """How many images a second the bound allows, in two digits where they are few."""
    return f"{plan.images_per_s:,.0f}" if plan.images_per_s >= 10 else f"{plan.images_per_s:.2g}"


def recommendation(plans: Sequence[Plan]) -> str:
    """The plan with the highest bound of images a second, as flags of `jaxdiff train`."""
    best = max((each for each in plans if each.fits), key=lambda each: each.images_per_s, default=None)
    if best is None:
        return "none fits; take more chips, or another kind"
    c = best.job.config
    remat, batch = f"--model.remat {c.model.remat}", f"--data.batch-size {c.data.batch_size}"
    flags = f"--mesh.data {c.mesh.data} --mesh.fsdp {c.mesh.fsdp} {remat} {batch}"
    return f"fastest bound that fits, {images_per_s(best)} images/s: {flags}"


def _meshes(job: Job) -> list[tuple[int, int]]:
    """Sizes of `data` and `fsdp`: all of one, all of the other, and between; of several slices parameters within each."""
    devices, slices = job.where.devices, job.where.slices
    if job.what == "sample" or devices == 1:
        return [(job.config.mesh.data, job.config.mesh.fsdp)]
    middle = devices // slices if slices > 1 else 2 ** (devices.bit_length() // 2)
    return list(dict.fromkeys([(devices, 1), (1, devices), (devices // middle, middle)]))
