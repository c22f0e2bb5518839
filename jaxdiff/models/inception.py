"""InceptionV3 as the Frechet distance (FID) uses it: the TensorFlow graph of 2015-12-05, with its resize and its poolings.

Szegedy et al. (2016); Heusel et al. (2017). Layers and names are those of torch-fidelity and pytorch-fid. Their file of
weights becomes one that `load` reads, where PyTorch is installed, by

    np.savez("inception.npz", **{k: v.numpy() for k, v in torch.load("weights-inception-2015-12-05-6726825d.pth").items()})
"""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from jaxdiff.io import weights

SIZE = 299  # pixels along each side
STATE = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}  # in the state dict
THEIRS, OURS = {1: (0,), 2: (1, 0), 4: (3, 2, 0, 1)}, {1: (0,), 2: (1, 0), 4: (2, 3, 1, 0)}  # orders of a kernel's axes, by rank


class Convolution(nn.Module):
    """A convolution without bias, batch normalisation by the stored statistics, ReLU."""

    features: int
    kernel: tuple[int, int]
    stride: int = 1
    padding: str = "SAME"
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        layer = nn.Conv(
            self.features,
            self.kernel,
            self.stride,
            self.padding,
            use_bias=False,
            dtype=self.dtype,
            precision="highest",  # else float32 is rounded to bfloat16 on a TPU, to TF32 on a GPU, and scores with it
            name="conv",
        )
        x = nn.BatchNorm(use_running_average=True, epsilon=0.001, name="bn")(layer(x).astype(jnp.float32))
        return nn.relu(x).astype(self.dtype)


def average(x: Array) -> Array:
    """The mean of 3x3 pixels, without those outside the image: TensorFlow counts no padding."""
    return nn.avg_pool(x.astype(jnp.float32), (3, 3), padding="SAME", count_include_pad=False).astype(x.dtype)


def largest(x: Array) -> Array:
    """The largest of 3x3 pixels."""
    return nn.max_pool(x, (3, 3), padding="SAME")


def halved(x: Array) -> Array:
    """The largest of 3x3 pixels, at every other pixel."""
    return nn.max_pool(x, (3, 3), (2, 2))


class Mixed(nn.Module):
    """Branches of convolutions beside one that is pooled, joined by channel.

    Attributes:
        branches: by name, convolutions one after another, each its features, height and width; two in brackets both see
            what comes before them and are joined.
        pool: the pooling.
        pooled: the features of the 1x1 convolution after it; 0 if there is none.
        stride: of the last convolution of each branch; 2 takes no padding.
        dtype: of the computation.
    """

    branches: Mapping[str, Sequence[Any]]
    pool: Callable[[Array], Array]
    pooled: int = 0
    stride: int = 1
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        branches = [self.branch(x, name, layers) for name, layers in self.branches.items()]
        x = self.pool(x)
        if self.pooled:
            x = Convolution(self.pooled, (1, 1), dtype=self.dtype, name="branch_pool")(x)
        return jnp.concatenate([*branches, x], axis=-1)

    def branch(self, x: Array, branch: str, layers: Sequence[Any]) -> Array:
        for number, layer in enumerate(layers, 1):
            name = branch if len(layers) == 1 else f"{branch}_{number}"
            if isinstance(layer[0], int):
                x = self.convolution(x, name, layer, self.stride if number == len(layers) else 1)
            else:
                x = jnp.concatenate([self.convolution(x, name + end, each) for end, each in zip("ab", layer, strict=True)], axis=-1)
        return x

    def convolution(self, x: Array, name: str, layer: tuple[int, int, int], stride: int = 1) -> Array:
        features, height, width = layer
        padding = "SAME" if stride == 1 else "VALID"
        return Convolution(features, (height, width), stride, padding, self.dtype, name=name)(x)


def seven(c: int) -> dict[str, Any]:
    """The branches of a block whose 7x7 convolutions are pairs of 1x7 and 7x1, with `c` features inside."""
    double = [(c, 1, 1), (c, 7, 1), (c, 1, 7), (c, 7, 1), (192, 1, 7)]
    return {"branch1x1": [(192, 1, 1)], "branch7x7": [(c, 1, 1), (c, 1, 7), (192, 7, 1)], "branch7x7dbl": double}


DOUBLE = [(64, 1, 1), (96, 3, 3), (96, 3, 3)]
FIVE = {"branch1x1": [(64, 1, 1)], "branch5x5": [(48, 1, 1), (64, 5, 5)], "branch3x3dbl": DOUBLE}
TO_17 = {"branch3x3": [(384, 3, 3)], "branch3x3dbl": DOUBLE}
TO_8 = {"branch3x3": [(192, 1, 1), (320, 3, 3)], "branch7x7x3": [(192, 1, 1), (192, 1, 7), (192, 7, 1), (192, 3, 3)]}
FORK = [(384, 1, 3), (384, 3, 1)]
FORKED = {"branch1x1": [(320, 1, 1)], "branch3x3": [(384, 1, 1), FORK], "branch3x3dbl": [(448, 1, 1), (384, 3, 3), FORK]}
STEM = (  # name, features, kernel, stride, padding, and what follows
    ("Conv2d_1a_3x3", 32, 3, 2, "VALID", None),
    ("Conv2d_2a_3x3", 32, 3, 1, "VALID", None),
    ("Conv2d_2b_3x3", 64, 3, 1, "SAME", halved),
    ("Conv2d_3b_1x1", 80, 1, 1, "VALID", None),
    ("Conv2d_4a_3x3", 192, 3, 1, "VALID", halved),
)
BLOCKS = (  # name, branches, pooling, features after it, stride
    ("Mixed_5b", FIVE, average, 32, 1),
    ("Mixed_5c", FIVE, average, 64, 1),
    ("Mixed_5d", FIVE, average, 64, 1),
    ("Mixed_6a", TO_17, halved, 0, 2),
    ("Mixed_6b", seven(128), average, 192, 1),
    ("Mixed_6c", seven(160), average, 192, 1),
    ("Mixed_6d", seven(160), average, 192, 1),
    ("Mixed_6e", seven(192), average, 192, 1),
    ("Mixed_7a", TO_8, halved, 0, 2),
    ("Mixed_7b", FORKED, average, 192, 1),
    ("Mixed_7c", FORKED, largest, 192, 1),  # probably a mistake of 2015, but published scores depend on it
)


class InceptionV3(nn.Module):
    """From images `[B, 299, 299, 3]`, as `resized` makes them, to features `[B, 2048]` and logits `[B, 1008]`, float32.

    The features are the means over the last activations (pool3). Inception scores of TensorFlow's and torch-fidelity's code
    leave the bias out of the logits: `logits - variables["params"]["fc"]["bias"][None]`.
    """

    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, images: Array) -> tuple[Array, Array]:
        x = images.astype(self.dtype)
        for name, features, kernel, stride, padding, pool in STEM:
            x = Convolution(features, (kernel, kernel), stride, padding, self.dtype, name=name)(x)
            x = x if pool is None else pool(x)
        for name, branches, pool, pooled, stride in BLOCKS:
            x = Mixed(branches, pool, pooled, stride, self.dtype, name=name)(x)
        features = jnp.mean(x.astype(jnp.float32), axis=(1, 2))
        return features, nn.Dense(1008, precision="highest", name="fc")(features)


def resized(images: Array) -> Array:
    """What the network takes, `[B, 299, 299, 3]` in [-1, 127/128], of images in [-1, 1] with 1 or 3 channels, float32.

    Pixels p of 0 to 255 become (p - 128) / 128, in between them linearly, as TensorFlow 1 does it: pixel i of n at i / n of
    the way, not at its middle, and without smoothing where the image shrinks. Values are not rounded to pixels of 8 bits.
    """
    x = jnp.broadcast_to(images.astype(jnp.float32), (*images.shape[:-1], 3))
    for axis in (2, 1):
        length = x.shape[axis]
        place = jnp.arange(SIZE, dtype=jnp.float32) * (length / SIZE)
        before = place.astype(jnp.int32)
        low, high = (jnp.take(x, each, axis=axis) for each in (before, jnp.minimum(before + 1, length - 1)))
        share = (place - before.astype(jnp.float32)).reshape([-1 if each == axis else 1 for each in range(4)])
        x = low + (high - low) * share
    return (127.5 * x - 0.5) / 128


def load(path: pathlib.Path | str) -> dict[str, Any]:
    """The variables of `InceptionV3` from a .npz file of the state dict of torch-fidelity's or pytorch-fid's network.

    Raises:
        ConfigError: no such file, or a name or shape that is not the network's.
    """
    like = _shapes()
    shapes = {_name(where): tuple(leaf.shape[n] for n in THEIRS[leaf.ndim]) for where, leaf in jax.tree.leaves_with_path(like)}
    arrays = weights.load_npz(path, "InceptionV3 for FID, as torch-fidelity names it", shapes)
    return jax.tree.map_with_path(lambda where, leaf: jnp.asarray(arrays[_name(where)].transpose(OURS[leaf.ndim])), like)


@functools.cache
def _shapes() -> Any:
    """The variables' shapes, for which the whole network is traced."""
    return jax.eval_shape(InceptionV3().init, jax.random.key(0), jax.ShapeDtypeStruct((1, SIZE, SIZE, 3), jnp.float32))


def _name(where: tuple[Any, ...]) -> str:
    """What the state dict calls a leaf of the variables."""
    _, *modules, leaf = (each.key for each in where)
    return ".".join([*modules, STATE[leaf]])
