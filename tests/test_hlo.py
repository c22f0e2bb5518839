"""The roofline of benchmarks/hlo.py on programs small enough to count by hand."""

import importlib.util
import pathlib

import pytest

SPEC = importlib.util.spec_from_file_location("hlo", pathlib.Path(__file__).parents[1] / "benchmarks" / "hlo.py")
hlo = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(hlo)

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


def test_a_loop_counts_as_often_as_it_runs_and_slices_by_their_size():
    cost = hlo.cost(PROGRAM)
    assert cost.flops == 16 * 2 * 256 * 40 * 4096
    read = 256 * 128 * 2 + 4096 * 128 * 2 + 4  # the part of q, k, the counter: 40 channels lie in rows of 128
    assert cost.hbm_bytes == 16 * read
    padded = 2 * 256 * 128 * 4096 / (0.95 * hlo.PEAK_FLOPS)
    assert cost.seconds == pytest.approx(16 * max(padded, read / (0.85 * hlo.HBM_BANDWIDTH)))


def test_scores_in_hbm_are_traffic():
    without = hlo.cost(PROGRAM).hbm_bytes
    assert hlo.cost(PROGRAM.replace("S(1)", "")).hbm_bytes - without == 16 * 256 * 4096 * 4


def test_few_rows_take_as_long_as_a_tile_of_weights():
    few = (
        PROGRAM.replace("bf16[256,40]", "bf16[8,40]")
        .replace("f32[256,4096]", "f32[8,4096]")
        .replace("bf16[4096,40]{1,0:T(8,128)(2,1)}", "bf16[4096,40]{1,0:T(8,128)(2,1)S(1)}")
    )
    assert hlo.cost(few).seconds == pytest.approx(16 * 2 * 128 * 128 * 4096 / (0.95 * hlo.PEAK_FLOPS))


def test_a_batch_of_products_counts_each_once():
    """The TPU compiler writes batches of products as dilated convolutions, whose padding is no work."""
    attributes = ", window={size=4x8 stride=3x7 lhs_dilate=4x8}, dim_labels=0b1f_0o1i->01bf"
    dense, padded = hlo._convolution_flops([4, 8, 4096, 77], [4, 4096, 8, 40], [4, 77, 8, 40], attributes)
    assert dense == 2 * 4 * 8 * 4096 * 77 * 40
    assert padded == 2 * 4 * 8 * 4096 * 128 * 128


def test_what_cannot_be_counted_is_refused():
    for old, new in (
        ("convolution(", "dot("),
        ("kind=kOutput, calls=%fused", 'custom_call_target="tpu_custom_call"'),
        ("%limit = s32[]", "%limit = s8[]"),
    ):
        with pytest.raises(SystemExit):
            hlo.cost(PROGRAM.replace(old, new))


def test_collectives_come_with_their_bytes():
    text = " %a = f32[1024]{0} all-gather(%x), channel_id=1\n %b = (bf16[512]{0}, bf16[2048]{0}) all-reduce-start(%y)\n"
    assert hlo.collectives(text) == {"all-reduce": (1, 4096 / 2**20), "all-gather": (1, 4096 / 2**20)}
