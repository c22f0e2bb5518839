"""Checkpoints: orbax, asynchronous and atomic, beside the config that made them.

Params, each EMA and the optimizer are items of their own, so that sampling reads one EMA alone. A checksum of every
array is kept and compared on restore: orbax restores flipped bytes silently. `frozen` is not written: it comes from
the runs that it was taken from.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import json
import logging
import pathlib
import sys
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from jaxdiff.io import gcs, locks, paths, progress
from jaxdiff.io.errors import CheckpointError, DataError, NonFiniteError, disk_full, first_line
from jaxdiff.io.lazy import Lazy
from jaxdiff.training import TrainState, distributed

log = logging.getLogger(__name__)

SPARE = 4 * 2**20  # bytes of disk beside the arrays: what describes them, and half-filled blocks
SMALL = 2**16  # values of an array whose checksum NumPy computes before XLA has compiled it for another shape
PART = 2**16  # values of which NumPy computes a checksum at a time, which are then in a processor's cache
TOGETHER = 2**27  # bytes of lazy arrays that are made and written together
DAMAGED = "damaged"  # unreadable steps are moved here, never deleted
COMMITTED = "commit_success.txt"  # in a finished step in a bucket, where orbax cannot write to another name and rename


class _LazyHandler(ocp.type_handlers.NumpyHandler):
    """Writes lazy arrays as NumPy's, some at a time. Where orbax stops calling this function of its own, it writes all at once."""

    async def _background_serialize(self, values: Sequence[Any], infos: Sequence[Any], args: Any = None) -> None:
        for some in _groups([value.nbytes for value in values]):
            arrays, some_args = [np.asarray(values[i]) for i in some], [args[i] for i in some] if args else None
            await super()._background_serialize(arrays, [infos[i] for i in some], some_args)


def _groups(sizes: Sequence[int]) -> Iterator[list[int]]:
    """The indices of sizes, in order, in groups that end when they hold `TOGETHER`."""
    group: list[int] = []
    for index in range(len(sizes)):
        group.append(index)
        if sum(sizes[i] for i in group) >= TOGETHER or index == len(sizes) - 1:
            yield group
            group = []


def _handlers() -> ocp.handlers.CheckpointHandlerRegistry:
    """Orbax's handlers, which write lazy arrays too."""
    kinds = [kind for kind in ocp.type_handlers.supported_types() if kind is not np.ndarray]
    others = [(kind, ocp.type_handlers.get_type_handler(kind)) for kind in kinds]
    types = ocp.type_handlers.create_type_handler_registry((np.ndarray | Lazy, _LazyHandler()), *others)
    handlers = ocp.handlers.DefaultCheckpointHandlerRegistry()
    handlers.add(None, ocp.args.PyTreeSave, ocp.handlers.PyTreeCheckpointHandler(type_handler_registry=types))
    return handlers


@contextlib.contextmanager
def manager(workdir: pathlib.Path, keep: int = 3, keep_every: int | None = None) -> Iterator[ocp.CheckpointManager]:
    """An orbax manager of `workdir/checkpoints` that keeps the last `keep` steps; the end of the block waits for all saves.

    Steps that `keep_every` divides are kept for good.

    Raises:
        CheckpointError: the last save failed, on a full disk for example.
    """
    if distributed.is_first():
        _remove_unfinished(workdir)
    kept: Any = {"max_to_keep": keep, "keep_period": keep_every}
    options = ocp.CheckpointManagerOptions(**kept, create=True, enable_async_checkpointing=True)
    _prepare_clients()
    made = ocp.CheckpointManager(_directory(workdir), options=options, handler_registry=_handlers())
    try:
        yield made
    except BaseException as error:
        if distributed.is_multi_process() and not isinstance(
            error, NonFiniteError
        ):  # which all meet; else the others would not close
            raise
        with _saving(made):
            made.close()
        raise
    with _saving(made):
        made.close()


def steps(workdir: pathlib.Path) -> list[int]:
    """The complete steps, in order."""
    directory = _directory(workdir)
    if not directory.is_dir():
        return []
    numbered = [path for path in directory.iterdir() if path.name.isdecimal()]
    return sorted(int(path.name) for path in numbered if not paths.in_bucket(path) or (path / COMMITTED).exists())


def save(
    to: ocp.CheckpointManager, state: TrainState, config: Mapping[str, Any], levels: Mapping[str, Sequence[float]] | None = None
) -> None:
    """Saves the state under its step in the background, with the config and the checksums. A step that is already saved is skipped.

    `levels` are `alpha` and `sigma`, `[N + 1]`, of the list that a student was trained on (`read_levels`).

    Raises:
        CheckpointError: this save or an earlier one in the background failed, on a full disk for example.
    """
    items = _items(state)
    step = int(state.step)
    if step in to.all_steps():
        return
    with _saving(to):
        to.wait_until_finished()
    if distributed.is_first():
        _check_room(to, items)
    meta: dict[str, Any] = {
        "step": step,
        "config": dict(config),
        "checksums": {name: checksums(item) for name, item in items.items()},
    }
    if levels is not None:
        meta["levels"] = {name: np.asarray(values).tolist() for name, values in levels.items()}
    arrays: dict[str, Any] = {name: ocp.args.PyTreeSave(item) for name, item in items.items()}
    locks.confirm()
    with _saving(to):
        to.save(step, args=ocp.args.Composite(meta=ocp.args.JsonSave(meta), **arrays))


def check(to: ocp.CheckpointManager) -> None:
    """Raises the error of a save that failed in the background, if one has; call it at every step, it makes no request.

    Raises:
        CheckpointError: a save failed.
    """
    if not to.is_saving_in_progress():
        with _saving(to):
            to.wait_until_finished()


def restore(workdir: pathlib.Path, like: TrainState) -> TrainState | None:
    """The newest whole state in `workdir`, or None where there is none; frozen is taken from `like`.

    `like` is a state of `jax.ShapeDtypeStruct` with the shardings wanted, on however many devices. A step that cannot be
    read is reported in one line and moved to `workdir/damaged`, and the one before it is used. All processes must call this,
    and restore the same step.

    Raises:
        CheckpointError: there are checkpoints, but none can be read. They stay where they are.
    """
    saved = distributed.broadcast_from_first(steps(workdir))
    if not saved:
        return None
    newest, items = _newest(workdir, saved, _items(like), together=True)
    if distributed.is_first():
        for step in saved:
            if step > newest:
                _move_away(workdir, step)
    distributed.broadcast_from_first(None)
    ema = {name: items[_ema_item(name)] for name in like.ema}
    return replace(
        like, step=items["step"]["step"], params=items["params"], ema=ema, opt_state=items.get("opt_state", like.opt_state)
    )


def restore_ema(workdir: pathlib.Path, name: str, like: Any, step: int | None = None) -> tuple[int, Any]:
    """Step and params of one EMA of the newest whole checkpoint, or of a step, reading nothing else. Changes no file.

    Raises:
        CheckpointError: `workdir` has no checkpoint, or none that can be read.
    """
    _check_any(workdir)
    wanted = {_ema_item(name): like}
    newest, items = _newest(workdir, steps(workdir), wanted) if step is None else (step, _read(workdir, step, wanted))
    return newest, items[_ema_item(name)]


def read_levels(workdir: pathlib.Path, step: int | None = None) -> tuple[int, dict[str, list[float]]]:
    """The newest step that can be read, or the one given, and `alpha` and `sigma` of the levels that its student was trained on.

    Raises:
        CheckpointError: it cannot be read, or holds none.
    """
    _check_any(workdir)
    step, items = _newest(workdir, steps(workdir), {}) if step is None else (step, _read(workdir, step, {}))
    if "levels" not in items["meta"]:
        raise CheckpointError(f"checkpoint {_directory(workdir) / str(step)} holds no levels; it is no student's of a list")
    return step, items["meta"]["levels"]


def fingerprint(workdir: pathlib.Path, name: str) -> str:
    """A fingerprint of the newest params of that EMA, from their checksums: eight hexadecimal digits.

    Raises:
        CheckpointError: `workdir` has no checkpoint, or its newest cannot be read.
    """
    _check_any(workdir)
    sums = _read(workdir, steps(workdir)[-1], {})["meta"]["checksums"][_ema_item(name)]
    return f"{zlib.crc32(json.dumps(sums, sort_keys=True).encode()):08x}"


def checksums(tree: Any) -> dict[str, int]:
    """A checksum of every array by its path: the sum of its 32-bit words, each times an odd number, modulo 2^32.

    The same for every sharding of an array.
    """
    leaves = jax.tree.leaves(tree)
    large = [_is_large(leaf) for leaf in leaves]
    arrays = [_checksum_on_devices(leaf) if there else leaf for leaf, there in zip(leaves, large, strict=True)]
    of_jax = iter(jax.device_get([array for array in arrays if isinstance(array, jax.Array)]))
    read = (next(of_jax) if isinstance(array, jax.Array) else np.asarray(array) for array in arrays)
    sums = [int(values) if there else _checksum(values) for values, there in zip(read, large, strict=True)]
    return dict(zip(_paths(tree), sums, strict=True))


def _is_large(array: jax.Array | np.ndarray | Lazy) -> bool:
    """Whether an array is on devices, and large or not all of it this process's."""
    if not isinstance(array, jax.Array):
        return False
    return array.size > SMALL or not (array.is_fully_addressable or array.is_fully_replicated)


def _checksum(array: np.ndarray) -> int:
    words, total = np.ravel(array).view(_unsigned(array.dtype)), 0
    for start in range(0, words.size, PART):
        part = words[start : start + PART].astype(np.uint32)
        part ^= part >> 16  # or two flipped sign bits would cancel: 2^31 times any odd number is 2^31
        position = np.arange(start, start + part.size, dtype=np.uint32)
        total += int(np.sum(part * (position * np.uint32(2654435761) | np.uint32(1)), dtype=np.uint32))
    return total % 2**32


@jax.jit
def _checksum_on_devices(array: jax.Array) -> jax.Array:
    """The same of an array that is sharded or large."""
    unsigned = _unsigned(array.dtype)
    words = array.astype(unsigned) if array.dtype == jnp.bool_ else jax.lax.bitcast_convert_type(array, unsigned)
    words = words.astype(jnp.uint32)
    words = words ^ (words >> 16)
    position = jnp.zeros(words.shape, jnp.uint32)
    for axis, length in enumerate(words.shape):  # not a reshape to one axis, which would gather a sharded array
        position = position * jnp.uint32(length) + jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
    return jnp.sum(words * (position * jnp.uint32(2654435761) | jnp.uint32(1)), dtype=jnp.uint32)


def _unsigned(dtype: np.dtype) -> np.dtype:
    return np.dtype({1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint32}[dtype.itemsize])


def _newest(
    workdir: pathlib.Path, saved: Sequence[int], like: Mapping[str, Any], together: bool = False
) -> tuple[int, dict[str, Any]]:
    """The newest of the steps that can be read, and its named items; says in one line each why newer ones cannot."""
    reasons: list[str] = []
    for step in reversed(saved):
        try:
            items = _read(workdir, step, like, together)
        except CheckpointError as error:
            reasons.append(str(error))
            continue
        for reason in reasons:
            log.warning("%s; going back to the checkpoint before it", reason)
        return step, items
    raise CheckpointError(
        f"{reasons[0]}; no other checkpoint can be read either, nothing was changed; train anew in another --workdir"
    )


def _read(workdir: pathlib.Path, step: int, like: Mapping[str, Any], together: bool = False) -> dict[str, Any]:
    """The named items of a step, checked against their checksums.

    Each process reads what its own devices hold, and waits for no other; with `together` all must read, and all can or none.
    """
    directory, items, reason = _directory(workdir) / str(step), {}, ""
    _prepare_clients()
    try:
        with progress.waiting(f"reading checkpoint {step}"):
            items = _restored(directory, like)
    except Exception as error:  # orbax and tensorstore raise bare Exceptions too
        if refused := gcs.refusal(error):  # it is whole, for all that is known
            raise DataError(f"checkpoint {directory} cannot be read now: {refused}") from error
        reason = f"checkpoint {directory} cannot be read ({first_line(error)})"
    _agree(reason, directory, together)
    for name in like:
        if checksums(items[name]) != items["meta"].get("checksums", {}).get(name):
            reason = f"checkpoint {directory}: the values of {name} are not those that were saved"
    _agree(reason, directory, together)
    return {"meta": items["meta"], **{name: items[name] for name in like}}


def _restored(directory: pathlib.Path, like: Mapping[str, Any]) -> Any:
    alone = ocp.options.MultiprocessingOptions(primary_host=jax.process_index(), active_processes={jax.process_index()})
    composite = ocp.CompositeCheckpointHandler(composite_options=ocp.CompositeOptions(multiprocessing_options=alone))
    with ocp.Checkpointer(composite, multiprocessing_options=alone) as reader:
        wanted: dict[str, Any] = {name: ocp.args.StandardRestore(item) for name, item in like.items()}
        return reader.restore(directory, args=ocp.args.Composite(meta=ocp.args.JsonRestore(), **wanted))


def _prepare_clients() -> None:
    """Bounds how often tensorstore asks a bucket, and quiets what requests raise that a failed one has abandoned."""
    with contextlib.suppress(ImportError):  # of what is orbax's own, as it has no option; without it 33 times, with long pauses
        from orbax.checkpoint._src.serialization import tensorstore_utils

        for name in ("_BASE_TS_CONTEXT", "_DEFAULT_OCDBT_TS_CONTEXT"):
            getattr(tensorstore_utils, name, {})["gcs_request_retries"] = gcs.tensorstore_retries()
    _silence_abandoned_requests()


@functools.cache
def _silence_abandoned_requests() -> None:
    """Keeps Python from printing, in a hundred lines each, what orbax's pending reads and writes raise when one has failed."""
    plain = sys.unraisablehook

    def hook(raised: Any) -> None:
        of_orbax = inspect.iscoroutine(raised.object) and "orbax" in raised.object.cr_code.co_filename
        if not of_orbax and "Event loop is closed" not in str(raised.exc_value):
            plain(raised)

    sys.unraisablehook = hook


def _agree(reason: str, directory: pathlib.Path, together: bool) -> None:
    """Raises the reason; with `together` also where another process has one."""
    if not (distributed.all_true(not reason) if together else not reason):
        raise CheckpointError(reason or f"checkpoint {directory} cannot be read by another process")


def _check_any(workdir: pathlib.Path) -> None:
    if not steps(workdir):
        raise CheckpointError(f"{workdir} has no checkpoint; train it first: jaxdiff train CONFIG --workdir {workdir}")


def _check_room(to: ocp.CheckpointManager, items: Mapping[str, Any]) -> None:
    """Whether the disk has room; where it has not, what writes to it in the background says so in hundreds of lines."""
    needed = sum(leaf.nbytes for leaf in jax.tree.leaves(items)) + SPARE
    free = paths.free_bytes(to.directory)
    if free < needed:
        sizes = f"it may take {needed / 1e6:.1f} MB, the disk has {free / 1e6:.1f} MB left"
        how = "make room, rerunning the same command resumes from the last checkpoint"
        raise CheckpointError(f"a checkpoint in {to.directory} could not be saved: {sizes}; {how}")


@contextlib.contextmanager
def _saving(to: ocp.CheckpointManager) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        refused = gcs.refusal(error)
        if not refused and not isinstance(error, (ValueError, OSError)):
            raise
        reason = refused or ("the disk is full" if disk_full(error) else first_line(error))
        raise CheckpointError(f"a checkpoint in {to.directory} could not be saved: {reason}") from error


def _items(state: TrainState) -> dict[str, Any]:
    emas = {_ema_item(name): params for name, params in state.ema.items()}
    items = {"step": {"step": state.step}, "params": state.params, "opt_state": state.opt_state, **emas}
    return {name: item for name, item in items.items() if jax.tree.leaves(item)}  # published weights are an average alone


def _ema_item(name: str) -> str:
    return f"ema_{name}"


def _paths(tree: Any) -> list[str]:
    return [jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(tree)]


def _directory(workdir: pathlib.Path) -> pathlib.Path:
    return paths.absolute(paths.path(workdir)) / "checkpoints"


def _remove_unfinished(workdir: pathlib.Path) -> None:
    """Removes the unfinished saves of killed processes: in a bucket these have the names of finished ones."""
    directory, whole = _directory(workdir), set(map(str, steps(workdir)))
    for path in directory.glob("*"):
        if ".orbax-checkpoint-tmp" in path.name or (path.name.isdecimal() and path.name not in whole):
            paths.remove_tree(path)


def _move_away(workdir: pathlib.Path, step: int) -> None:
    source = _directory(workdir) / str(step)
    target = _directory(workdir).parent / DAMAGED
    number = sum(1 for _ in target.iterdir()) if target.is_dir() else 0
    paths.move(source, target / f"{step}-{number}")
