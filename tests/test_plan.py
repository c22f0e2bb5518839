"""Plans: programs small enough to count by hand, collectives of small texts, searches with a chip whose memory is a formula."""

import dataclasses
import json
import pathlib
import re

import numpy as np
import pytest

from jaxdiff.app import cli, plan
from jaxdiff.app.cli import plan_command
from jaxdiff.app.config import Experiment
from jaxdiff.app.plan import collectives, compiling, cost, hlo
from jaxdiff.io.errors import ConfigError

V5E = plan.CHIPS["v5e"]

# q [256, 40] times k [40, 4096], in a loop of 16 parts; the scores stay in VMEM, memory space 1
PROGRAM = """HloModule jit_step

%fused (p0: bf16[4096,40], p1: bf16[4096,40], p2: s32[]) -> f32[256,4096] {
  %p0 = bf16[4096,40]{1,0:T(8,128)(2,1)} parameter(0)
  %p1 = bf16[4096,40]{1,0:T(8,128)(2,1)} parameter(1)
  %p2 = s32[]{:T(128)} parameter(2)
  %zero = s32[]{:T(128)} constant(0)
  %part = bf16[256,40]{1,0:T(8,128)(2,1)} dynamic-slice(%p0, %p2, %zero), dynamic_slice_sizes={256,40}
  ROOT %scores = f32[256,4096]{1,0:T(8,128)S(1)} convolution(%part, %p1), dim_labels=bf_oi->bf
}

%body (state: (s32[], bf16[4096,40], bf16[4096,40])) -> (s32[], bf16[4096,40], bf16[4096,40]) {
  %state = (s32[]{:T(128)}, bf16[4096,40]{1,0:T(8,128)(2,1)}, bf16[4096,40]{1,0:T(8,128)(2,1)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%state), index=0
  %q = bf16[4096,40]{1,0:T(8,128)(2,1)} get-tuple-element(%state), index=1
  %k = bf16[4096,40]{1,0:T(8,128)(2,1)} get-tuple-element(%state), index=2
  %fusion = f32[256,4096]{1,0:T(8,128)S(1)} fusion(%q, %k, %i), kind=kOutput, calls=%fused
  ROOT %next = (s32[]{:T(128)}, bf16[4096,40]{1,0:T(8,128)(2,1)}, bf16[4096,40]{1,0:T(8,128)(2,1)}) tuple(%i, %q, %k)
}

%condition (state.1: (s32[], bf16[4096,40], bf16[4096,40])) -> pred[] {
  %state.1 = (s32[]{:T(128)}, bf16[4096,40]{1,0:T(8,128)(2,1)}, bf16[4096,40]{1,0:T(8,128)(2,1)}) parameter(0)
  %limit = s32[]{:T(128)} constant(16)
  %i.1 = s32[]{:T(128)} get-tuple-element(%state.1), index=0
  ROOT %less = pred[]{:T(512)} compare(%i.1, %limit), direction=LT
}

ENTRY %main (q.1: bf16[4096,40], k.1: bf16[4096,40]) -> bf16[4096,40] {
  %q.1 = bf16[4096,40]{1,0:T(8,128)(2,1)} parameter(0)
  %k.1 = bf16[4096,40]{1,0:T(8,128)(2,1)} parameter(1)
  %start = s32[]{:T(128)} constant(0)
  %in = (s32[]{:T(128)}, bf16[4096,40]{1,0:T(8,128)(2,1)}, bf16[4096,40]{1,0:T(8,128)(2,1)}) tuple(%start, %q.1, %k.1)
  %loop = (s32[]{:T(128)}, bf16[4096,40]{1,0:T(8,128)(2,1)}, bf16[4096,40]{1,0:T(8,128)(2,1)}) while(%in), condition=%condition, body=%body
  ROOT %out = bf16[4096,40]{1,0:T(8,128)(2,1)} get-tuple-element(%loop), index=1
}
"""  # noqa: E501
FUSION = "fusion(%q, %k, %i), kind=kOutput, calls=%fused"
KERNEL = 'custom-call(%q, %k, %i), custom_call_target="tpu_custom_call"'
SEND = (
    " %s = (f32[256]{0}, u32[], token[]) send(%x), is_host_transfer=true, "
    'frontend_attributes={_xla_megascale_transfer_type="ALL_REDUCE"}'
)


def costs(text, chip=V5E):
    module = hlo.parsed(text)
    runs, notes = hlo.executed(module)
    found, more = cost.cost(module, runs, chip)
    return found, notes + more


def sent(text, where="v5e:2x4", axes=None, slices=1):
    where = plan.topology(where, slices)
    module = hlo.parsed(f"ENTRY %main (x: f32[8]) -> f32[8] {{\n{text}\n}}\n")
    local = where.devices // slices
    grid = collectives.Grid(axes or {"data": 2, "fsdp": where.devices // 2}, np.repeat(np.arange(slices), local).tolist())
    return collectives.traffic(module, hlo.executed(module)[0], grid, where)


def test_a_loop_counts_as_often_as_it_runs_and_slices_by_their_size():
    found, notes = costs(PROGRAM)
    assert found.flops == 16 * 2 * 256 * 40 * 4096
    assert notes == []
    read = 256 * 128 * 2 + 4096 * 128 * 2 + 4  # the part of q, k, the counter: 40 channels lie in rows of 128
    assert found.hbm_bytes == 16 * read
    padded = 2 * 256 * 128 * 4096 / (0.95 * V5E.flops)
    assert found.seconds == pytest.approx(16 * max(padded, read / (0.85 * V5E.hbm_bandwidth)))


def test_a_loop_whose_first_round_was_peeled_off_runs_once_less():
    peeled = PROGRAM.replace("%start = s32[]{:T(128)} constant(0)", "%one = s32[] constant(1)\n  %start = s32[] copy(%one)")
    assert costs(peeled)[0].flops == 15 * 2 * 256 * 40 * 4096


def test_a_copy_that_runs_beside_costs_no_time_but_its_bytes():
    """A prefetch of 8 MiB, alone in a program: read and written once each, at the bandwidth."""
    text = """HloModule jit_step

ENTRY %main (x: f32[2048,1024]) -> f32[2048,1024] {
  %x = f32[2048,1024]{1,0:T(8,128)} parameter(0)
  %begun = (f32[2048,1024]{1,0:T(8,128)S(1)}, f32[2048,1024]{1,0:T(8,128)}, u32[]{:S(2)}) copy-start(%x)
  %done = f32[2048,1024]{1,0:T(8,128)S(1)} copy-done(%begun)
  ROOT %sum = f32[2048,1024]{1,0:T(8,128)S(1)} add(%done, %done)
}
"""
    found, _ = costs(text)
    assert found.hbm_bytes == 2048 * 1024 * 4
    assert found.seconds == pytest.approx(found.hbm_bytes / (0.85 * V5E.hbm_bandwidth))
    thrice = text.replace("parameter(0)", "parameter(0)\n  %own = f32[2048,1024]{1,0:T(8,128)} negate(%x)")
    assert costs(thrice)[0].seconds == pytest.approx(3 * found.seconds)  # the bytes of all, not of the negation alone


def test_scores_in_hbm_are_traffic():
    without = costs(PROGRAM)[0].hbm_bytes
    assert costs(PROGRAM.replace("S(1)", ""))[0].hbm_bytes - without == 16 * 256 * 4096 * 4


def test_few_rows_take_as_long_as_a_tile_of_weights():
    few = (
        PROGRAM.replace("bf16[256,40]", "bf16[8,40]")
        .replace("f32[256,4096]", "f32[8,4096]")
        .replace("bf16[4096,40]{1,0:T(8,128)(2,1)}", "bf16[4096,40]{1,0:T(8,128)(2,1)S(1)}")
    )
    assert costs(few)[0].seconds == pytest.approx(16 * 2 * 128 * 128 * 4096 / (0.95 * V5E.flops))
    v6e = plan.CHIPS["v6e"]  # tiles of 256
    assert costs(few, v6e)[0].seconds == pytest.approx(16 * 2 * 256 * 256 * 4096 / (0.95 * v6e.flops))


def test_a_batch_of_products_counts_each_once():
    """The TPU compiler writes batches of products as dilated convolutions, whose padding is no work."""
    attributes = ", window={size=4x8 stride=3x7 lhs_dilate=4x8}, dim_labels=0b1f_0o1i->01bf"
    dense, padded = cost.convolution_flops([4, 8, 4096, 77], [4, 4096, 8, 40], [4, 77, 8, 40], attributes, 128)
    assert dense == 2 * 4 * 8 * 4096 * 77 * 40
    assert padded == 2 * 4 * 8 * 4096 * 128 * 128


def test_a_convolution_counts_no_padding():
    """3x3 taps over 8x8 places, of which the border meets 2 of 3 along each axis: 22 of 24."""
    dense, _ = cost.convolution_flops(
        [1, 8, 8, 5], [1, 8, 8, 7], [3, 3, 7, 5], "window={size=3x3 pad=1_1x1_1}, dim_labels=b01f_01io->b01f", 128
    )
    assert dense == 2 * 22 * 22 * 7 * 5


def test_a_product_that_is_no_convolution():
    old = "convolution(%part, %p1), dim_labels=bf_oi->bf"
    assert (
        costs(PROGRAM.replace(old, "dot(%part, %p1), lhs_contracting_dims={1}, rhs_contracting_dims={1}"))[0].flops
        == 16 * 2 * 256 * 40 * 4096
    )


@pytest.mark.parametrize(
    ("old", "new", "note", "flops"),
    [
        ("direction=LT", "direction=NE", "loop loop runs as often as is known at run time alone", 2 * 256 * 40 * 4096),
        ("while(%in), condition=%condition, body=%body", "conditional(%start, %in)", "branch loop is chosen at run time", 0),
        (FUSION, KERNEL, "kernel fusion does not say its FLOPs", 0),
    ],
)
def test_what_cannot_be_counted_is_named(old, new, note, flops):
    found, notes = costs(PROGRAM.replace(old, new))
    assert found.flops == flops
    assert [text for text in notes if note in text]


def test_a_kernel_says_its_flops():
    said = ', backend_config={"cost_estimate":{"flops":"123","bytes_accessed":"7"}}'
    found, notes = costs(PROGRAM.replace(FUSION, KERNEL + said))
    assert (found.flops, notes) == (16 * 123, [])


@pytest.mark.parametrize(
    ("groups", "axes", "members"),
    [
        ("replica_groups={{0,4},{1,5},{2,6},{3,7}}", "data", 2),
        ("replica_groups={{0,1,2,3},{4,5,6,7}}", "fsdp", 4),
        ("replica_groups={}", "data+fsdp", 8),
        ("replica_groups=[2,4]<=[8]", "fsdp", 4),
        ("replica_groups=[4,2]<=[2,4]T(1,0)", "data", 2),
        ("replica_groups=mesh['axis_0'=8,'axis_1'=1] {'axis_0','axis_1'}", "data+fsdp", 8),
        ("replica_groups=mesh['a'=1,'b'=4,'c'=1,'d'=2], device_ids=([2,4]T(1,0)) {'b'}", "fsdp", 4),
        ("replica_groups=mesh['a'=1,'b'=4,'c'=1,'d'=2], device_ids=([2,4]T(1,0)) {'d'}", "data", 2),
        ("replica_groups=mesh['a'=8] {'a':(1)2}", "data", 2),
        ("replica_groups=mesh['a'=8] {'a':(2)4}", "fsdp", 4),
    ],
)
def test_the_axis_of_a_collective(groups, axes, members):
    (found,) = sent(f" %a = f32[1024]{{0}} all-gather(%x), channel_id=1, {groups}, dimensions={{0}}")
    assert (found.kind, found.axes, found.network, found.hidden) == ("all-gather", axes, "ICI", False)
    assert (found.times, found.bytes) == (1, 4096)
    assert found.seconds == pytest.approx(4096 * (members - 1) / members / (3 * 50e9))  # three links a chip in 2x4


@pytest.mark.parametrize(
    ("line", "bytes_sent"),
    [
        ("f32[1024]{0} all-reduce(%x), replica_groups={}", 2 * 4096 * 7 / 8),
        ("(f32[512]{0}, bf16[1024]{0}) all-reduce(%x, %y), replica_groups={}", 2 * 4096 * 7 / 8),
        ("f32[128]{0} reduce-scatter(%x), replica_groups={}", 4096 * 7 / 8),
        ("f32[1024]{0} all-to-all(%x), replica_groups={}", 4096 * 7 / 8),
        ("f32[1024]{0} collective-permute(%x), source_target_pairs={{0,1},{1,0}}", 4096),
    ],
)
def test_bytes_on_the_wire(line, bytes_sent):
    (found,) = sent(f" %a = {line}")
    assert found.seconds == pytest.approx(bytes_sent / 150e9)


def test_parts_of_a_collective_that_runs_beside_fusions_are_one():
    start = (
        '%f (p: f32[8]) -> f32[64] {\n %g = f32[64]{0} all-gather(%p), replica_groups={}, frontend_attributes={chain_id="3"}\n}\n'
    )
    text = start + start.replace("%f ", "%h ").replace("%g ", "%k ")
    text += "ENTRY %main (x: f32[8]) -> f32[64] {\n %a = f32[64] fusion(%x), calls=%f\n %b = f32[64] fusion(%a), calls=%h\n}\n"
    module = hlo.parsed(text)
    found = collectives.traffic(module, hlo.executed(module)[0], collectives.Grid({"data": 8}, [0] * 8), plan.topology("v5e:2x4"))
    assert [(each.times, each.bytes, each.hidden) for each in found] == [(1, 256, True)]


def test_between_slices():
    """Within a slice devices are numbered from 0; between slices the host's network sends."""
    lines = f"{SEND}\n %r = f32[256]{{0}} reduce-scatter(%y), replica_groups={{{{0,1}},{{2,3}}}}"
    dcn, ici = sent(lines, "v5e:2x2", {"data": 4, "fsdp": 2}, slices=2)
    assert (dcn.kind, dcn.axes, dcn.network, dcn.bytes) == ("all-reduce", "data", "DCN", 1024)
    assert dcn.seconds == pytest.approx(1024 / 3.125e9)
    assert (ici.kind, ici.axes, ici.network) == ("reduce-scatter", "fsdp", "ICI")


def test_memory_by_kind():
    names = {0: "state.params['a']", 1: "state.opt_state[0].mu['a']", 2: "state.ema['ema']['a']", 3: "batch['image']", 4: "key"}
    lines = [f' %p{n} = f32[3,100]{{1,0:T(8,128)}} parameter({n}), metadata={{op_name="{name}"}}' for n, name in names.items()]
    module = hlo.parsed("\n".join(["ENTRY %main (a: f32[]) -> f32[] {", *lines, "}"]))
    found = cost.memory_by_kind(module, "Memory Space: default (color=0)\nTotal bytes: 30000 (29KiB)\n")
    padded = 8 * 128 * 4
    kinds = dict.fromkeys(("params", "optimizer", "EMA", "batch", "other arguments"), padded)
    assert found == kinds | {"activations and temporaries": 30000 - 5 * padded}


def arithmetic(limit, grows_at=10**9):
    """A plan of every job whose activations take a hundredth of HBM an image and chip; `limit` is what the chip allows."""

    def planned(job):
        a_device = job.batch // job.where.devices
        work = (1.1 if a_device >= grows_at else 1.0) * a_device * 1e9
        held = {"activations and temporaries": int(job.where.chip.hbm_gib * 2**30 * a_device / limit)}
        times = {"lowering_s": 1.0, "compiled_s": 1.0, "cached": False}
        return plan.Plan(job, {"data": job.where.devices}, held, cost.Cost(work, 1e6, 1e-3 * a_device), (), (), "", **times)

    return planned


def job(batch=128, where="v5e:2x4"):
    return plan.with_batch(plan.Job(Experiment(), "train", plan.topology(where), pathlib.Path("kept")), batch)


@pytest.mark.parametrize(("limit", "start"), [(100, 128), (7, 128), (1, 8), (13, 128), (1000, 64)])
def test_the_largest_batch(limit, start):
    plans = list(plan.largest_batch(job(start), arithmetic(limit)))
    best = max(each.job.batch for each in plans if each.fits)
    assert 8 * limit * 15 / 16 <= best <= 8 * limit
    assert len(plans) < 16
    assert f"the largest batch that fits: {best:,} images" in plan.conclusion(plans)


def test_the_largest_batch_of_the_sampler_is_one_for_each_device():
    sampler = job()._replace(what="sample")
    assert sampler.batch == 8 * sampler.config.sampling.batch_size
    *_, best = (each for each in plan.largest_batch(sampler, arithmetic(100)) if each.fits)
    assert 94 <= best.job.config.sampling.batch_size <= 100
    assert best.flops_per_image == pytest.approx(1e9)


def test_no_batch_fits():
    plans = list(plan.largest_batch(job(), arithmetic(0.5)))
    assert plan.conclusion(plans) == "no batch fits: 8 images do not"


def test_recomputation_near_the_limit_is_named():
    plans = list(plan.largest_batch(job(), arithmetic(100, grows_at=60)))
    assert re.search(r"from \d+ images on XLA recomputes by itself to make it fit: \+10% FLOPs", plan.conclusion(plans))


def test_a_sweep_compares_meshes_policies_and_batches():
    jobs = plan.variants(job(), ["none"], [64, 128, 1024, 4096])
    plans = list(plan.sweep(jobs, arithmetic(100)))
    meshes = {(each.job.config.mesh.data, each.job.config.mesh.fsdp) for each in plans}
    assert meshes == {(8, 1), (1, 8), (2, 4)}
    assert len(plans) == 9  # of 12: 4096 is not tried where 1024 did not fit
    assert "does not fit" in plan_command._table(plans)
    assert re.search(r"--mesh.data \d --mesh.fsdp \d --model.\S+.* --data.batch-size (64|128)$", plan.recommendation(plans))


def test_the_bound_hides_what_runs_beside():
    def one(hidden, seconds):
        return collectives.Traffic("all-gather", "fsdp", "ICI", hidden, 1, 1.0, seconds)

    found = dataclasses.replace(arithmetic(100)(job()), traffic=(one(False, 0.002), one(True, 0.003)))
    assert found.cost.seconds == pytest.approx(0.016)
    assert found.bound_s == pytest.approx(0.018)
    assert found.images_per_s == pytest.approx(128 / 0.018)
    assert found.utilisation == pytest.approx(16e9 / (0.018 * 197e12))
    assert json.loads(json.dumps(plan_command._values(found)))["bound_s"] == found.bound_s
    assert "lower bound of a run: 18.00 ms" in plan_command._text(found)
    assert "measurement" in plan_command._text(found)


def test_what_a_program_that_is_too_big_asked_for():
    message = "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 40.03G of 15.75G hbm."
    found = dataclasses.replace(arithmetic(100)(job()), too_big=message, memory={})
    assert not found.fits
    assert found.peak_bytes == pytest.approx(40.03 * 2**30)


@pytest.mark.parametrize("name", ["v5e:3x3", "v5e:32x32", "v5e", "v9:2x2", "v5p:2x2", "4x4", "v5p:64x64x64", "v4:0x2x2"])
def test_no_such_topology(name):
    with pytest.raises(ConfigError, match=r"no such TPU; write v5e or v6e with 1x1, 2x2"):
        plan.topology(name)


def test_links_of_a_topology():
    assert plan.topology("v5e:2x2", 2).devices == 8
    assert plan.topology("v5e:1x1").ici == 0
    assert plan.topology("v5p:2x2x4").ici == 4 * 100e9


def test_where_programs_are_kept(monkeypatch, tmp_path):
    assert plan.cache_dir(tmp_path) == tmp_path
    monkeypatch.setenv("JAXDIFF_CACHE_DIR", str(tmp_path))
    assert plan.cache_dir() == tmp_path / "plan"
    monkeypatch.delenv("JAXDIFF_CACHE_DIR")
    assert plan.cache_dir().parts[-3:] == (".cache", "jaxdiff", "plan")


def test_a_child_that_fails_ends_in_one_line():
    with pytest.raises(compiling.CompilerError, match="stopped with status 1: ValueError: no") as caught:
        compiling.compiled(["-c", "raise ValueError('no')"], 60)
    assert "\n" not in str(caught.value)
    with pytest.raises(compiling.Aborted, match="stopped with status -6"):
        compiling.compiled(["-c", "import os, resource; resource.setrlimit(resource.RLIMIT_CORE, (0, 0)); os.abort()"], 60)
    with pytest.raises(compiling.CompilerError, match="no result after 1 s; allow more by --limit-s"):
        compiling.compiled(["-c", "import time; time.sleep(60)"], 1)


def test_a_full_disk_is_no_program_that_is_too_big():
    with pytest.raises(compiling.CompilerError, match="stopped with status 1: OSError: RESOURCE_EXHAUSTED"):
        compiling.compiled(["-c", "raise OSError('RESOURCE_EXHAUSTED: /x: No space left on device')"], 60)


def test_a_program_that_is_too_big_is_no_failure():
    found = compiling.compiled(["-c", "raise RuntimeError('RESOURCE_EXHAUSTED: Used 40.03G of 15.75G hbm')"], 60)
    assert found is not None
    assert found.too_big == "RESOURCE_EXHAUSTED: Used 40.03G of 15.75G hbm"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ((), "--topology"),
        (("--topology", "v5e:3x3"), "jaxdiff: --topology v5e:3x3: no such TPU"),
        (("--topology", "v5e:2x2", "--slices", "0"), "--slices must be at least 1"),
        (("--topology", "v5e:2x2", "--batch", "-4"), "data.batch_size must be at least 1, got -4"),
        (("--topology", "v5e:2x2", "--what", "sample", "--batch", "6"), "a batch of 6 samples is not divisible by 4 devices"),
        (("--topology", "v5e:2x2", "--remats", "none"), "--remats is for --sweep"),
        (("--topology", "v5e:2x2", "--sweep", "--remats", "all"), "--remats all: write some of none"),
        (("--topology", "v5e:2x2", "--sweep", "--largest-batch"), "exclude each other"),
    ],
)
def test_wrong_flags_of_plan(capsys, flags, message):
    status = cli.main(("plan", "configs/digits.py", *flags))
    line = capsys.readouterr().err
    assert status in (1, 2)
    assert message in line
    assert line.count("\n") == 1
