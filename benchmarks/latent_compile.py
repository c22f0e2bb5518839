"""Prints what the TPU compiler says of Stable Diffusion 1.x on v5e chips: memory, FLOPs, HBM traffic, a roofline; no TPU is needed.

The UNet has the published 859,520,964 parameters, the autoencoder (KL-f8) 83,653,863; parameters are float32, computation
is bfloat16. Compiled to scheduled HLO in a child process, as `jaxdiff plan` does:

- call: one UNet call on 4 latents of 64x64x4 and 77 context vectors, one chip. It is held against maxdiffusion's UNet,
  compiled the same way: 51.7 ms, 27.3 GB of HBM traffic, since its attention over 4,096 tokens writes the whole score matrix.
- plain: the same with our own attention kept from working in parts; near maxdiffusion's figures where the roofline is right.
- images, latents: a training step (AdamW, EMA) on 8 chips, all that follows the parameters sharded over them; from 512x512
  images through the frozen encoder, or from moments that were kept.
- sample: 50 steps of DDIM with guidance, then decoding to 512x512, one chip.

The roofline (see jaxdiff/app/plan/cost.py) is a lower bound, never a measured time.

Exit status 1: the call's roofline exceeds 0.7 of maxdiffusion's, a program does not fit, or parameters are not as published.

Run: pip install -e ".[tpu]" && python benchmarks/latent_compile.py
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from jaxdiff.app.plan import collectives, compiling, cost, hlo
from jaxdiff.app.plan.chips import device_descriptions, topology

PEER_MS, PEER_GB, SHARE = 51.7, 27.3, 0.7  # maxdiffusion's UNet call, and how much of its time ours may take
PUBLISHED = {"UNet": 859_520_964, "autoencoder": 83_653_863}
SCALE = 0.18215  # of latents (Rombach et al. 2022, appendix G): their variance becomes 1


class Networks(NamedTuple):
    """Stable Diffusion's modules and the shapes of their parameters."""

    unet: Any
    encoder: Any
    decoder: Any
    params: Any
    autoencoder: Any


def networks() -> Networks:
    """The networks of Stable Diffusion 1.x."""
    import jax
    import jax.numpy as jnp

    from jaxdiff.models import autoencoder
    from jaxdiff.models.unet import UNet

    options = {"multipliers": (1, 2, 4, 4), "blocks": 2, "dtype": jnp.bfloat16}
    blocks = {"heads": 8, "transformer": 1, "context_channels": 768, "scale_shift": False}
    unet = UNet(320, attention=(64, 32, 16), **blocks, **options)
    halves = [half(128, head_channels=512, **options) for half in (autoencoder.Encoder, autoencoder.Decoder)]
    params = jax.eval_shape(
        lambda key, x, logsnr, context: unet.init(key, x, logsnr, context=context)["params"],
        jax.eval_shape(lambda: jax.random.key(0)),
        *(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((1, 64, 64, 4), (1,), (1, 77, 768))),
    )
    image = jax.ShapeDtypeStruct((1, 512, 512, 3), jnp.float32)
    code = jax.eval_shape(partial(autoencoder.init, *halves), jax.eval_shape(lambda: jax.random.key(0)), image)
    return Networks(unet, *halves, params, code)


def schedule() -> Any:
    """Stable Diffusion's chain of 1,000 states: betas whose roots are spaced linearly."""
    import numpy as np

    from jaxdiff.process import from_betas

    return from_betas(np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)


def parameter_counts() -> dict[str, int]:
    """The number of parameters of UNet and autoencoder."""
    import jax

    found = networks()
    sizes = {"UNet": found.params, "autoencoder": found.autoencoder}
    return {name: sum(leaf.size for leaf in jax.tree.leaves(tree)) for name, tree in sizes.items()}


def compile_call(batch: int, parts: bool = True) -> None:
    """Compiles one call of the UNet on one chip."""
    from jaxdiff.models import attention
    from jaxdiff.models.unet import network

    if not parts:
        attention.SCORES = attention.ALL_SCORES = 2**62
    found = networks()

    def step(params, x, logsnr, context):
        return network(found.unet)(params, x, logsnr, {"context": context})

    _compile_for_one(step, found.params, *(_float32(shape) for shape in ((batch, 64, 64, 4), (batch,), (batch, 77, 768))))


def compile_sample(batch: int) -> None:
    """Compiles guided sampling and decoding on one chip."""
    import jax

    import jaxdiff as jd
    from jaxdiff import objectives
    from jaxdiff.models import autoencoder
    from jaxdiff.models.unet import network

    found = networks()

    def step(params, decoder, x, context, null, key):
        given = ({"context": vectors} for vectors in (context, jax.numpy.broadcast_to(null, context.shape)))
        with_context, without = (objectives.conditional(network(found.unet), jd.predict_noise, params, each) for each in given)
        levels = jd.grid(schedule(), 50)
        z = jd.sample(jd.ddim(), jd.guide(with_context, without, 7.5), x * levels.sigma[0], levels, key)
        return autoencoder.decode(found.decoder)({"decoder": decoder}, z / SCALE)

    shapes = (batch, 64, 64, 4), (batch, 77, 768), (1, 77, 768)
    key = jax.eval_shape(lambda: jax.random.key(0))
    _compile_for_one(step, found.params, found.autoencoder["decoder"], *map(_float32, shapes), key)


def compile_training(batch: int, from_images: bool) -> None:
    """Compiles a training step on eight chips, `batch` examples on each."""
    import jax
    import optax

    from jaxdiff.training import initial_state, train_step
    from jaxdiff.training.mesh import batch_sharding, jit_layout, make_mesh

    found, mesh = networks(), make_mesh(1, 8, devices=device_descriptions(topology("v5e:2x4")))
    optimizer, ema = optax.adamw(1e-4), {"ema": 0.9999}
    frozen = {"encoder": found.autoencoder["encoder"]} if from_images else {}
    shapes = jax.eval_shape(lambda params, frozen: initial_state(params, optimizer, ema, frozen), found.params, frozen)
    layout = jit_layout(mesh, shapes)
    state = jax.tree.map(_placed, shapes, layout.sharding)
    examples = {"image": (512, 512, 3)} if from_images else {"mean": (64, 64, 4), "std": (64, 64, 4)}
    rows = {name: _float32((8 * batch, *shape)) for name, shape in ({**examples, "context": (77, 768)}).items()}
    rows["index"] = jax.ShapeDtypeStruct((8 * batch,), jax.numpy.int32)
    rows = {name: _placed(row, batch_sharding(mesh)) for name, row in rows.items()}
    step = layout.compile(train_step(objective(found, from_images), optimizer, ema, reduce_gradients=layout.reduce_gradients))
    step.trace(state, rows, jax.eval_shape(lambda: jax.random.key(0))).lower(lowering_platforms=("tpu",)).compile()


def objective(found: Networks, from_images: bool) -> Any:
    """Noise prediction on scaled latents, with a tenth of the contexts dropped."""
    import jax.numpy as jnp

    from jaxdiff import losses, objectives, predict_noise
    from jaxdiff.likelihood import Posterior
    from jaxdiff.models import autoencoder
    from jaxdiff.models.unet import network

    condition = objectives.joint(context=objectives.contexts(jnp.zeros((77, 768)), 0.1))
    weight = losses.noise_weight
    denoising = objectives.diffusion(network(found.unet), schedule(), predict_noise, weight, condition=condition)

    def posterior(frozen, batch):
        mean, std = autoencoder.encode(found.encoder)(frozen, batch["image"]) if from_images else (batch["mean"], batch["std"])
        return Posterior(SCALE * mean, SCALE * std)

    return objectives.latent(denoising, posterior)


def _compile_for_one(step: Callable, *arguments: Any) -> None:
    import jax

    chip = jax.sharding.SingleDeviceSharding(device_descriptions(topology("v5e:1x1"))[0])
    placed = jax.tree.map(partial(_placed, sharding=chip), arguments)
    jax.jit(step).trace(*placed).lower(lowering_platforms=("tpu",)).compile()


def _placed(leaf: Any, sharding: Any) -> Any:
    import jax

    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _float32(shape: tuple[int, ...]) -> Any:
    import jax

    return jax.ShapeDtypeStruct(shape, jax.numpy.float32)


CASES = {
    "call": ("v5e:1x1", 4, compile_call),
    "plain": ("v5e:1x1", 4, partial(compile_call, parts=False)),
    "images": ("v5e:2x4", 4, partial(compile_training, from_images=True)),
    "latents": ("v5e:2x4", 4, partial(compile_training, from_images=False)),
    "sample": ("v5e:1x1", 4, compile_sample),
}


def report(case: str, batch: int, limit_s: float) -> list[str]:
    """What is wrong with a case, after printing its figures."""
    found, where = compiling.compiled([__file__, case, "--batch", str(batch), "--child"], limit_s), topology(CASES[case][0])
    if found is None or found.too_big:
        return [f"{case}: {found.too_big if found else 'compiled nothing'}"]
    module = hlo.parsed(found.hlo)
    runs, notes = hlo.executed(module)
    spent, more = cost.cost(module, runs, where.chip)
    grid = collectives.Grid({"fsdp": where.devices}, [0] * where.devices)
    sent = collectives.traffic(module, runs, grid, where)
    kinds = ", ".join(f"{each.kind} {each.times} ({each.bytes / 2**20:.0f})" for each in sent) or "none"
    gib = cost.peak_bytes(found.report) / 2**30
    figures = f"{gib:6.2f} {spent.flops / 1e12:8.3f} {spent.hbm_bytes / 1e9:8.2f} {1e3 * spent.seconds:11.2f}"
    print(f"{case:8} {where.name:9} {batch:5} {figures}  {kinds}", flush=True)
    faults = [f"{case}: {note}" for note in notes + more]
    faults += [f"{case}: more than {where.chip.hbm_gib} GiB"] if gib > where.chip.hbm_gib else []
    ratio = 1e3 * spent.seconds / PEER_MS
    if case == "call" and batch == CASES[case][1]:
        print(f"maxdiffusion's call: {PEER_GB} GB, {PEER_MS} ms; ours takes {ratio:.2f} of its time, {SHARE} allowed")
        faults += [f"call: {ratio:.2f} of maxdiffusion's time"] if ratio > SHARE else []
    return faults


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("cases", nargs="*", default=list(CASES), help=f"of {', '.join(CASES)}; all")
    parser.add_argument("--batch", type=int, help="examples on a chip")
    parser.add_argument("--limit", type=float, default=900, help="seconds a compile may take")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        CASES[args.cases[0]][2](args.batch)
        return 0
    os.environ.update(compiling.ENVIRONMENT)
    counts = parameter_counts()
    print(", ".join(f"{name}: {count:,} parameters" for name, count in counts.items()))
    faults = [f"{name}: not the published {number:,}" for name, number in PUBLISHED.items() if counts[name] != number]
    print(
        f"{'case':8} {'topology':9} batch {'GiB':>6} {'TFLOP':>8} {'HBM GB':>8} roofline ms  collectives: count (MiB)", flush=True
    )
    for case in args.cases:
        faults += report(case, args.batch or CASES[case][1], args.limit)
    print("\n".join(faults) or "all as promised")
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
