"""Prints memory, FLOPs and collectives of one train step as compiled for TPU v5e chips; no TPU is needed.

The bfloat16 step of a config is compiled by the TPU compiler (libtpu) for one chip and for eight, data-parallel and
fully sharded, with the config's batch on every device. Code generation takes very long and changes none of these
figures: each compile runs in a child process that is stopped as soon as XLA has written the scheduled HLO of the step.

Memory is the total of XLA's buffer assignment in HBM, arguments included. FLOPs are those of convolutions (the TPU
compiler turns every matrix product into one), summed over the HLO text without the multiplications by padding;
a step with a loop is refused, because its body would count once. Collectives come with the bytes of their results on
one device. No time is measured.

Exit status 1: the FLOPs a device of the fully sharded step are off the data-parallel ones by more than 2%, a
collective-permute or an all-to-all appears (activations are moved, or keys), or a device's memory does not suffice.

Run: pip install -e ".[tpu]" && python benchmarks/tpu_compile.py configs/cifar10.py
"""

from __future__ import annotations

import argparse
import math
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from functools import partial
from typing import NamedTuple

import numpy as np

CIFAR10 = pathlib.Path(__file__).parent.parent / "configs" / "cifar10.py"
CASES = {"one chip": ("v5e:1x1", 1, 1), "data-parallel": ("v5e:2x4", 8, 1), "fsdp": ("v5e:2x4", 1, 8)}
HBM_GIB = 15.75  # of a v5e chip, as its compiler allows
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "collective-permute", "all-to-all")
BYTES = {"bf16": 2, "f16": 2, "f32": 4, "s32": 4, "u32": 4, "pred": 1, "s8": 1, "u8": 1, "u16": 2, "s16": 2}
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


class Plan(NamedTuple):
    """What the compiler says of a step, per device."""

    gib: float
    tflop: float
    collectives: dict[str, tuple[int, float]]  # kind -> count, MiB


def compile_step(path: pathlib.Path, topology: str, data: int, fsdp: int) -> None:
    """Compiles the step as `jaxdiff.run` does, for devices that are only described."""
    import jax
    import jax.numpy as jnp
    from jax.experimental import topologies

    from jaxdiff import config as configs
    from jaxdiff import recipe
    from jaxdiff.mesh import batch_sharding, jit_layout, make_mesh
    from jaxdiff.train import train_step

    bounds = {"chips_per_host_bounds": [1, 1, 1]} if topology.endswith("1x1") else {}
    devices = topologies.get_topology_desc(platform="tpu", topology_name=topology, **bounds).devices
    mesh = make_mesh(data, fsdp, devices=devices)
    config = configs.load(path)
    shapes = recipe.state_shapes(config)
    layout = jit_layout(mesh, shapes)
    state = jax.tree.map(lambda leaf, at: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=at), shapes, layout.sharding)
    rows = partial(jax.ShapeDtypeStruct, sharding=batch_sharding(mesh))
    size = config.data.batch_size * mesh.size
    image = rows((size, *config.data.image_shape), jnp.float32)
    batch = {"image": image, "label": rows((size,), jnp.int32), "index": rows((size,), jnp.int32)}
    step = layout.compile(partial(train_step, recipe.objective(config), recipe.optimizer(config), config.ema))
    step.trace(state, batch, jax.eval_shape(lambda: jax.random.key(0))).lower(lowering_platforms=("tpu",)).compile()


def dumped(path: pathlib.Path, case: str, limit_s: float) -> tuple[str, str]:
    """Scheduled HLO and memory report of a case, compiled in a child process that ends once both are written."""
    with tempfile.TemporaryDirectory() as folder:
        flags = f"--xla_dump_to={folder} --xla_dump_hlo_as_text=true"
        command = [sys.executable, __file__, str(path), "--child", case]
        log = pathlib.Path(folder, "log")
        with log.open("wb") as out:
            child = subprocess.Popen(command, env={**os.environ, **ENVIRONMENT, "XLA_FLAGS": flags}, stdout=out, stderr=out)
        try:
            return _wait(child, pathlib.Path(folder), log, limit_s)
        finally:
            child.kill()
            child.wait()


def _wait(child: subprocess.Popen, folder: pathlib.Path, log: pathlib.Path, limit_s: float) -> tuple[str, str]:
    wanted = [f"*jit_step*after_optimizations{end}" for end in ("_after_buffer_assignment.txt", "-memory-usage-report.txt")]
    end, before = time.monotonic() + limit_s, None
    while time.monotonic() < end:
        ended = child.poll() is not None
        files = [path for pattern in wanted for path in sorted(folder.glob(pattern))[-1:]]
        sizes = [path.stat().st_size for path in files]
        if len(files) == 2 and all(sizes) and (ended or sizes == before):
            return files[0].read_text(), files[1].read_text()
        if ended:
            raise SystemExit(f"the compiler stopped with status {child.returncode}:\n{log.read_text()[-2000:]}")
        before = sizes
        time.sleep(2)
    raise SystemExit(f"no scheduled HLO after {limit_s:.0f} s; choose a longer --limit")


def plan(hlo: str, report: str) -> Plan:
    """Memory, FLOPs and collectives of a scheduled HLO module."""
    if " while(" in hlo or " dot(" in hlo:
        raise SystemExit("the step has a loop or a product that is no convolution: its FLOPs cannot be read off the HLO text")
    space = re.search(r"^Memory Space: default .*\nTotal bytes: (\d+)", report, re.M)
    return Plan(int(space[1]) / 2**30, flops(hlo) / 1e12, collectives(hlo))


def flops(hlo: str) -> float:
    """Twice the multiply-adds of all convolutions of a module, each instruction once."""
    shapes = {name: _numbers(shape) for name, shape in re.findall(r"(%[\w.-]+) = \w+\[([\d,]*)\]", hlo)}
    found = re.findall(r"(%[\w.-]+) = \S+ convolution\((%[\w.-]+), (%[\w.-]+)\)(.*)", hlo)
    return sum(_convolution_flops(shapes[out], shapes[left], shapes[right], rest) for out, left, right, rest in found)


def _convolution_flops(out: list[int], left: list[int], right: list[int], attributes: str) -> float:
    left_axes, right_axes, out_axes = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", attributes).groups()
    window = re.search(r"window=\{([^}]*)\}", attributes)
    fields = dict(field.split("=") for field in window[1].split()) if window else {}
    total = 2.0 * out[out_axes.index("b")] * out[out_axes.index("f")] * right[right_axes.index("i")]
    for axis in sorted(set(out_axes) - set("bf")):
        one = {name: value.split("x")[int(axis)] for name, value in fields.items()}
        total *= _taps(one, left[left_axes.index(axis)], out[out_axes.index(axis)])
    return total


def _taps(window: dict[str, str], inputs: int, outputs: int) -> int:
    """Along one axis, how often a weight meets a value that is neither padding nor dilation."""
    stride, spread, dilation = (int(window.get(name, 1)) for name in ("stride", "lhs_dilate", "rhs_dilate"))
    low = int(window.get("pad", "0_0").split("_")[0])
    position = stride * np.arange(outputs)[:, None] + dilation * np.arange(int(window["size"])) - low
    return int(np.sum((position >= 0) & (position <= (inputs - 1) * spread) & (position % spread == 0)))


def collectives(hlo: str) -> dict[str, tuple[int, float]]:
    """Count and MiB of every kind of collective that the module has."""
    sizes: dict[str, dict[str, float]] = defaultdict(dict)
    for shape, kind, start, rest in re.findall(rf" = (.*?) ({'|'.join(COLLECTIVES)})(-start)?\((.*)", hlo):
        parts = [BYTES[dtype] * math.prod(_numbers(dims)) for dtype, dims in re.findall(r"(\w+)\[([\d,]*)\]", shape)]
        channel = None if start else re.search(r"channel_id=(\d+)", rest)  # the pieces of a fused collective share it
        sizes[kind][channel[1] if channel else f"start {len(sizes[kind])}"] = max(parts) if start else sum(parts)
    return {kind: (len(sizes[kind]), sum(sizes[kind].values()) / 2**20) for kind in COLLECTIVES if kind in sizes}


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",") if number]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("config", type=pathlib.Path, nargs="?", default=CIFAR10)
    parser.add_argument("--limit", type=float, default=900, help="seconds a compile may take")
    parser.add_argument("--child", choices=CASES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        compile_step(args.config, *CASES[args.child])
        return 0
    print(f"{'topology':9} {'sharding':14} {'GiB':>6} {'TFLOP':>7}  collectives: count (MiB)", flush=True)
    plans = {}
    for case, (topology, *_) in CASES.items():
        plans[case] = found = plan(*dumped(args.config, case, args.limit))
        kinds = ", ".join(f"{kind} {count} ({mib:.1f})" for kind, (count, mib) in found.collectives.items()) or "none"
        print(f"{topology:9} {case:14} {found.gib:6.2f} {found.tflop:7.3f}  {kinds}", flush=True)
    ratio = plans["fsdp"].tflop / plans["data-parallel"].tflop
    print(f"FLOPs a device, fsdp / data-parallel: {ratio:.3f}")
    moved = [case for case, found in plans.items() if {"collective-permute", "all-to-all"} & set(found.collectives)]
    big = [case for case, found in plans.items() if found.gib > HBM_GIB]
    for fault, cases in (("collective-permute or all-to-all", moved), (f"more than {HBM_GIB} GiB", big)):
        if cases:
            print(f"{fault}: {', '.join(cases)}")
    return int(bool(moved or big or abs(ratio - 1) > 0.02))


if __name__ == "__main__":
    sys.exit(main())
