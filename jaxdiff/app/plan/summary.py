"""Plans as text and as JSON values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jaxdiff.app.plan.plans import GIB, Plan

LEAVES_OUT = """\
The bound is the sum over instructions of max(matrix time at 0.95 of the peak, HBM bytes at 0.85 of the bandwidth), and the
wire time of collectives at published link speeds. It leaves out vector work, latencies, contention and input, and is no
measurement: a run takes longer."""
HEAD = ("mesh", "remat", "batch", "GiB", "TFLOP", "HBM GB", "wire ms", "bound ms", "images/s")
WIDTHS = ("<22", "<10", ">6", ">7", ">8", ">8", ">8", ">9", ">9", "")
TRAFFIC = ("kind", "axes", "network", "beside_computation", "count", "bytes", "wire_s")  # JSON names of the fields of Traffic


def text(plan: Plan) -> str:
    """A plan in lines."""
    job = plan.job
    slices = f", {job.where.slices} slices" if job.where.slices > 1 else ""
    mesh = " x ".join(f"{name} {length}" for name, length in plan.mesh.items())
    what = "one training step" if job.what == "train" else f"{job.config.sampling.steps} steps of {job.config.sampling.sampler}"
    fits, peak = "fits" if plan.fits else "DOES NOT FIT", f"{plan.peak_bytes / GIB:.2f} of {job.where.chip.hbm_gib:.2f} GiB"
    lines = [f"{what}, {job.batch} images, on {job.where.name}{slices} (mesh {mesh}), as compiled and not run"]
    lines += [f"memory a device: {fits}, {peak}"]
    lines += [f"  {kind:27} {value / GIB:8.3f} GiB" for kind, value in plan.memory.items() if value >= GIB / 2000]
    if not plan.too_big:
        each = f"{plan.flops_per_image / 1e9:.4g} GFLOP an image"
        lines += [f"work a device: {plan.cost.flops / 1e12:.4g} TFLOP ({each}), {plan.cost.hbm_bytes / 1e9:.4g} GB of HBM traffic"]
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
        lines += [f"  at it {plan.images_per_s:,.0f} images/s at most, {use}"]
        lines += [f"  {line}" for line in LEAVES_OUT.splitlines()]
    lines += [f"note: {note}" for note in plan.notes]
    how = "finished executable" if job.full else "scheduled HLO"
    when = ", some time ago (cached)" if plan.cached else ""
    return "\n".join([*lines, f"compile: {how} in {plan.compiled_s:.0f} s{when}; lowered in {plan.lowering_s:.0f} s"])


def table(plans: Sequence[Plan]) -> str:
    """Plans side by side, one a line."""
    rows = (HEAD, *map(_row, plans))
    return "\n".join(" ".join(f"{cell:{width}}" for cell, width in zip(row, WIDTHS, strict=False)) for row in rows)


def _row(plan: Plan) -> list[str]:
    mesh = " x ".join(f"{name} {length}" for name, length in plan.mesh.items() if length > 1) or "one device"
    first = [mesh, plan.job.config.model.remat, str(plan.job.batch), f"{plan.peak_bytes / GIB:.2f}"]
    if not plan.fits:
        return [*first, "does not fit"]
    wire = 1e3 * (plan.wire_s(hidden=False) + plan.wire_s(hidden=True))
    work = [f"{plan.cost.flops / 1e12:.4g}", f"{plan.cost.hbm_bytes / 1e9:.4g}"]
    bounds = [f"{wire:.2f}", f"{1e3 * plan.bound_s:.2f}", f"{plan.images_per_s:,.0f}"]
    return [*first, *work, *bounds, *(["shuffles activations"] if plan.moved else [])]


def values(plan: Plan) -> dict[str, Any]:
    """A plan as JSON values; times in seconds, sizes in bytes, per device where nothing else is said."""
    job, cost, traffic = plan.job, plan.cost, [dict(zip(TRAFFIC, each, strict=True)) for each in plan.traffic]
    return (
        {"what": job.what, "topology": job.where.name, "slices": job.where.slices, "mesh": plan.mesh}
        | {"batch": job.batch, "remat": job.config.model.remat, "fits": plan.fits, "too_big": plan.too_big or None}
        | {"memory": plan.memory, "peak_bytes": plan.peak_bytes, "allowed_bytes": job.where.chip.hbm_gib * GIB}
        | {"flops": cost.flops, "flops_per_image": plan.flops_per_image, "hbm_bytes": cost.hbm_bytes}
        | {"collectives": traffic, "shuffles_activations": bool(plan.moved), "roofline_s": cost.seconds}
        | {"wire_exposed_s": plan.wire_s(hidden=False), "wire_hidden_s": plan.wire_s(hidden=True), "bound_s": plan.bound_s}
        | {"images_per_s_at_bound": plan.images_per_s, "flop_utilisation_at_bound": plan.utilisation, "notes": list(plan.notes)}
        | {"compile_s": plan.compiled_s, "lowering_s": plan.lowering_s, "cached": plan.cached}
    )
