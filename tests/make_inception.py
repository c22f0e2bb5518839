"""Writes data/inception.npz: what torch-fidelity's InceptionV3 makes of pictures, with weights that both sides can draw.

python -m venv peer && peer/bin/pip install torch-fidelity==0.4.0 && peer/bin/python tests/make_inception.py
"""

import pathlib
import tempfile
import zlib
from unittest import mock

import numpy as np

RECORDED = pathlib.Path(__file__).parent / "data" / "inception.npz"
PICTURES = {"small": (2, 32, 32, 3), "odd": (1, 40, 56, 3), "grey": (1, 28, 28, 1), "large": (1, 310, 421, 3)}
PIXELS = np.s_[:, ::7, ::11]  # of the resized pictures, those that are recorded


def drawn(name, shape):
    """float64 of mean 0 and standard deviation 1, the same in every version of NumPy: bits of its generator, which stay."""
    bits = np.random.PCG64(zlib.crc32(name.encode())).random_raw(int(np.prod(shape)))
    return ((bits / 2**64 - 0.5) * 12**0.5).reshape(shape)


def weight(name, shape):
    """A tensor of the state dict, such that activations keep their scale from layer to layer."""
    values = drawn(name, shape)
    if name.endswith(("bn.weight", "running_var")):
        return (1 + values / 4).astype(np.float32)
    if len(shape) == 1:
        return (values / 4).astype(np.float32)
    return (values * np.sqrt((2 if len(shape) == 4 else 1) / np.prod(shape[1:]))).astype(np.float32)


def picture(name):
    """uint8 `[B, H, W, C]`: a few patches of colour, and noise."""
    batch, height, width, channels = shape = PICTURES[name]
    patches = drawn(name + " patches", (batch, 4, 4, channels))
    patches = np.repeat(np.repeat(patches, -(-height // 4), axis=1), -(-width // 4), axis=2)[:, :height, :width]
    return np.clip(128 + 50 * patches + 15 * drawn(name, shape), 0, 255).astype(np.uint8)


def main():
    import torch
    from torch_fidelity import feature_extractor_inceptionv3 as peer

    names = ["2048", "logits_unbiased", "logits"]
    with tempfile.NamedTemporaryFile(suffix=".pth") as file:
        with mock.patch.object(torch.nn.Module, "load_state_dict"):  # to see the names
            torch.save({}, file.name)
            empty = peer.FeatureExtractorInceptionV3("random", names, feature_extractor_weights_path=file.name).state_dict()
        state = {k: torch.tensor(0) if v.ndim == 0 else torch.from_numpy(weight(k, tuple(v.shape))) for k, v in empty.items()}
        torch.save(state, file.name)
        network = peer.FeatureExtractorInceptionV3("random", names, feature_extractor_weights_path=file.name)
    seen = []
    network.Conv2d_1a_3x3.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    record = {"names": np.array(sorted(state)), "sizes": np.array([str(list(state[name].shape)) for name in sorted(state)])}
    for name in PICTURES:
        pixels = torch.from_numpy(picture(name)).permute(0, 3, 1, 2)
        with torch.no_grad():
            features, unbiased, logits = network(pixels.expand(-1, 3, -1, -1))
        record[f"{name} resized"] = seen.pop().permute(0, 2, 3, 1).numpy()[PIXELS]
        record |= {f"{name} features": features, f"{name} unbiased": unbiased, f"{name} logits": logits}
        print(f"{name}: features {features.mean():.2f} +- {features.std():.2f}, logits {logits.mean():.2f} +- {logits.std():.2f}")
    np.savez_compressed(RECORDED, **{name: np.asarray(value) for name, value in record.items()})
    print(RECORDED.stat().st_size, "bytes, torch", torch.__version__)


if __name__ == "__main__":
    main()
