"""One writer at a time: a lock on a disk, which the system frees when a process ends, or a lease in a bucket, which lapses."""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import json
import logging
import os
import pathlib
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from jaxdiff.io import gcs, paths, progress
from jaxdiff.io.errors import ConfigError, first_line

log = logging.getLogger(__name__)

RENEW = 10.0  # seconds after which a lease is renewed
LAPSE = 60.0  # seconds after which one that was not renewed is free
CONFIRM: list[Callable[[], None]] = []  # of the leases that this process holds


@contextlib.contextmanager
def hold(lock: pathlib.Path, what: str) -> Iterator[None]:
    """Keeps other processes out of the same block for the same `lock`, a file that is there as long; `what` is written to.

    In a bucket the process ends where it loses the lease, because it was paused or had no answer for longer than that lasts.

    Raises:
        ConfigError: another process is in the block; it says which, and in a bucket when the lease lapses.
    """
    with _lease(lock, what) if paths.in_bucket(lock) else _lock(lock, what):
        yield


@contextlib.contextmanager
def take_turns(lock: pathlib.Path, what: str) -> Iterator[None]:
    """Lets one process at a time into the block for the same `lock`, a file on a disk; others wait for what it makes there.

    Where `lock` cannot be written, nobody waits.
    """
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            stack.enter_context(_lock(lock, what, wait=True))
        yield


def confirm() -> None:
    """Call before a write: ends the process where a lease that it held is another's."""
    for each in CONFIRM:
        each()


@contextlib.contextmanager
def _lock(path: pathlib.Path, what: str, wait: bool = False) -> Iterator[None]:
    fresh = not path.parent.exists()
    path.parent.mkdir(parents=True, exist_ok=True)
    with _locked(path, what, wait) as file:
        file.truncate(0)
        file.write(json.dumps(_me()))
        file.flush()
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
            if fresh:
                with contextlib.suppress(OSError):  # it is not empty
                    path.parent.rmdir()


@contextlib.contextmanager
def _locked(path: pathlib.Path, what: str, wait: bool) -> Iterator[Any]:
    """The open file, locked, which still has its name: the process that held it before removes it."""
    while True:
        with path.open("a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                file.seek(0)
                other = _named(file.read())
                if not wait:
                    raise ConfigError(f"{what} is being written to by {other}; wait for it, or stop it") from error
                with progress.waiting(f"waiting for {what}, which {other} makes"):
                    fcntl.flock(file, fcntl.LOCK_EX)
            except OSError as error:  # some file systems have no locks
                log.warning("%s cannot be locked (%s); see to it that nothing else writes to it", what, error.strerror)
            with contextlib.suppress(FileNotFoundError):
                if os.fstat(file.fileno()).st_ino == path.stat().st_ino:
                    yield file
                    return


def _me() -> dict[str, Any]:
    """This process, as it is written down for others."""
    started = time.strftime("%Y-%m-%d %H:%M:%S %Z")
    return {"host": socket.gethostname(), "pid": os.getpid(), "started": started, "place": _place()}


def _named(text: str) -> str:
    """A process by what it wrote down; the text is empty where it has not done so yet."""
    try:
        known = json.loads(text)
        return f"process {known['pid']} on {known['host']}, since {known['started']}"
    except (ValueError, KeyError, TypeError):
        return "another process that has just started"


@contextlib.contextmanager
def _lease(path: pathlib.Path, what: str) -> Iterator[None]:
    text = json.dumps(_me() | {"lease": secrets.token_hex(8)})
    held: dict[str, Any] = {"generation": _acquired(path, what, text), "renewed": time.monotonic()}
    done, turn = threading.Event(), threading.Lock()

    def renew() -> None:
        with turn:
            asked = time.monotonic()
            generation, known = _written(path, text, held["generation"])
            if generation is None:
                _end(what, path, known)
            held.update(generation=generation, renewed=asked)

    def check() -> None:
        if time.monotonic() - held["renewed"] > LAPSE:
            renew()

    def repeat() -> None:
        while not done.wait(RENEW):
            try:
                renew()
            except Exception as error:  # of many kinds; the next request may succeed
                reason = gcs.refusal(error) or first_line(error)
                log.warning("the lease of %s was not renewed (%s); trying again in %g s", what, reason, RENEW)

    thread = threading.Thread(target=repeat, daemon=True)
    thread.start()
    CONFIRM.append(check)
    try:
        yield
    finally:
        CONFIRM.remove(check)
        done.set()
        thread.join()
        with contextlib.suppress(Exception):  # the lease lapses
            paths.remove_if(path, held["generation"])


def _written(path: pathlib.Path, text: str, generation: int) -> tuple[int | None, paths.Version | None]:
    """The new generation of the lease where it still had that one; else None, and the lease as it is."""
    if (written := paths.write_if(path, text, generation)) is not None:
        return written, None
    known = paths.read_version(path)
    if known is not None and known.text == text:  # the answer to an earlier request was lost
        return known.generation, known
    return None, known


def _acquired(path: pathlib.Path, what: str, text: str) -> int:
    """The generation of the lease, once it is this process's."""
    generation, known = _written(path, text, 0)
    if generation is not None:
        return generation
    left = 0.0 if known is None else LAPSE - (paths.bucket_time(path.parent) - known.updated)
    if known is None or left <= 0 or _is_dead(known.text):
        generation, known = _written(path, text, known.generation if known else 0)
        if generation is not None:
            return generation
        left = LAPSE
    lapses = f"if it is dead, its lease lapses in {left:.0f} s: at {_clock(left)}"
    raise ConfigError(f"{what} is being written to by {_named(known.text if known else '')}; wait for it, or stop it ({lapses})")


def _clock(seconds: float) -> str:
    return (datetime.datetime.now() + datetime.timedelta(seconds=seconds)).strftime("%H:%M:%S")


def _place() -> str:
    """What two processes share that know each other's process ids: a machine since its start, and a namespace of ids."""
    try:
        return pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip() + " " + os.readlink("/proc/self/ns/pid")
    except OSError:
        return secrets.token_hex(8)


def _is_dead(text: str) -> bool:
    """Whether the process of a lease was on this machine and is gone."""
    try:
        known = json.loads(text)
        if known["place"] != _place():
            return False
        os.kill(known["pid"], 0)
    except ProcessLookupError:
        return True
    except (ValueError, KeyError, TypeError, OSError):
        return False
    return False


def _end(what: str, lock: pathlib.Path, known: paths.Version | None) -> NoReturn:
    """Ends the process at once, and with it what it writes in the background."""
    lost = f"jaxdiff: {lock} is gone, maybe with its bucket: {what} is no longer this process's alone, which ends"
    if known:
        why = "this process was paused, or had no answer from the bucket, and ends"
        lost = f"jaxdiff: {what} is now written to by {_named(known.text)}: {why}"
    print(f"\n{lost}", file=sys.stderr, flush=True)
    os._exit(1)
