"""Plans as text and as JSON values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jaxdiff.app.plan.collectives import Traffic
from jaxdiff.app.plan.plans import GIB, Plan

LEAVES_OUT = """\
The bound is the sum over instructions of max(matrix time at 0.95 of the peak, HBM bytes at 0.85 of the bandwidth), and the
wire time of collectives at published link speeds. It leaves out vector work, latencies, contention and input, and is no
measurement: a run takes longer."""
HEAD = ("mesh", "remat", "batch", "GiB", "TFLOP", "HBM GB", "wire ms", "bound ms", "images/s")
WIDTHS = (-22, -10, 6, 7, 8, 8, 8, 9, 9)


def text(plan: Plan) -> str:
    """A plan in lines."""
    job = plan.job
    slices = f", {job.where.slices} slices" if job.where.slices > 1 else ""
    mesh = " x ".join(f"{name} {length}" for name, length in plan.mesh.items())
    what = "one training step" if job.what == "train" else f"{job.config.sampling.steps} steps of {job.config.sampling.sampler}"
    lines = [f"{what}, {job.batch} images, on {job.where.name}{slices} (mesh {mesh}), as compiled and not run"]
    lines += _memory(plan)
    if not plan.too_big:
        lines += _work(plan) + _collectives(plan) + _bound(plan)
    lines += [f"note: {note}" for note in plan.notes]
    how = "finished executable" if job.full else "scheduled HLO"
    when = ", some time ago (cached)" if plan.cached else ""
    lines.append(f"compile: {how} in {plan.compiled_s:.0f} s{when}; lowered in {plan.lowering_s:.0f} s")
    return "\n".join(lines)


def _memory(plan: Plan) -> list[str]:
    answer = "fits" if plan.fits else "DOES NOT FIT"
    allowed = plan.allowed_bytes / GIB
    lines = [f"memory a device: {answer}, {plan.peak_bytes / GIB:.2f} of {allowed:.2f} GiB"]
    return lines + [f"  {kind:27} {value / GIB:8.3f} GiB" for kind, value in plan.memory.items() if value >= GIB / 2000]


def _work(plan: Plan) -> list[str]:
    cost = plan.cost
    each = f"{plan.flops_per_image / 1e9:.4g} GFLOP an image"
    return [f"work a device: {cost.flops / 1e12:.4g} TFLOP ({each}), {cost.hbm_bytes / 1e9:.4g} GB of HBM traffic"]


def _collectives(plan: Plan) -> list[str]:
    if not plan.traffic:
        return ["collectives: none"]
    lines = ["collectives a device:"]
    for each in plan.traffic:
        beside = "beside the computation" if each.hidden else "while it waits"
        lines.append(
            f"  {each.count:4} {each.kind:18} over {each.axes:10} ({each.network}) {each.bytes / 2**20:9.2f} MiB "
            f"{1e3 * each.seconds:8.3f} ms on the wire, {beside}"
        )
    if plan.moved:
        kinds = " and ".join(sorted({each.kind for each in plan.moved}))
        lines.append(f"  WARNING: {kinds}: activations (or keys) are shuffled between devices, which another mesh may avoid")
    return lines


def _bound(plan: Plan) -> list[str]:
    total, roofline, waited, beside = (1e3 * each for each in (plan.bound_s, plan.cost.seconds, plan.exposed_s, plan.hidden_s))
    parts = f"roofline {roofline:.2f}, wire {waited:.2f} waited for and {beside:.2f} beside it"
    again = ", recomputation included" if plan.job.config.model.remat not in (False, "none") else ""
    use = f"at it {plan.images_per_s:,.0f} images/s at most, FLOP utilisation {100 * plan.utilisation:.0f}%{again}"
    return [f"lower bound of a run: {total:.2f} ms ({parts})", f"  {use}", *(f"  {line}" for line in LEAVES_OUT.splitlines())]


def table(plans: Sequence[Plan]) -> str:
    """Plans side by side, one a line."""
    return "\n".join(_line(row) for row in (HEAD, *map(_row, plans)))


def _line(row: Sequence[str]) -> str:
    cells = (f"{cell:{'<' if width < 0 else '>'}{abs(width)}}" for cell, width in zip(row, WIDTHS, strict=False))
    return " ".join([*cells, *row[len(WIDTHS) :]])


def _row(plan: Plan) -> list[str]:
    mesh = " x ".join(f"{name} {length}" for name, length in plan.mesh.items() if length > 1) or "one device"
    first = [mesh, plan.job.config.model.remat, str(plan.job.batch), f"{plan.peak_bytes / GIB:.2f}"]
    if not plan.fits:
        return [*first, "does not fit"]
    wire, bound = 1e3 * (plan.exposed_s + plan.hidden_s), 1e3 * plan.bound_s
    work = [f"{plan.cost.flops / 1e12:.4g}", f"{plan.cost.hbm_bytes / 1e9:.4g}"]
    return [
        *first,
        *work,
        f"{wire:.2f}",
        f"{bound:.2f}",
        f"{plan.images_per_s:,.0f}",
        *(["shuffles activations"] if plan.moved else []),
    ]


def values(plan: Plan) -> dict[str, Any]:
    """A plan as JSON values; times in seconds, sizes in bytes, per device where nothing else is said."""
    job = plan.job
    found: dict[str, Any] = {"what": job.what, "topology": job.where.name, "slices": job.where.slices, "mesh": plan.mesh}
    found |= {"batch": job.batch, "remat": job.config.model.remat, "fits": plan.fits, "too_big": plan.too_big or None}
    found |= {"memory": plan.memory, "peak_bytes": plan.peak_bytes, "allowed_bytes": plan.allowed_bytes}
    found |= {"flops": plan.cost.flops, "flops_per_image": plan.flops_per_image, "hbm_bytes": plan.cost.hbm_bytes}
    found |= {"collectives": [_values(each) for each in plan.traffic], "shuffles_activations": bool(plan.moved)}
    found |= {"roofline_s": plan.cost.seconds, "wire_exposed_s": plan.exposed_s, "wire_hidden_s": plan.hidden_s}
    found |= {"bound_s": plan.bound_s, "images_per_s_at_bound": plan.images_per_s, "flop_utilisation_at_bound": plan.utilisation}
    found |= {"notes": list(plan.notes), "compile_s": plan.compiled_s, "lowering_s": plan.lowering_s, "cached": plan.cached}
    return found


def _values(each: Traffic) -> dict[str, Any]:
    return {
        "kind": each.kind,
        "axes": each.axes,
        "network": each.network,
        "beside_computation": each.hidden,
        "count": each.count,
        "bytes": each.bytes,
        "wire_s": each.seconds,
    }
