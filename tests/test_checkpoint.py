import asyncio
import dataclasses
import functools
import gc
import pathlib
import sys
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdiff import training
from jaxdiff.io.errors import CheckpointError
from jaxdiff.io.lazy import Lazy
from jaxdiff.training import checkpoint, mesh, sharding

OPTIMIZER = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))


def make(key):
    kernel, bias = jax.random.normal(key, (64, 128)), jnp.arange(3.0)
    params = {"dense": {"kernel": kernel, "bias": bias}, "half": kernel.astype(jnp.bfloat16)}
    return training.initial_state(params, OPTIMIZER, {"ema": 0.9})


def shapes(sharding):
    return jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
        jax.eval_shape(make, jax.random.key(0)),
        sharding,
    )


def layout(devices, fsdp):
    return sharding.shardings(mesh.make_mesh(-1, fsdp, jax.devices()[:devices]), jax.eval_shape(make, jax.random.key(0)))


def saved(workdir, *steps, sharding=None):
    state = jax.jit(make, out_shardings=sharding)(jax.random.key(5))
    with checkpoint.manager(workdir) as to:
        for step in steps:
            state = dataclasses.replace(state, step=jnp.int32(step))
            checkpoint.save(to, state, {"name": "test"})
    return state


def assert_equal(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(np.asarray(x), np.asarray(y)), a, b)


@pytest.mark.parametrize(("devices", "fsdp"), [(1, 1), (2, 2), (4, 2)])
def test_saved_on_eight_devices_restored_on_fewer(tmp_path, devices, fsdp):
    state = saved(tmp_path, 3, sharding=layout(8, 8))
    restored = checkpoint.restore(tmp_path, shapes(layout(devices, fsdp)))
    assert_equal(restored, state)
    assert len(restored.params["dense"]["kernel"].sharding.device_set) == devices
    assert type(restored.opt_state) is type(state.opt_state)


@pytest.mark.parametrize("small", [-1, checkpoint.SMALL], ids=["by XLA", "by NumPy"])
def test_checksum_does_not_depend_on_the_sharding_and_sees_one_bit(small, monkeypatch):
    monkeypatch.setattr(checkpoint, "SMALL", small)
    tree = make(jax.random.key(0)).params
    plain = checkpoint.checksums(tree)
    over = jax.jit(lambda tree: tree, out_shardings=layout(8, 4).params)(tree)
    assert checkpoint.checksums(over) == plain
    assert set(plain) == {"['dense']['bias']", "['dense']['kernel']", "['half']"}
    swapped = {**tree, "dense": {**tree["dense"], "bias": tree["dense"]["bias"][::-1]}}
    assert checkpoint.checksums(swapped) != plain
    negated = {**tree, "dense": {**tree["dense"], "kernel": -tree["dense"]["kernel"]}}
    assert checkpoint.checksums(negated) != plain
    bit = np.asarray(tree["dense"]["kernel"]).copy()
    bit.view(np.uint32)[3, 5] ^= 1
    assert checkpoint.checksums({**tree, "dense": {**tree["dense"], "kernel": bit}}) != plain


@pytest.mark.parametrize("dtype", ["bool", "int8", "bfloat16", "float32", "int32", "float64"])
@pytest.mark.parametrize("shape", [(), (3, 4, 2)])
def test_checksums_of_small_and_of_large_arrays_are_the_same_function(dtype, shape, monkeypatch, float64):
    tree = {"array": (100 * jax.random.normal(jax.random.key(0), shape)).astype(dtype)}
    small = checkpoint.checksums(tree)
    monkeypatch.setattr(checkpoint, "SMALL", -1)
    assert checkpoint.checksums(tree) == small


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_checksum_of_a_numpy_array_in_parts(dtype, monkeypatch):
    array = jax.random.normal(jax.random.key(0), (70, 3)).astype(dtype)
    monkeypatch.setattr(checkpoint, "SMALL", -1)
    monkeypatch.setattr(checkpoint, "PART", 64)
    assert checkpoint.checksums({"array": np.asarray(array)}) == checkpoint.checksums({"array": array})


def test_lazy_arrays_are_written_some_at_a_time(tmp_path, monkeypatch):
    size = 2**20

    def value(seed):
        return np.random.default_rng(seed).standard_normal(size // 4, np.float32)

    lazy = {str(seed): Lazy((size // 4,), np.dtype(np.float32), functools.partial(value, seed)) for seed in range(8)}
    monkeypatch.setattr(checkpoint, "TOGETHER", 2 * size)
    tracemalloc.start()
    with checkpoint.manager(tmp_path) as to:
        checkpoint.save(to, training.TrainState(jnp.int32(1), {}, {"ema": lazy}, ()), {})
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert 2 * size < peak < 5 * size
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    like = {name: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=place) for name, array in lazy.items()}
    _, read = checkpoint.restore_ema(tmp_path, "ema", like)
    assert_equal(read, {str(seed): value(seed) for seed in range(8)})


def test_an_ema_is_read_alone(tmp_path):
    state = saved(tmp_path, 3)
    for item in ("params", "opt_state"):
        for file in sorted((tmp_path / "checkpoints" / "3" / item).rglob("*"), reverse=True):
            file.unlink() if file.is_file() else file.rmdir()
    step, ema = checkpoint.restore_ema(tmp_path, "ema", shapes(layout(1, 1)).params)
    assert step == 3
    assert_equal(ema, state.ema["ema"])


def cut_short(folder: pathlib.Path):
    largest = max((file for file in folder.rglob("*") if file.is_file()), key=lambda file: file.stat().st_size)
    largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])


def flip_bytes(folder: pathlib.Path):
    """In the middle of the largest file: numbers that are wrong and, if the format does not see it, silent."""
    largest = max((file for file in folder.rglob("*") if file.is_file()), key=lambda file: file.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 0x40
    largest.write_bytes(content)


def empty(folder: pathlib.Path):
    for file in sorted(folder.rglob("*"), reverse=True):
        file.unlink() if file.is_file() else file.rmdir()


def wrong_meta(folder: pathlib.Path):
    (file,) = (file for file in (folder / "meta").rglob("*") if file.is_file() and "step" in file.read_text())
    file.write_text(file.read_text()[:20])


@pytest.mark.parametrize("damage", [cut_short, flip_bytes, empty, wrong_meta])
def test_a_damaged_checkpoint_is_said_kept_and_passed_over(tmp_path, damage, caplog):
    saved(tmp_path, 1, 2)
    damage(tmp_path / "checkpoints" / "2")
    step, _ = checkpoint.restore_ema(tmp_path, "ema", shapes(layout(1, 1)).params)
    assert step == 1 or damage in (cut_short, flip_bytes)  # the largest file may be of another item than the EMA
    assert checkpoint.steps(tmp_path) == [1, 2]  # sampling changes nothing
    caplog.clear()
    restored = checkpoint.restore(tmp_path, shapes(layout(1, 1)))
    assert int(restored.step) == 1
    (line,) = [record.getMessage() for record in caplog.records if record.name == "jaxdiff.training.checkpoint"]
    assert "checkpoints/2" in line
    assert line.endswith("going back to the checkpoint before it")
    assert "\n" not in line
    assert (tmp_path / "damaged" / "2-0").is_dir()
    again = saved(tmp_path, 2)
    assert_equal(checkpoint.restore(tmp_path, shapes(layout(1, 1))), again)


def test_reads_that_a_failed_one_abandons_are_not_printed_but_others_are(monkeypatch):
    """Each raises when it is freed, in orbax's code: here in code that says it is of such a file."""
    printed = []
    monkeypatch.setattr(sys, "unraisablehook", lambda raised: printed.append(str(raised.exc_value)))
    checkpoint._silence_abandoned_requests.__wrapped__()
    source = "async def read(wait):\n    try:\n        await wait\n    except BaseException:\n        raise Exception(wait.name)"
    for file in ("orbax/checkpoint/serialization.py", "mine.py"):
        scope = {}
        exec(compile(source, file, "exec"), scope)
        waiting = asyncio.Future(loop=(loop := asyncio.new_event_loop()))
        waiting.name = file
        read = scope["read"](waiting)
        read.send(None)
        del read
        gc.collect()
        loop.close()
    assert printed == ["mine.py"]


def test_where_none_can_be_read_nothing_is_changed(tmp_path):
    """Least of all is the run started anew: after an upgrade, say, the state may have another structure."""
    saved(tmp_path, 1, 2)
    other = dataclasses.replace(
        shapes(layout(1, 1)), opt_state=jax.eval_shape(optax.sgd(0.1, momentum=0.9).init, shapes(layout(1, 1)).params)
    )
    with pytest.raises(
        CheckpointError, match=r"checkpoints/2 cannot be read .*; no other checkpoint can be read either, nothing was changed"
    ):
        checkpoint.restore(tmp_path, other)
    cut_short(tmp_path / "checkpoints" / "1")
    cut_short(tmp_path / "checkpoints" / "2")
    with pytest.raises(CheckpointError, match="nothing was changed"):
        checkpoint.restore(tmp_path, shapes(layout(1, 1)))
    assert checkpoint.steps(tmp_path) == [1, 2]


def test_wrong_values_that_the_format_does_not_see_are_seen(tmp_path):
    """Another state's whole, valid files in the place of this one's: every byte is sound, the numbers are not."""
    saved(tmp_path / "a", 1)
    other = jax.jit(make)(jax.random.key(6))
    with checkpoint.manager(tmp_path / "b") as to:
        checkpoint.save(to, dataclasses.replace(other, step=jnp.int32(1)), {})
    target = tmp_path / "a" / "checkpoints" / "1" / "params"
    empty(target)
    target.rmdir()
    (tmp_path / "b" / "checkpoints" / "1" / "params").rename(target)
    with pytest.raises(CheckpointError, match="values of params are not those that were saved"):
        checkpoint._read(tmp_path / "a", 1, {"params": shapes(layout(1, 1)).params})


def test_nothing_saved_is_none_and_no_ema(tmp_path):
    assert checkpoint.restore(tmp_path, shapes(layout(1, 1))) is None
    with pytest.raises(CheckpointError, match="has no checkpoint; train it first"):
        checkpoint.restore_ema(tmp_path, "ema", {})


def test_the_last_ones_are_kept(tmp_path):
    saved(tmp_path, 1, 2, 3, 4, 5)
    assert checkpoint.steps(tmp_path) == [3, 4, 5]


def test_saving_a_step_again_changes_nothing(tmp_path):
    first = saved(tmp_path, 1)
    with checkpoint.manager(tmp_path) as to:
        checkpoint.save(to, dataclasses.replace(jax.jit(make)(jax.random.key(6)), step=jnp.int32(1)), {})
    assert_equal(checkpoint.restore(tmp_path, shapes(layout(1, 1))), first)
