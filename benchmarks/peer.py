"""Prints how long jaxdiff and diffusers (PyTorch) take on the CPU for the same network, and the ratio of the two.

The network is that of configs/cifar10.py in float32: 128 channels, multipliers 1, 2, 2, 2, two blocks a level, attention
at 16x16, a scale and shift from time and label, dropout 0.1. Two pieces of work are timed:

- a train step: draw noise, forward, mean squared error, backward, AdamW update (no EMA and no clipping on either side);
- DDIM: 10 steps from noise to images, without guidance or dropout.

Each side lives in a process of its own, which may be another virtual environment, and waits while the other one works;
the sides take turns for some rounds, so that a noisy machine hits both. The figures are the median and the shortest
time of the rounds; ratio = diffusers' time / jaxdiff's time, above 1 where jaxdiff is the faster one. Where the two
ratios differ much the machine was busy. Compilation is not timed.

Run: pip install -r benchmarks/requirements.txt && python benchmarks/peer.py
 or: python benchmarks/peer.py --peer-python PATH_OF_A_PYTHON_WITH_TORCH
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
from typing import Any

CIFAR10 = pathlib.Path(__file__).parent.parent / "configs" / "cifar10.py"
TASKS = ("train step", "DDIM, 10 steps")
STEPS = 10

Side = tuple[int, Callable[[], None], Callable[[], None]]  # number of parameters, one train step, one DDIM


def jaxdiff(batch_size: int) -> Side:
    """The work in jaxdiff, compiled as a run compiles it."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from jaxdiff.app import build
    from jaxdiff.app import config as configs

    c = configs.load(CIFAR10)
    c = replace(
        c,
        data=replace(c.data, batch_size=batch_size),
        model=replace(c.model, dtype="float32"),
        optimizer=replace(c.optimizer, clip_norm=0.0),
        ema={},
        sampling=replace(c.sampling, steps=STEPS, guidance=1.0),
    )
    layout = build.layout(c)
    step = layout.compile(build.train_step(c, layout))
    generate = jax.jit(build.image_generator(c))
    key = jax.random.key(0)
    state = layout.enter(jax.jit(partial(build.init, c), out_shardings=layout.sharding)(key))
    image = np.random.default_rng(0).uniform(-1, 1, (batch_size, *c.data.image_shape)).astype(np.float32)
    index = np.arange(batch_size, dtype=np.int32)
    batch = layout.shard({"image": image, "label": index % 10, "index": index})
    given = {"index": jnp.asarray(index), "label": jnp.asarray(index % 10)}

    def train() -> None:
        nonlocal state
        state, metrics = step(state, batch, key)
        float(metrics["loss"])

    return (
        sum(leaf.size for leaf in jax.tree.leaves(state.params)),
        train,
        lambda: generate(state.params, key, given, {}).block_until_ready(),
    )


def peer_network() -> Any:
    """The same network as diffusers' `UNet2DModel`."""
    from diffusers import UNet2DModel

    return UNet2DModel(
        sample_size=32,
        block_out_channels=(128, 256, 256, 256),
        layers_per_block=2,
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=64,
        norm_num_groups=32,
        attn_norm_num_groups=32,
        dropout=0.1,
        resnet_time_scale_shift="scale_shift",
        num_class_embeds=11,
    )


def diffusers(batch_size: int) -> Side:
    """The same work in diffusers, eagerly, as its training examples and pipelines do it."""
    import torch
    from diffusers import DDIMScheduler

    network = peer_network()
    scheduler = DDIMScheduler(num_train_timesteps=1000)
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-4, weight_decay=0.0)
    image = torch.rand(batch_size, 3, 32, 32) * 2 - 1
    label = torch.arange(batch_size) % 10

    def train() -> None:
        network.train()
        noise, times = torch.randn_like(image), torch.randint(0, 1000, (batch_size,))
        predicted = network(scheduler.add_noise(image, noise, times), times, class_labels=label).sample
        loss = torch.nn.functional.mse_loss(predicted, noise)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()

    @torch.inference_mode()
    def sample() -> None:
        network.eval()
        scheduler.set_timesteps(STEPS)
        x = torch.randn_like(image)
        for t in scheduler.timesteps:
            x = scheduler.step(network(x, t, class_labels=label).sample, t, x).prev_sample

    return sum(p.numel() for p in network.parameters()), train, sample


SIDES = {"jaxdiff": jaxdiff, "diffusers": diffusers}


def serve(name: str, batch_size: int) -> None:
    """Prints the number of parameters, then the seconds of each task whose index is read."""
    parameters, *tasks = SIDES[name](batch_size)
    print(parameters, flush=True)
    for line in sys.stdin:
        start = time.perf_counter()
        tasks[int(line)]()
        print(time.perf_counter() - start, flush=True)


def ask(child: subprocess.Popen, question: str = "") -> float:
    """The next number that a child prints, after the question if there is one."""
    if question:
        child.stdin.write(question + "\n")
        child.stdin.flush()
    answer = child.stdout.readline()
    if not answer:
        raise SystemExit("a side has stopped; its message is above")
    return float(answer)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peer-python", default=sys.executable, help="the interpreter that has torch and diffusers")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        return serve(args.side, args.batch_size)
    pythons = {"jaxdiff": sys.executable, "diffusers": args.peer_python}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "env": {**os.environ, "JAX_PLATFORMS": "cpu"}}
    children, seconds = {}, {}
    for name, python in pythons.items():
        children[name] = subprocess.Popen([python, __file__, "--side", name, "--batch-size", str(args.batch_size)], **pipes)
        print(f"{name}: {ask(children[name]):,.0f} parameters", flush=True)
        for task in range(len(TASKS)):
            ask(children[name], str(task))
    for _ in range(args.rounds):
        for task in range(len(TASKS)):
            for name, child in children.items():
                seconds.setdefault((task, name), []).append(ask(child, str(task)))
    print(f"seconds over {args.rounds} rounds, batch {args.batch_size}:")
    for task, title in enumerate(TASKS):
        for word, of in (("median", statistics.median), ("shortest", min)):
            ours, theirs = (of(seconds[task, name]) for name in SIDES)
            print(f"{title:15} {word:8} jaxdiff {ours:7.3f}  diffusers {theirs:7.3f}  ratio {theirs / ours:.2f}")
    for child in children.values():
        child.stdin.close()
        child.wait()


if __name__ == "__main__":
    main()
