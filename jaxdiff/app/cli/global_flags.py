"""The flags that every command has, and messages for errors of devices, memory and disks."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from jaxdiff.io.errors import ConfigError, disk_full, first_line

_ABSENT = r"initialize backend|Unknown backend|[Nn]o visible (GPU|TPU)"  # JAX's errors for a missing device
# Its errors where memory is full, or an array too big for any. RESOURCE_EXHAUSTED alone may be a full disk or a quota.
_TOO_MUCH = r"[Oo]ut of memory|RESOURCE_EXHAUSTED.*[Aa]llocat|exceeding 2 \*\* 64"


@dataclass(frozen=True)
class GlobalFlags:
    """Flags of every command."""

    device: Literal["cpu", "gpu", "tpu"] | None = None
    """Where to run; by default the best device there is."""
    quiet: bool = False
    """Print only results and errors, no progress bars."""


@contextlib.contextmanager
def apply_global_flags(flags: GlobalFlags, own: Any) -> Iterator[None]:
    """Applies the flags to the block, a command with its own arguments; its log lines are printed above progress bars.

    Raises:
        ConfigError: there is no such device.
    """
    from tqdm.contrib.logging import logging_redirect_tqdm

    if flags.quiet:
        logging.getLogger("jaxdiff").setLevel(logging.WARNING)
    if flags.device:
        _use(flags.device, _joins(own))
    with logging_redirect_tqdm():
        yield


def _joins(own: Any) -> bool:
    """Whether the command will join other processes, before which no device may be initialized."""
    from jaxdiff.training import distributed

    wanted = getattr(own, "processes", None)
    return wanted is not None and (wanted.coordinator is not None or distributed.in_cluster(os.environ))


def _use(device: str, later: bool) -> None:
    """Makes JAX use a device, and checks that it is there, unless `later`: then its first use does."""
    import jax

    before = jax.config.jax_platforms  # type: ignore[attr-defined]
    jax.config.update("jax_platforms", device if device == "cpu" else f"{device},cpu")
    if later:
        return
    try:
        platform = jax.default_backend()
    except RuntimeError:
        platform = "none"
    if platform != device:
        jax.config.update("jax_platforms", before)
        raise ConfigError(f"--device {device}: JAX finds none here, {_present()}")


def missing_device(error: BaseException) -> str | None:
    """The message for JAX's error that a device is missing, such as one in JAX_PLATFORMS; None for any other error."""
    frames = traceback.extract_tb(error.__traceback__)
    inside = bool(frames) and frames[-1].filename.endswith("xla_bridge.py")  # where also assertions fail
    if not inside and not (isinstance(error, RuntimeError) and re.search(_ABSENT, str(error))):
        return None
    import jax

    wanted = jax.config.jax_platforms  # type: ignore[attr-defined]
    jax.config.update("jax_platforms", None)
    return f"JAX cannot use {wanted or 'its devices'} ({first_line(error)}); {_present()}"


def out_of_room(error: BaseException) -> str | None:
    """The message for a full disk or full memory; None for any other error."""
    if disk_full(error):
        return f"the disk is full ({first_line(error)}); free some space and rerun the command"
    if isinstance(error, MemoryError) or re.search(_TOO_MUCH, str(error)):
        how = "ask for less at once: --batch-size, --num; of train --data.batch-size, --model.remat"
        return f"out of memory ({first_line(error)}); {how}"
    return None


def _present() -> str:
    """Which devices there are, and how to find out why others are missing."""
    import jax

    try:
        kinds: Any = sorted({each.platform for each in jax.devices()} | {"cpu"})
    except RuntimeError as error:
        return f"and no other ({first_line(error)}); run: jaxdiff doctor"
    return f"but {', '.join(kinds)}; write --device {kinds[-1]}, or ask why: jaxdiff doctor"
