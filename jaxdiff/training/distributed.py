"""Several processes that train one run: they start together, agree with each other, and end together.

Each holds some of the devices. The first alone writes logs, metrics and pictures; all write the checkpoints. One that is lost,
crashes or hangs ends the others, each with one line; rerunning the same command resumes from the last checkpoint.
"""

from __future__ import annotations

import collections
import contextlib
import json
import logging
import os
import pathlib
import re
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from jaxdiff import training
from jaxdiff.io import paths
from jaxdiff.io.errors import ConfigError, LostProcessError, UserError, first_line
from jaxdiff.training import watchdog

STEP_TIMEOUT = 45.0  # seconds that a step may take unless told otherwise
LINGER = 3.0  # seconds that the first process outlives the others
HEARTBEAT = 20  # seconds after which a process that is not heard of is lost
ARRIVAL = 300  # seconds in which all processes must have started

_LOST = r"Gloo|NCCL|Connection|^(UNAVAILABLE|ABORTED|CANCELLED|DEADLINE_EXCEEDED)"  # in errors that a lost process leaves in others
_SIGNALS = (None, "SIGTERM", "SIGINT")


def initialize(coordinator: str | None = None, num: int | None = None, index: int | None = None) -> None:
    """Joins this process to the others, before any device is used: those named, or those of SLURM or a TPU pod; else nothing.

    Raises:
        ConfigError: two of the three are given without the third, they do not fit, or the cluster cannot be read.
    """
    given = (coordinator, num, index)
    if jax.distributed.is_initialized() or (given == (None, None, None) and not in_cluster(os.environ)):
        return
    if given != (None, None, None):
        _check(coordinator, num, index)
    bind = coordinator if coordinator and coordinator.rsplit(":", 1)[0] in ("localhost", "127.0.0.1") else None
    with watchdog.deadline(ARRIVAL, f"not all of {num or 'the'} processes came in {ARRIVAL} s to {coordinator or 'the first'}"):
        jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM from `stop_signals`
        try:
            jax.distributed.initialize(
                coordinator,
                num,
                index,
                cluster_detection_method="deactivate" if coordinator else None,
                initialization_timeout=2 * ARRIVAL,  # whose end is a crash; ours comes first
                heartbeat_timeout_seconds=HEARTBEAT,
                coordinator_bind_address=bind,
            )
        except (ValueError, RuntimeError) as error:
            raise ConfigError(f"the processes could not be joined: {first_line(error)}") from error
    sys.excepthook = _end
    if not is_first():
        logging.getLogger("jaxdiff").setLevel(logging.ERROR)


def in_cluster(environment: Mapping[str, str]) -> bool:
    """Whether this is one of several processes that SLURM's `srun` or a TPU pod has started."""
    hosts = [name for name in environment.get("TPU_WORKER_HOSTNAMES", "").split(",") if name]
    tasks = environment.get("SLURM_NTASKS", "1")
    return len(hosts) > 1 or ("SLURM_STEP_NODELIST" in environment and tasks.isdecimal() and int(tasks) > 1)


def _check(coordinator: str | None, num: int | None, index: int | None) -> None:
    if coordinator is None or num is None or index is None:
        raise ConfigError("give all of --coordinator HOST:PORT, --num-processes and --process-id, or none of them")
    if not re.fullmatch(r".+:\d+", coordinator):
        raise ConfigError(f"--coordinator must be HOST:PORT of process 0, got {coordinator}")
    if not 0 <= index < num:
        raise ConfigError(f"--process-id must be 0 to {num - 1} of --num-processes {num}, got {index}")


def is_multi_process() -> bool:
    """Whether there are other processes."""
    return jax.distributed.is_initialized() and jax.process_count() > 1


def is_first() -> bool:
    """Whether this process is the one that writes and prints."""
    return not is_multi_process() or jax.process_index() == 0


def step_watchdog(step_timeout: float | None, workdir: pathlib.Path) -> contextlib.AbstractContextManager[Callable[[bool], None]]:
    """The watch of a run's steps (`watchdog.steps`); None is that of one of several processes.

    Stacks go to `workdir`, or, if that is in a bucket, to the disk. The first process ends last: its end would end the others
    before they have said their line.
    """
    limit = step_timeout if step_timeout is not None else STEP_TIMEOUT if is_multi_process() else 0
    folder = pathlib.Path(tempfile.gettempdir()) if paths.in_bucket(workdir) else pathlib.Path(workdir)
    stacks = folder / f"hung-{jax.process_index()}.txt"
    return watchdog.steps(limit, line_prefix(), stacks, linger=LINGER if is_multi_process() and is_first() else 0)


def broadcast_from_first(value: Any) -> Any:
    """The first process's value, of what JSON can hold, on all; all processes must call it, and wait for the last."""
    if not is_multi_process():
        return value
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    length = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
    text = text if is_first() else np.zeros(length, np.uint8)
    return json.loads(np.asarray(multihost_utils.broadcast_one_to_all(text)).tobytes())


def all_true(well: bool) -> bool:
    """Whether the value is true on all processes, which must all call it."""
    return bool(np.all(multihost_utils.process_allgather(np.asarray(well)))) if is_multi_process() else well


@contextlib.contextmanager
def first_process_first() -> Iterator[None]:
    """Runs the block on the first process and then on the others, which find its files on disk."""
    if not is_first():
        broadcast_from_first(None)
    yield
    if is_first():
        broadcast_from_first(None)


def replicate_locally(tree: Any) -> Any:
    """The arrays whole on this process's first device, however they are sharded; all processes must call it."""

    def whole(leaf: jax.Array) -> Any:
        return leaf if leaf.is_fully_addressable else leaf.addressable_data(0)

    device = jax.local_devices()[0]
    if is_multi_process():
        tree = jax.jit(_same, out_shardings=jax.tree.map(_replicated, tree))(tree)
    return jax.device_put(jax.tree.map(whole, tree), device)


def _same(tree: Any) -> Any:
    return tree


def _replicated(leaf: jax.Array) -> Any:
    sharding = leaf.sharding
    return sharding.update(spec=jax.P()) if isinstance(sharding, jax.sharding.NamedSharding) else sharding


def shard_from_host(tree: Any, sharding: Any) -> Any:
    """The arrays, which each process holds whole, sharded over the devices of all."""
    if not is_multi_process():
        return jax.device_put(tree, sharding)

    def place(leaf: Any, where: jax.sharding.Sharding) -> jax.Array:
        value = np.asarray(leaf)
        return jax.make_array_from_callback(value.shape, where, lambda index: value[index])

    return jax.tree.map(place, tree, sharding)


@contextlib.contextmanager
def stop_signals() -> Iterator[Callable[[], str | None]]:
    """As `training.stop_signals`; all processes must call it at each step, and a signal to one stops all at the same step.

    The answers are read two steps later, when they have arrived.
    """
    with training.stop_signals() as mine:
        if not is_multi_process():
            yield mine
            return
        received: list[str] = []
        asked: collections.deque[jax.Array] = collections.deque()

        def stopped() -> str | None:
            if not received:
                asked.append(_largest(_SIGNALS.index(mine())))
                if len(asked) > 2 and (name := _SIGNALS[int(asked.popleft())]):
                    received.append(name)
            return received[0] if received else None

        yield stopped


def _largest(number: int) -> jax.Array:
    """The largest of all processes' numbers, when it has arrived."""
    mesh = jax.sharding.Mesh(np.asarray(jax.devices()), ("all",))
    split, same = (jax.NamedSharding(mesh, jax.P(*axes)) for axes in (("all",), ()))
    numbers = jax.make_array_from_process_local_data(split, np.full(jax.local_device_count(), number, np.int32))
    return jax.jit(jnp.max, out_shardings=same)(numbers)


def exit_together(status: int) -> int:
    """The exit status, when all processes are done."""
    if is_multi_process():
        broadcast_from_first(None)
        jax.distributed.shutdown()
    return status


def exit_now(status: int) -> int:
    """The exit status of a process that failed; where others wait for it, ends it at once, which ends them."""
    if is_multi_process():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    return status


def lost_process(error: BaseException) -> LostProcessError | None:
    """What to say of an error if it is that another process was lost; else None."""
    text = str(error)
    kinds = (jax.errors.JaxRuntimeError, ValueError)  # the latter where a program fails while it is dispatched
    if not is_multi_process() or not isinstance(error, kinds) or not re.search(_LOST, text):
        return None
    return LostProcessError(
        f"another process was lost ({first_line(error, 100)}); rerun the same command on all to resume from the last checkpoint"
    )


def line_prefix() -> str:
    """What a line on stderr begins with: which process says it, if there are several."""
    return f"process {jax.process_index()} of {jax.process_count()}: " if is_multi_process() else ""


def _end(kind: type[BaseException], error: BaseException, trace: Any) -> None:
    """The except hook of one process of several: the interpreter's own end would wait for the others, and they for it."""
    told = error if isinstance(error, UserError) else lost_process(error)
    if told:
        print(f"jaxdiff: {line_prefix()}{told}", file=sys.stderr)
    else:
        traceback.print_exception(kind, error, trace)
    exit_now(1)
