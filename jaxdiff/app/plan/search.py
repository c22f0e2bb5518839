"""Many plans: the largest batch that fits, and meshes, remat policies and batches side by side."""

import itertools
import math
import typing
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from jaxdiff.app.config import Model, validated
from jaxdiff.app.plan.plans import Job, Plan, planned
from jaxdiff.io.errors import ConfigError

GROWN = 1.02  # FLOPs an image, where XLA has begun to recompute what no longer fits
FINE = 16  # the search ends when the next batch is larger by less than this fraction, 1 / FINE


def with_batch(job: Job, batch: int) -> Job:
    """The job with another number of images.

    Raises:
        ConfigError: it is below 1.
    """
    c = job.config
    if job.what == "sample":
        c = replace(c, sampling=replace(c.sampling, num=batch))
    else:
        c = replace(c, data=replace(c.data, batch_size=batch))
    return job._replace(config=validated(c, where="jaxdiff plan"))


def largest_batch(job: Job, plan: Callable[[Job], Plan] = planned) -> Iterator[Plan]:
    """Plans on the way to the largest batch that fits, a multiple of the number of devices: by doubling, then by bisection.

    The search starts at the job's own batch. The last one that fits is the largest, to a sixteenth.
    """
    unit = job.where.devices if job.what == "train" else 1
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
        return f"no batch fits: {plans[-1].job.batch} images do not"
    best, first = fitting[-1], fitting[0]
    above = min((each.job.batch for each in plans if each.job.batch > best.job.batch), default=None)
    beyond = f"; {above:,} do not" if above else ""
    line = f"the largest batch that fits: {best.job.batch:,} images, {best.job.batch // best.devices:,} a device{beyond}"
    if grown := [each for each in fitting if each.flops_per_image > GROWN * first.flops_per_image]:
        more = f"{100 * (best.flops_per_image / first.flops_per_image - 1):+.0f}% FLOPs an image at the largest"
        line += f"\nfrom {grown[0].job.batch:,} images on XLA recomputes by itself to make it fit: {more}"
    return line


def variants(job: Job, remats: Sequence[str] = (), batches: Sequence[int] = ()) -> list[Job]:
    """The job on data-parallel, fully sharded and mixed meshes, with each remat policy and batch.

    All policies if none are named, and the job's own batch and its double.

    Raises:
        ConfigError: there is no such policy, or no such batch.
    """
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


def recommendation(plans: Sequence[Plan]) -> str:
    """The plan with the highest bound of images a second, as flags of `jaxdiff train`."""
    best = max((each for each in plans if each.fits), key=lambda each: each.images_per_s, default=None)
    if best is None:
        return "none fits; take more chips, or another kind"
    c = best.job.config
    remat, batch = f"--model.remat {c.model.remat}", f"--data.batch-size {c.data.batch_size}"
    flags = f"--mesh.data {c.mesh.data} --mesh.fsdp {c.mesh.fsdp} {remat} {batch}"
    return f"fastest bound that fits, {best.images_per_s:,.0f} images/s: {flags}"


def _meshes(job: Job) -> list[tuple[int, int]]:
    """Sizes of `data` and `fsdp`: all of one, all of the other, and between; of several slices parameters within each."""
    devices, slices = job.where.devices, job.where.slices
    if job.what == "sample" or devices == 1:
        return [(job.config.mesh.data, job.config.mesh.fsdp)]
    middle = devices // slices if slices > 1 else 2 ** (devices.bit_length() // 2)
    return list(dict.fromkeys([(devices, 1), (1, devices), (devices // middle, middle)]))
