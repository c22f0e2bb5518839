"""Prints what Stable Diffusion 1.5 costs to import, to read and to export, and how far its outputs are from diffusers'.

diffusers writes its UNet (859,520,964 parameters) and autoencoder (83,653,863) at random, in the published layout, 3.8 GB in
float32. `jaxdiff import` makes a run of the folder, the run's params are read back, and `jaxdiff export` writes them in float16,
each in a process of its own. Its peak is the largest resident memory, with that of the anonymous pages alone (without those of
mapped files, which the system takes back when it wants); both are also given over the 3.44 GB of the UNet in float32. One call
of the UNet, on latents of 8x8, is compared between diffusers, the run, and diffusers on what was exported.

Exit status 1: the import's peak is above 1.3 times the UNet, the run is larger than its weights by 1%, or an output differs from
diffusers' by more than 1e-5 of its largest value (1e-2 once the weights are float16).

Run: pip install -r benchmarks/requirements.txt && python benchmarks/weights.py --folder /tmp/sd15
 or: with --peer-python PATH_OF_A_PYTHON_WITH_TORCH; --dtype float16 imports such a file, of 1.9 GB
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import subprocess
import sys
import time
from typing import Any, NamedTuple

import numpy as np

UNET_BYTES, AUTOENCODER_BYTES = 4 * 859_520_964, 4 * 83_653_863  # in float32
PEAK, SPARE, STEP = 1.3, 1.01, 500
TOLERANCES = {"float32": 1e-5, "float16": 1e-2}
UNET = {  # as published
    "sample_size": 64,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
    "block_out_channels": (320, 640, 1280, 1280),
    "down_block_types": (*("CrossAttnDownBlock2D",) * 3, "DownBlock2D"),
    "up_block_types": ("UpBlock2D", *("CrossAttnUpBlock2D",) * 3),
}
AUTOENCODER = {
    "sample_size": 512,
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
}
SCHEDULER = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "skip_prk_steps": True, "steps_offset": 1}


class Cost(NamedTuple):
    """Of a process: seconds, and its peak memory in bytes, all that was resident and the anonymous part."""

    seconds: float
    resident: int
    anonymous: int


def measured(command: list[str]) -> Cost:
    """What a command costs, which must succeed."""
    start, anonymous = time.perf_counter(), 0
    process = subprocess.Popen(command, env={**os.environ, "JAX_PLATFORMS": "cpu"})
    while True:
        pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        if pid:
            break
        anonymous = max(anonymous, anonymous_bytes(process.pid))
        time.sleep(0.02)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}; its message is above")
    return Cost(time.perf_counter() - start, 1024 * usage.ru_maxrss, anonymous)


def anonymous_bytes(pid: int) -> int:
    """Memory of a process that is of no file; 0 where the system does not say (Linux does)."""
    try:
        lines = pathlib.Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith("RssAnon:"))


def disk_bytes(folder: pathlib.Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def write(source: pathlib.Path, dtype: str) -> None:
    """Writes the networks and their scheduler by diffusers, none of whose arrays is zero."""
    import torch
    from diffusers import AutoencoderKL, PNDMScheduler, UNet2DConditionModel

    torch.manual_seed(0)
    for name, kind, config in (("unet", UNet2DConditionModel, UNET), ("vae", AutoencoderKL, AUTOENCODER)):
        network: Any = kind(**config)
        with torch.no_grad():
            for parameter in network.parameters():
                if not parameter.any():
                    parameter.normal_(std=0.02)
        print(f"{name}: {sum(each.numel() for each in network.parameters()):,} parameters", flush=True)
        network.to(getattr(torch, dtype)).save_pretrained(source / name)
    PNDMScheduler(**SCHEDULER).save_pretrained(source / "scheduler")
    parts = {"unet": "UNet2DConditionModel", "vae": "AutoencoderKL", "scheduler": "PNDMScheduler"}
    index = {"_class_name": "StableDiffusionPipeline"} | {name: ["diffusers", kind] for name, kind in parts.items()}
    (source / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")


def inputs() -> tuple[np.ndarray, np.ndarray]:
    """Latents and context, channels last."""
    rng = np.random.default_rng(0)
    return rng.standard_normal((1, 8, 8, 4), np.float32), rng.standard_normal((1, 77, 768), np.float32)


def theirs(source: pathlib.Path, output: pathlib.Path) -> None:
    """Saves what diffusers' UNet predicts, in float32."""
    import torch
    from diffusers import UNet2DConditionModel

    network: Any = UNet2DConditionModel.from_pretrained(source / "unet", torch_dtype=torch.float32)
    x, context = map(torch.from_numpy, inputs())
    with torch.inference_mode():
        predicted = network(x.permute(0, 3, 1, 2), STEP, context).sample
    np.save(output, predicted.permute(0, 2, 3, 1).numpy())


def read(run: pathlib.Path) -> tuple[Any, Any]:
    """Config and params of a run."""
    from jaxdiff.app.runs import storage

    config = storage.read_config(run)
    return config, storage.read_params(config, run)[1]


def ours(source: pathlib.Path, run: pathlib.Path, output: pathlib.Path) -> None:
    """Saves what the run's network predicts."""
    import jax

    from jaxdiff import interop
    from jaxdiff.app.build.networks import denoising_network

    config, params = read(run)
    x, context = inputs()
    logsnr = interop.schedule(source)((STEP + 1) / 1000).logsnr[None]
    np.save(output, jax.jit(denoising_network(config))(params, x, logsnr, {"context": context}))


def report(title: str, cost: Cost) -> float:
    """The peak over the size of the UNet in float32."""
    ratio, anonymous = cost.resident / UNET_BYTES, cost.anonymous / UNET_BYTES
    peaks = f"{cost.resident / 1e9:8.2f} {cost.anonymous / 1e9:8.2f}"
    print(f"{title:16} {cost.seconds:8.1f} {peaks} {ratio:8.2f} {anonymous:8.2f}", flush=True)
    return ratio


def compare(title: str, got: pathlib.Path, expected: pathlib.Path) -> float:
    """The largest difference, over the largest value."""
    mine, reference = np.load(got), np.load(expected)
    error = float(np.abs(mine - reference).max() / np.abs(reference).max())
    print(f"{title}: {error:.1e} of the largest value")
    return error


def task(dtype: str, name: str, *paths: pathlib.Path) -> list[str]:
    """The arguments by which Python does one of the tasks."""
    return [__file__, "--dtype", dtype, "--task", name, *map(str, paths)]


def bench(folder: pathlib.Path, dtype: str, peer: str) -> list[str]:
    """What is above its limit, after printing all figures."""
    source, run, out = folder / dtype, folder / f"run_{dtype}", folder / f"exported_{dtype}"
    outputs = {name: folder / f"{name}_{dtype}.npy" for name in ("diffusers", "jaxdiff", "exported")}
    if not (source / "model_index.json").exists():
        subprocess.run([peer, *task(dtype, "write", source)], check=True)
    if run.exists() or out.exists():
        raise SystemExit(f"{run} or {out} is there from another call; remove it")
    subprocess.run([peer, *task(dtype, "theirs", source, outputs["diffusers"])], check=True)
    python, jaxdiff = sys.executable, [sys.executable, "-m", "jaxdiff"]
    print(f"{'':16} {'seconds':>8} {'peak GB':>8} {'anon. GB':>8} {'/ UNet':>8} {'/ UNet':>8}")
    peak = report("import", measured([*jaxdiff, "import", str(source), "--workdir", str(run)]))
    report("imported again", measured([*jaxdiff, "import", str(source), "--workdir", str(run)]))
    report("read", measured([python, *task(dtype, "read", run)]))
    report("read and call", measured([python, *task(dtype, "ours", source, run, outputs["jaxdiff"])]))
    report("export, float16", measured([*jaxdiff, "export", str(run), "--out", str(out), "--dtype", "float16"]))
    subprocess.run([peer, *task(dtype, "theirs", out, outputs["exported"])], check=True)
    size = disk_bytes(run) / (UNET_BYTES + AUTOENCODER_BYTES)
    print(f"the run: {disk_bytes(run) / 1e9:.2f} GB, {size:.3f} of its float32 weights; exported {disk_bytes(out) / 1e9:.2f} GB")
    errors = {
        "the run": (compare("the run's output", outputs["jaxdiff"], outputs["diffusers"]), TOLERANCES["float32"]),
        "the export": (compare("the exported one's", outputs["exported"], outputs["diffusers"]), TOLERANCES["float16"]),
    }
    faults = [f"the import's peak is {peak:.2f} times the UNet, {PEAK} allowed"] if peak > PEAK else []
    faults += [f"the run takes {size:.3f} of its weights, {SPARE} allowed"] if size > SPARE else []
    return faults + [
        f"{name} differs by {error:.1e}, {limit:g} allowed" for name, (error, limit) in errors.items() if error > limit
    ]


TASKS = {"write": write, "theirs": theirs, "read": read, "ours": ours}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--folder", type=pathlib.Path, help="an empty folder with 15 GB of room")
    parser.add_argument("--dtype", choices=TOLERANCES, default="float32", help="of the file that is imported")
    parser.add_argument("--peer-python", default=sys.executable, help="the interpreter that has torch and diffusers")
    parser.add_argument("--task", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.task:
        name, *paths = args.task
        TASKS[name](*map(pathlib.Path, paths), *([args.dtype] if name == "write" else []))
        return 0
    if args.folder is None:
        parser.error("--folder is missing")
    args.folder.mkdir(parents=True, exist_ok=True)
    faults = bench(args.folder.resolve(), args.dtype, args.peer_python)
    print("\n".join(faults) or "all as promised")
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
