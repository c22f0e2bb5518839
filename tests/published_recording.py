"""Records what a PyTorch module computes with the weights of `published_weights`, for `make_published.py`."""

import contextlib
import json
import pathlib
import tempfile
import zlib
from unittest import mock

import numpy as np
import torch
from published_weights import RECORDED, write


def record(name, documents, tensors, config, inputs, load, run, metadata=None, moving=""):
    """Writes the family's files, opens them with `load(folder)`, and keeps what `run(module, **inputs)` returns by name."""
    RECORDED.mkdir(parents=True, exist_ok=True)
    recorded = {"config": config, "documents": documents, "tensors": tensors, "metadata": metadata or {}, "notes": {}}
    save(name, recorded, inputs, {})
    with tempfile.TemporaryDirectory() as folder:
        module = load(write(pathlib.Path(folder), name)).eval().requires_grad_(False)
    outputs = evaluate(module, run, inputs)
    with doubled(module):
        exact = evaluate(module, run, inputs, torch.float64)
        moves = moved(module, run, inputs, exact, moving)
    still = [key for key, move in moves.items() if move < 1e-6]
    recorded["notes"] = {"unmoved": still, "rounding": float(f"{difference(exact, outputs):.1e}")}
    save(name, recorded, inputs, outputs)
    scales = {key: f"{value.mean():.2f} +- {value.std():.2f}" for key, value in outputs.items()}
    least = min((move, key) for key, move in moves.items() if key not in still)
    print(f"{name}: {sum(map(len, tensors.values()))} tensors, {scales}, {recorded['notes']}, least moved {least}", flush=True)


def save(name, recorded, inputs, outputs):
    text = json.dumps(recorded, indent=1)
    (RECORDED / f"{name}.json").write_text(compact(text) + "\n")
    arrays = {f"input {k}": v for k, v in inputs.items()} | {f"output {k}": v for k, v in outputs.items()}
    np.savez_compressed(RECORDED / f"{name}.npz", **arrays)


def compact(text):
    """JSON with lists of numbers and strings on one line."""
    lines, inside = [], None
    for line in text.split("\n"):
        stripped = line.strip()
        if inside is not None:
            inside.append(stripped)
            if stripped in ("]", "],"):
                lines.append(inside[0] + " ".join(inside[1:-1]) + inside[-1])
                inside = None
        elif line.endswith("["):
            inside = [line]
        else:
            lines.append(line)
    return "\n".join(lines)


def drawn(name, **shapes):
    """Inputs of a family: standard normal."""
    return {
        key: np.random.RandomState(zlib.crc32(f"{name} {key}".encode())).standard_normal(shape).astype(np.float32)
        for key, shape in shapes.items()
    }


def evaluate(module, run, inputs, dtype=torch.float32):
    tensors = {k: torch.from_numpy(v) for k, v in inputs.items()}
    with torch.no_grad():
        outputs = run(module, **{k: v.to(dtype) if v.is_floating_point() else v for k, v in tensors.items()})
    return {k: v.numpy() if v.dtype == torch.int64 else v.to(torch.float64).numpy().astype(np.float32) for k, v in outputs.items()}


def difference(outputs, others):
    floats = [k for k, v in outputs.items() if v.dtype == np.float32]
    return max(float(np.abs(outputs[k] - others[k]).max() / np.abs(outputs[k]).max()) for k in floats)


def moved(module, run, inputs, outputs, within):
    """Parameter with `within` in its name -> the largest change of an output where the parameter is 1% larger."""
    moves = {}
    for name, parameter in module.named_parameters():
        if within not in name:
            continue
        kept = parameter.clone()
        parameter.mul_(1.01)
        moves[name] = difference(outputs, evaluate(module, run, inputs, torch.float64))
        parameter.copy_(kept)
    return moves


@contextlib.contextmanager
def doubled(module):
    """Computes in float64 also where the published code asks for float32."""
    for part in module.double().modules():
        if isinstance(getattr(part, "__dict__", {}).get("dtype"), torch.dtype):
            part.dtype = torch.float64
    with mock.patch.object(torch.Tensor, "float", torch.Tensor.double):
        yield


def shapes_of(module):
    return {name: list(value.shape) for name, value in module.state_dict().items()}
