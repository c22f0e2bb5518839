"""Prints how long jaxdiff and diffusers (PyTorch) take on a GPU for the same network, ratios, and shares of the GPU's peak.

The network is that of configs/cifar10_v.py in bfloat16. Four kinds of work are timed, by calls whose last result is waited for:

- a train step: noise, forward, backward, AdamW, without EMA and clipping; PyTorch by torch.compile, autocast, channels_last and a
  fused AdamW;
- the training loop of `jaxdiff train` with its defaults, in milliseconds a step (jaxdiff alone, from 10 calls a round on);
- DDIM: 10 steps from noise to images, without guidance; PyTorch by torch.compile in the mode reduce-overhead;
- a product of matrices of 8192 x 8192 in bfloat16, whose rate is the peak (the larger of both sides').

Each side lives in a process of its own and waits while the other one works; figures are medians of the rounds. A side whose
library is not installed is left out. Without a GPU nothing is timed, unless --cpu says so, to try the script.

Run: python benchmarks/gpu.py [--batch-size 512] [--peer-python PATH_OF_A_PYTHON_WITH_TORCH]
"""

from __future__ import annotations

import argparse
import os
import pathlib
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from peer import STEPS, ask, peer_network

RECIPE = pathlib.Path(__file__).parent.parent / "configs" / "cifar10_v.py"
WORK = ("train step", "loop, a step", f"DDIM, {STEPS} steps", "matrix product")

Side = tuple[float, tuple[Callable[[int], float] | None, ...]]  # FLOP of a train step, and of each work: seconds a call


def timed(call: Callable[[], object], wait: Callable[[object], object]) -> Callable[[int], float]:
    """A function from a number of calls to the seconds of each."""

    def seconds(calls: int) -> float:
        start = time.perf_counter()
        for _ in range(calls):
            last = call()
        wait(last)
        return (time.perf_counter() - start) / calls

    return seconds


def jaxdiff(batch_size: int, size: int) -> Side:
    """The work in jaxdiff, compiled as a run compiles it."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    from host import looped

    from jaxdiff import data
    from jaxdiff.app import build
    from jaxdiff.app import config as configs
    from jaxdiff.app.runs import train

    c = configs.load(RECIPE)
    sampling = replace(c.sampling, steps=STEPS, guidance=1.0, every=0)
    c = replace(
        c, data=replace(c.data, batch_size=batch_size), optimizer=replace(c.optimizer, clip_norm=0.0), ema={}, sampling=sampling
    )
    pixels = np.random.default_rng(0).integers(0, 256, (10_000, *c.data.image_shape), np.uint8)
    source = data.Images(lambda indices: (pixels[indices], (indices % 10).astype(np.int32)), len(pixels), 10)
    layout, key = build.layout(c), jax.random.key(0)
    batch = layout.shard(next(data.batches(source, batch_size)))
    state = layout.enter(jax.jit(partial(build.init, c), out_shardings=layout.sharding)(key))
    step = layout.compile(build.train_step(c, layout)).lower(state, batch, key).compile()
    generate = jax.jit(build.image_generator(c))
    given = {name: batch[name] for name in ("index", "label")}
    matrix = jnp.ones((size, size), jnp.bfloat16)
    train._source = lambda *_: source

    def advance() -> object:
        nonlocal state
        state, metrics = step(state, batch, key)
        return metrics

    def loop(calls: int) -> float:
        if calls < 10:
            return 0.0
        every = calls // 10 * 10
        return looped(replace(c, ema={"ema": 0.999}, log_every=every, checkpoint_every=1000 * every, steps=10**6 * every), 9)[0]

    product = jax.jit(jnp.matmul)
    works = [
        timed(advance, jax.block_until_ready),
        loop,
        timed(lambda: generate(state.params, key, given, {}), jax.block_until_ready),
        timed(lambda: product(matrix, matrix), jax.block_until_ready),
    ]
    return float(step.cost_analysis()["flops"]), tuple(works)


def diffusers(batch_size: int, size: int) -> Side:
    """The same work in diffusers, compiled."""
    import torch
    from diffusers import DDIMScheduler

    device = "cuda" if torch.cuda.is_available() else "cpu"
    network = peer_network().to(device, memory_format=torch.channels_last)
    scheduler = DDIMScheduler(num_train_timesteps=1000)
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-4, weight_decay=0.0, fused=True)
    image = (torch.rand(batch_size, 3, 32, 32, device=device) * 2 - 1).contiguous(memory_format=torch.channels_last)
    label = torch.arange(batch_size, device=device) % 10
    trained, sampled = torch.compile(network), torch.compile(network, mode="reduce-overhead")
    matrix = torch.ones(size, size, device=device, dtype=torch.bfloat16)

    def wait(result: object) -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    def train() -> object:
        network.train()
        noise, times = torch.randn_like(image), torch.randint(0, 1000, (batch_size,), device=device)
        with torch.autocast(device, torch.bfloat16):
            predicted = trained(scheduler.add_noise(image, noise, times), times, class_labels=label).sample
            loss = torch.nn.functional.mse_loss(predicted.float(), noise)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return loss

    @torch.inference_mode()
    def sample() -> object:
        network.eval()
        scheduler.set_timesteps(STEPS, device=device)
        x = torch.randn_like(image)
        for t in scheduler.timesteps:
            with torch.autocast(device, torch.bfloat16):
                predicted = sampled(x, t, class_labels=label).sample
            x = scheduler.step(predicted.float(), t, x).prev_sample
        return x

    return 0.0, (timed(train, wait), None, timed(sample, wait), timed(lambda: matrix @ matrix, wait))


SIDES = {"jaxdiff": jaxdiff, "diffusers": diffusers}
NEEDS = {
    "jaxdiff": "import jax; print(jax.default_backend())",
    "diffusers": "import diffusers, torch; print(torch.cuda.is_available())",
}


def serve(side: str, batch_size: int, size: int, calls: int) -> None:
    """Prints FLOP of a train step, then the seconds a call of each work whose index is read; 0 where the side has none."""
    flop, works = SIDES[side](batch_size, size)
    print(flop, flush=True)
    for line in sys.stdin:
        work = works[int(line)]
        print(work(calls) if work else 0.0, flush=True)


def sides(pythons: dict[str, str], cpu: bool) -> list[str]:
    """The sides that this machine can run, with a line about each that it cannot."""
    able = []
    for name, python in pythons.items():
        asked = subprocess.run([python, "-c", NEEDS[name]], capture_output=True, text=True)
        if asked.returncode:
            print(f"{name} is left out: {asked.stderr.strip().splitlines()[-1]}")
        elif asked.stdout.strip() in ("cpu", "False") and not cpu:
            print(f"{name} is left out: it finds no GPU")
        else:
            able.append(name)
    return able


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--calls", type=int, default=50, help="of each work in a round")
    parser.add_argument("--peer-python", default=sys.executable, help="the interpreter that has torch and diffusers")
    parser.add_argument("--cpu", action="store_true", help="on the CPU where there is no GPU")
    parser.add_argument("--matrix", type=int, default=8192, help=argparse.SUPPRESS)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        return serve(args.side, args.batch_size, args.matrix, args.calls)
    pythons = {"jaxdiff": sys.executable, "diffusers": args.peer_python}
    flags = [f"--{name}={getattr(args, name.replace('-', '_'))}" for name in ("batch-size", "calls", "matrix")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    children, flop = {}, 0.0
    for name in sides(pythons, args.cpu):  # on one GPU: neither takes all of its memory
        environment = {**os.environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
        children[name] = subprocess.Popen([pythons[name], __file__, "--side", name, *flags], env=environment, **pipes)
        flop = max(flop, ask(children[name]))
        for work in range(len(WORK)):
            ask(children[name], str(work))  # compiles
    seconds: dict[tuple[int, str], list[float]] = {}
    for work in [*range(len(WORK))] * args.rounds:
        for name, child in children.items():
            seconds.setdefault((work, name), []).append(ask(child, str(work)))
    medians = {key: statistics.median(values) for key, values in seconds.items()}
    peak = max((2 * args.matrix**3 / medians[3, name] for name in children), default=0.0)
    for work, title in enumerate(WORK if children else ()):
        ours, theirs = (1e3 * medians.get((work, name), 0.0) for name in SIDES)
        parts = [f"{name} {value:9.2f} ms" for name, value in zip(SIDES, (ours, theirs), strict=True) if value]
        parts += [f"ratio {theirs / ours:.2f}"] if ours and theirs else []
        parts += [f"{flop / (1e-3 * ours) / peak:.0%} of the peak, {peak / 1e12:.0f} TFLOP/s"] if ours and work < 2 else []
        print(f"{title:16} {'  '.join(parts) or 'not timed'}")
    for child in children.values():
        child.stdin.close()
        child.wait()


if __name__ == "__main__":
    main()
