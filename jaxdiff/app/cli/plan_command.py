"""`jaxdiff plan`: its flags, and what it does."""

import importlib.util
import json
import pathlib
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import tyro

from jaxdiff.app import plan as plans
from jaxdiff.app.cli.arguments import refuse
from jaxdiff.app.config import Experiment, validated
from jaxdiff.app.runs.sources import inherited
from jaxdiff.io import count, progress
from jaxdiff.io.errors import ConfigError

LEAVES_OUT = """\
The bound is the sum over instructions of max(matrix time at 0.95 of the peak, HBM bytes at 0.85 of the bandwidth), and the
wire time of collectives at published link speeds. It leaves out vector work, latencies, contention and input, and is no
measurement: a run takes longer."""
HEAD = ("mesh", "remat", "batch", "GiB", "TFLOP", "HBM GB", "wire ms", "bound ms", "images/s")
WIDTHS = ("<22", "<10", ">6", ">7", ">8", ">8", ">8", ">9", ">9", "")
TRAFFIC = ("kind", "axes", "network", "beside_computation", "count", "bytes", "wire_s")  # JSON names of the fields of Traffic


@dataclass(frozen=True)
class Plan:
    """Compile a recipe's step for TPUs that are not there: memory, FLOPs, time.

    Example: jaxdiff plan cifar10 --topology v5e:2x4 --mesh.data 1 --mesh.fsdp -1
    """

    config: tyro.conf.Positional[pathlib.Path]
    """A file with `config`, a recipe's name, or a run."""
    topology: str
    """Topology of a slice: v5e:4x4, v5p:2x2x2, v4:2x2x4."""
    experiment: Annotated[Experiment, tyro.conf.arg(name="")]
    slices: int = 1
    """Number of slices, joined by a slow network."""
    batch: int = 0
    """Global batch size; by default the config's."""
    what: Literal["train", "sample"] = "train"
    """A training step, or the sampler."""
    largest_batch: bool = False
    """Search for the largest batch that fits."""
    sweep: bool = False
    """Compare meshes, remat policies and batches in a table."""
    remats: tuple[str, ...] = ()
    """For --sweep: values of model.remat."""
    batches: tuple[int, ...] = ()
    """For --sweep: global batch sizes."""
    full: bool = False
    """Compile to the end: slower, with the same figures."""
    limit_s: float = 900.0
    """Time limit of a compilation in seconds."""
    cache_dir: pathlib.Path | None = None
    """Cache of compiled programs; ~/.cache/jaxdiff/plan."""
    json: bool = False
    """Print JSON."""


def plan(args: Plan) -> int:
    """`jaxdiff plan`: the exit status, 1 if nothing fits."""
    config = validated(inherited(validated(args.experiment, where="jaxdiff plan")), where="jaxdiff plan")
    where, cache = plans.topology(args.topology, args.slices), plans.cache_dir(args.cache_dir)
    job = plans.Job(config, args.what, where, cache, args.limit_s, args.full)
    job = plans.with_batch(job, args.batch) if args.batch else job
    if args.largest_batch and args.sweep:
        raise ConfigError("--largest-batch and --sweep exclude each other; give one")
    if not args.sweep:
        refuse(args, ("remats", "batches"), "is for --sweep; give both, or neither")
    variants = plans.variants(job, args.remats, args.batches) if args.sweep else []
    if importlib.util.find_spec("libtpu") is None:
        raise ConfigError('the TPU compiler is not installed; run: pip install -e ".[tpu]" (no TPU is needed)')
    if args.sweep:
        print(f"up to {len(variants)} programs; minutes each, unless they were compiled before", file=sys.stderr)
        return _print_each(plans.sweep(variants), len(variants), plans.recommendation, args.json)
    if args.largest_batch:
        return _print_each(plans.largest_batch(job), None, plans.conclusion, args.json)
    with progress.waiting("compiling"):
        planned = plans.planned(job)
    print(json.dumps(_values(planned), indent=2) if args.json else _text(planned))
    return 0 if planned.fits else 1


def _print_each(planned: Iterator[plans.Plan], total: int | None, conclude: Callable[..., str], as_json: bool) -> int:
    """Prints plans as soon as they are made, at most `total`, and a conclusion; returns the exit status, 1 if none fits."""
    done: list[plans.Plan] = []
    for each in progress.track(planned, "compiling", "program", total):
        done.append(each)
        if not as_json:
            progress.print_above("\n".join(_table([each]).splitlines()[min(len(done) - 1, 1) :]))
    if as_json:
        print(json.dumps({"plans": [_values(each) for each in done], "conclusion": conclude(done)}, indent=2))
    else:
        print(f"{conclude(done)}\n{LEAVES_OUT}")
    return 0 if any(each.fits for each in done) else 1


def _text(plan: plans.Plan) -> str:
    """A plan in lines."""
    job = plan.job
    slices = f", {job.where.slices} slices" if job.where.slices > 1 else ""
    mesh = " x ".join(f"{name} {length}" for name, length in plan.mesh.items())
    s = job.config.sampling
    what = "one training step" if job.what == "train" else f"{count(s.steps, 'step')} of {s.sampler}"
    fits, peak = "fits" if plan.fits else "DOES NOT FIT", f"{plan.peak_bytes / plans.GIB:.2f} of {job.where.chip.hbm_gib:.2f} GiB"
    lines = [f"{what}, {count(job.batch, 'image')}, on {job.where.name}{slices} (mesh {mesh}), as compiled and not run"]
    lines += [f"memory a device: {fits}, {peak}"]
    lines += [f"  {kind:27} {value / plans.GIB:8.3f} GiB" for kind, value in plan.memory.items() if value >= plans.GIB / 2000]
    if not plan.too_big:
        image = f"{plan.flops_per_image / 1e9:.4g} GFLOP an image"
        lines += [f"work a device: {plan.cost.flops / 1e12:.4g} TFLOP ({image}), {plan.cost.hbm_bytes / 1e9:.4g} GB of HBM traffic"]
        lines += ["collectives a device:" if plan.traffic else "collectives: none"]
        for each in plan.traffic:
            beside = "beside the computation" if each.hidden else "while it waits"
            sent = f"{each.bytes / 2**20:9.2f} MiB {1e3 * each.seconds:8.3f} ms on the wire, {beside}"
            lines.append(f"  {each.times:4} {each.kind:18} over {each.axes:10} ({each.network}) {sent}")
        if kinds := " and ".join(sorted({each.kind for each in plan.moved})):
            lines += [f"  WARNING: {kinds}: activations (or keys) are shuffled between devices, which another mesh may avoid"]
        wire = f"wire {1e3 * plan.wire_s(hidden=False):.2f} waited for and {1e3 * plan.wire_s(hidden=True):.2f} beside it"
        lines += [f"lower bound of a run: {1e3 * plan.bound_s:.2f} ms (roofline {1e3 * plan.cost.seconds:.2f}, {wire})"]
        again = ", recomputation included" if job.config.model.remat not in (False, "none") else ""
        use = f"FLOP utilisation {100 * plan.utilisation:.0f}%{again}"
        brought = ", which the input must bring" if job.what == "train" else ""
        lines += [f"  at it {plans.images_per_s(plan)} images/s at most{brought}; {use}"]
        lines += [f"  {line}" for line in LEAVES_OUT.splitlines()]
    lines += [f"note: {note}" for note in plan.notes]
    how = "finished executable" if job.full else "scheduled HLO"
    when = ", some time ago (cached)" if plan.cached else ""
    return "\n".join([*lines, f"compile: {how} in {plan.compiled_s:.0f} s{when}; lowered in {plan.lowering_s:.0f} s"])


def _table(planned: Sequence[plans.Plan]) -> str:
    """Plans side by side, one a line."""
    rows = (HEAD, *map(_row, planned))
    return "\n".join(" ".join(f"{cell:{width}}" for cell, width in zip(row, WIDTHS, strict=False)) for row in rows)


def _row(plan: plans.Plan) -> list[str]:
    mesh = " x ".join(f"{name} {length}" for name, length in plan.mesh.items() if length > 1) or "one device"
    first = [mesh, plan.job.config.model.remat, str(plan.job.batch), f"{plan.peak_bytes / plans.GIB:.2f}"]
    if not plan.fits:
        return [*first, "does not fit"]
    wire = 1e3 * (plan.wire_s(hidden=False) + plan.wire_s(hidden=True))
    work = [f"{plan.cost.flops / 1e12:.4g}", f"{plan.cost.hbm_bytes / 1e9:.4g}"]
    bounds = [f"{wire:.2f}", f"{1e3 * plan.bound_s:.2f}", plans.images_per_s(plan)]
    return [*first, *work, *bounds, *(["shuffles activations"] if plan.moved else [])]


def _values(plan: plans.Plan) -> dict[str, Any]:
    """A plan as JSON values; times in seconds, sizes in bytes, per device where nothing else is said."""
    job, cost, traffic = plan.job, plan.cost, [dict(zip(TRAFFIC, each, strict=True)) for each in plan.traffic]
    return (
        {"what": job.what, "topology": job.where.name, "slices": job.where.slices, "mesh": plan.mesh}
        | {"batch": job.batch, "remat": job.config.model.remat, "fits": plan.fits, "too_big": plan.too_big or None}
        | {"memory": plan.memory, "peak_bytes": plan.peak_bytes, "allowed_bytes": job.where.chip.hbm_gib * plans.GIB}
        | {"flops": cost.flops, "flops_per_image": plan.flops_per_image, "hbm_bytes": cost.hbm_bytes}
        | {"collectives": traffic, "shuffles_activations": bool(plan.moved), "roofline_s": cost.seconds}
        | {"wire_exposed_s": plan.wire_s(hidden=False), "wire_hidden_s": plan.wire_s(hidden=True), "bound_s": plan.bound_s}
        | {"images_per_s_at_bound": plan.images_per_s, "flop_utilisation_at_bound": plan.utilisation, "notes": list(plan.notes)}
        | {"compile_s": plan.compiled_s, "lowering_s": plan.lowering_s, "cached": plan.cached}
    )
