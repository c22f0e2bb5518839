"""Prints memory, FLOPs and collectives of one train step as compiled for TPU v5e chips; no TPU is needed.

The bfloat16 step of a config is compiled by the TPU compiler (libtpu) for one chip and for eight, data-parallel and
fully sharded, with the config's batch on every device. Code generation takes very long and changes none of these
figures: each compile runs in a child process that is stopped as soon as XLA has written the scheduled HLO of the step.

Memory is the total of XLA's buffer assignment in HBM, arguments included. FLOPs are those of convolutions (the TPU
compiler turns every matrix product into one), summed over the HLO text without the multiplications by padding, the body
of a loop as often as it runs. Collectives come with the bytes of their results on one device. No time is measured.

Exit status 1: the FLOPs a device of the fully sharded step are off the data-parallel ones by more than 2%, a
collective-permute or an all-to-all appears (activations are moved, or keys), or a device's memory does not suffice.

Run: pip install -e ".[tpu]" && python benchmarks/tpu_compile.py configs/cifar10.py
"""

from __future__ import annotations

import argparse
import itertools
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import hlo

CIFAR10 = pathlib.Path(__file__).parent.parent / "configs" / "cifar10.py"
CASES = {"one chip": ("v5e:1x1", 1, 1), "data-parallel": ("v5e:2x4", 8, 1), "fsdp": ("v5e:2x4", 1, 8)}
HBM_GIB = 15.75  # of a v5e chip, as its compiler allows
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


def compile_step(path: pathlib.Path, batch: int, topology: str, data: int, fsdp: int) -> None:
    """Compiles the step as `jaxdiff.run` does, for devices that are only described; batch 0 is the config's on each."""
    import jax
    import jax.numpy as jnp

    from jaxdiff import config as configs
    from jaxdiff import recipe
    from jaxdiff.mesh import batch_sharding, jit_layout, make_mesh
    from jaxdiff.train import train_step

    mesh = make_mesh(data, fsdp, devices=described(topology))
    config = configs.load(path)
    sources, frozen = started_from(config)
    shapes = replace(recipe.state_shapes(config, sources), frozen=frozen)
    layout = jit_layout(mesh, shapes)
    state = jax.tree.map(lambda leaf, at: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=at), shapes, layout.sharding)
    rows = partial(jax.ShapeDtypeStruct, sharding=batch_sharding(mesh))
    size = (batch or config.data.batch_size) * mesh.size
    image = rows((size, *config.data.image_shape), jnp.float32)
    examples = {"image": image, "label": rows((size,), jnp.int32), "index": rows((size,), jnp.int32)}
    step = layout.compile(partial(train_step, recipe.objective(config, sources), recipe.optimizer(config), config.ema))
    step.trace(state, examples, jax.eval_shape(lambda: jax.random.key(0))).lower(lowering_platforms=("tpu",)).compile()


def started_from(config: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Configs, and shapes of the frozen params, of the recipes that a config starts from; the config's own paths."""
    import jax
    import jax.numpy as jnp

    from jaxdiff import config as configs
    from jaxdiff import recipe

    places = {"autoencoder": config.sources.autoencoder, "features": config.sources.features}
    sources = {place: configs.load(name) for place, name in places.items() if name.endswith(".py")}
    frozen: dict[str, Any] = {place: recipe.state_shapes(source).params for place, source in sources.items()}
    if config.sources.features.endswith(".npz"):
        widths = [3, 64, 64, 128, 128, 256, 256, 256, *(512,) * 6]
        shape = partial(jax.ShapeDtypeStruct, dtype=jnp.float32)
        layers = [{"kernel": shape((3, 3, *pair)), "bias": shape(pair[1:])} for pair in itertools.pairwise(widths)]
        frozen["features"] = {"convolutions": layers, "weights": [shape((width,)) for width in (64, 128, 256, 512, 512)]}
    return sources, frozen


def described(topology: str) -> list[Any]:
    """The devices of a topology, of which none is there."""
    from jax.experimental import topologies

    bounds = {"chips_per_host_bounds": [1, 1, 1]} if topology.endswith("1x1") else {}
    return topologies.get_topology_desc(platform="tpu", topology_name=topology, **bounds).devices


def dumped(arguments: list[str], limit_s: float) -> tuple[str, str]:
    """Scheduled HLO and memory report of the function `step` that a child process of these arguments compiles.

    The child ends once both are written.
    """
    with tempfile.TemporaryDirectory() as folder:
        flags = f"--xla_dump_to={folder} --xla_dump_hlo_as_text=true"
        log = pathlib.Path(folder, "log")
        with log.open("wb") as out:
            child = subprocess.Popen(
                [sys.executable, *arguments], env={**os.environ, **ENVIRONMENT, "XLA_FLAGS": flags}, stdout=out, stderr=out
            )
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


def plan(text: str, report: str) -> Plan:
    """Memory, FLOPs and collectives of a scheduled HLO module."""
    return Plan(hlo.peak_gib(report), hlo.cost(text).flops / 1e12, hlo.collectives(text))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("config", type=pathlib.Path, nargs="?", default=CIFAR10)
    parser.add_argument("--batch", type=int, default=0, help="examples on each device; 0: the config's batch on each")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--limit", type=float, default=900, help="seconds a compile may take")
    parser.add_argument("--child", choices=CASES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        compile_step(args.config, args.batch, *CASES[args.child])
        return 0
    print(f"{'topology':9} {'sharding':14} {'GiB':>6} {'TFLOP':>7}  collectives: count (MiB)", flush=True)
    plans = {}
    for case in args.cases:
        topology, command = CASES[case][0], [__file__, str(args.config), "--batch", str(args.batch), "--child", case]
        plans[case] = found = plan(*dumped(command, args.limit))
        kinds = ", ".join(f"{kind} {count} ({mib:.1f})" for kind, (count, mib) in found.collectives.items()) or "none"
        print(f"{topology:9} {case:14} {found.gib:6.2f} {found.tflop:7.3f}  {kinds}", flush=True)
    ratio = 1.0
    if {"fsdp", "data-parallel"} <= set(plans):
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
