"""The message for an error: one line where the user can fix it, else a traceback."""

from __future__ import annotations

import re
import traceback

from jaxdiff.io.errors import UserError, disk_full, first_line

_ABSENT = r"initialize backend|Unknown backend|[Nn]o visible (GPU|TPU)"  # JAX's errors for a missing device
# Its errors where memory is full, or an array too big for any. RESOURCE_EXHAUSTED alone may be a full disk or a quota.
_TOO_MUCH = r"[Oo]ut of memory|RESOURCE_EXHAUSTED.*[Aa]llocat|exceeding 2 \*\* 64"
BUG = "this is a bug of jaxdiff; please report the lines above, with what `jaxdiff doctor` prints: https://github.com/jaxdiff/jaxdiff/issues"


def error_message(error: Exception) -> str:
    """One line if the user can fix the error, with its notes; else the traceback, and that it is a bug."""
    from jaxdiff.training import distributed

    who = f"jaxdiff: {distributed.line_prefix()}"
    if isinstance(error, UserError):
        return "\n".join([who + " ".join(str(error).split()), *getattr(error, "__notes__", ())])
    known = _refusal(error) or distributed.lost_process(error) or _missing_device(error)
    return who + " ".join(str(known).split()) if known else f"{''.join(traceback.format_exception(error))}{who}{BUG}"


def _refusal(error: Exception) -> str | None:
    """The message where a disk or memory is full, or the system refuses a file or a connection; None for any other error."""
    if disk_full(error):
        return f"the disk is full ({first_line(error)}); free some space and rerun the command"
    if isinstance(error, MemoryError) or re.search(_TOO_MUCH, str(error)):
        how = "ask for less at once: --batch-size, --num; of train --data.batch-size, --model.remat"
        return f"out of memory ({first_line(error)}); {how}"
    if not isinstance(error, OSError):
        return None
    return f"{error.filename}: {error.strerror}; choose another path, or fix this one" if error.filename else str(error)


def _missing_device(error: Exception) -> str | None:
    """The message for JAX's error that a device is missing, such as one in JAX_PLATFORMS; None for any other error."""
    import jax

    frames = traceback.extract_tb(error.__traceback__)
    inside = bool(frames) and frames[-1].filename.endswith("xla_bridge.py")  # where also assertions fail
    if not inside and not (isinstance(error, RuntimeError) and re.search(_ABSENT, str(error))):
        return None
    wanted = jax.config.jax_platforms  # type: ignore[attr-defined]
    jax.config.update("jax_platforms", None)
    return f"JAX cannot use {wanted or 'its devices'} ({first_line(error)}); {present_devices()}"


def present_devices() -> str:
    """Which devices there are, and how to find out why others are missing."""
    import jax

    try:
        platforms = sorted({each.platform for each in jax.devices()} | {"cpu"})
    except RuntimeError as error:
        return f"and no other ({first_line(error)}); run: jaxdiff doctor"
    return f"but {', '.join(platforms)}; write --device {platforms[-1]}, or ask why: jaxdiff doctor"
