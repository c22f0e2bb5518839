"""Requests to Google Cloud Storage: how long one may take, how often it is made anew, and what a refusal means."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import logging
import math
import os
import random
import re
import time
from collections.abc import Awaitable, Callable
from typing import Any

SILENCE = 30.0  # seconds without a sign of an answer after which a request is made anew
PATIENCE = 300.0  # seconds without any answer after which a bucket is given up
LEASE_SILENCE, LEASE_PATIENCE = 10.0, 60.0  # the same of requests for a lease, which must be quicker
PAUSE, LONGEST_PAUSE = 0.5, 16.0  # seconds before the first repetition; each waits twice as long, up to the longest
ATTEMPTS = 16  # of tensorstore, which counts them: about three minutes of pauses

_CLIENTS = ("gcsfs", "aiohttp", "google", "requests")  # packages whose errors say what a bucket answered
_OF_A_BUCKET = r"^Forbidden: |^[A-Z_]+: .*gs://"  # errors of other types that gcsfs and tensorstore raise
_FORBIDDEN = r"^Forbidden: |^40[13] |, 40[13]$|PERMISSION_DENIED|UNAUTHENTICATED|[Cc]redentials"
_NO_BUCKET = r"specified bucket does not exist|No such bucket|(^|/)b/[^/\s]+/o(\?\S*)?$"
_heard = -math.inf  # when gcsfs last had an answer to any request


def configure() -> None:
    """Sets how all clients ask; gcsfs without lists of what was there before, since others write to the same bucket."""
    import aiohttp
    import fsspec.config

    os.environ.setdefault("EPATH_USE_TF", "false")  # or etils would use TensorFlow where that is installed
    for name, value in (("LOW_SPEED_TIME_SECONDS", SILENCE), ("LOW_SPEED_LIMIT_BYTES", 1), ("CONNECT_TIMEOUT_SECONDS", SILENCE)):
        os.environ.setdefault(f"TENSORSTORE_CURL_{name}", str(math.ceil(value)))
    limits = aiohttp.ClientTimeout(sock_connect=SILENCE, sock_read=SILENCE)
    settings: dict[str, Any] = {"cache_timeout": 0, "use_listings_cache": False, "requests_timeout": limits}
    if emulator := os.environ.get("STORAGE_EMULATOR_HOST"):  # which wants no credentials, for whose lack its clients would warn
        settings["token"] = "anon"
        os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
        os.environ.setdefault("TENSORSTORE_GCS_HTTP_URL", emulator)
        os.environ.setdefault("GOOGLE_AUTH_TOKEN_FOR_TESTING", "none")
    fsspec.config.conf["gcs"] = settings | fsspec.config.conf.get("gcs", {})
    for protocol in ("gcs", "gs"):
        fsspec.register_implementation(protocol, _file_system(), clobber=True)
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # it logs the stacks of errors that it raises


def tensorstore_retries() -> dict[str, Any]:
    """How often tensorstore makes a request anew, for its context."""
    return {"max_retries": ATTEMPTS, "initial_delay": f"{PAUSE:g}s", "max_delay": f"{LONGEST_PAUSE:g}s"}


def lease_options() -> dict[str, Any]:
    """How long and how often Google's own client asks, for its methods."""
    from google.cloud.storage.retry import DEFAULT_RETRY

    patient = DEFAULT_RETRY.with_delay(initial=PAUSE, maximum=LONGEST_PAUSE).with_timeout(LEASE_PATIENCE)
    return {"timeout": LEASE_SILENCE, "retry": patient}


def refusal(error: BaseException) -> str | None:
    """What a bucket answered and what to do, in one line, if that is what the error is about; else None."""
    text = str(error).strip() or type(error).__name__
    absent = re.search(_NO_BUCKET, text)
    if not (absent or type(error).__module__.partition(".")[0] in _CLIENTS or re.search(_OF_A_BUCKET, text)):
        return None
    named = re.search(r"(?:gs://|\bb/)([^/\s?]+)", text)
    bucket = f"gs://{named[1]}" if named else "the bucket"
    if absent:
        return f"there is no bucket {bucket}; make it (gcloud storage buckets create {bucket}), or choose another path"
    quoted = re.search(r'"message\\?": \\?"(.*?)\\?"', text)
    said = quoted[1] if quoted else text.splitlines()[-1][:200]
    if re.search(_FORBIDDEN, text):
        how = "see gcloud auth application-default login, and give that account the role roles/storage.objectAdmin of the bucket"
        return f"{bucket} refuses to be read or written ({said}); {how}"
    return f"no answer from {bucket} ({said}); rerun the command"


@functools.cache
def _file_system() -> Any:
    """The class of gcsfs's file systems, which the clients of fsspec use, epath and with it orbax among them."""
    import gcsfs
    from fsspec import asyn

    system: Any = gcsfs.GCSFileSystem
    request, download = map(inspect.unwrap, (system._request, system._get_file_request))  # once, not six times

    class FileSystem(system):
        """It repeats requests for as long as `PATIENCE`, and takes no error for a sign that something is not there."""

        async def _request(self, *args: Any, **options: Any) -> Any:
            return await _answer(request, self, *args, **options)

        async def _get_file_request(self, *args: Any, **options: Any) -> Any:
            return await _answer(download, self, *args, **options)

        async def _rm(self, *args: Any, **options: Any) -> Any:
            with contextlib.suppress(FileNotFoundError):  # as where the answer was lost, and the request made anew
                return await super()._rm(*args, **options)

        rm = asyn.sync_wrapper(_rm)

        async def _isdir(self, path: str) -> bool:
            return await self._kind(path) == "directory"

        async def _isfile(self, path: str) -> bool:
            return await self._kind(path) == "file"

        async def _kind(self, path: str) -> str | None:
            try:
                return (await self._info(path))["type"]
            except FileNotFoundError:
                return None

    return FileSystem


async def _answer(ask: Callable[..., Awaitable[Any]], *args: Any, **options: Any) -> Any:
    """The answer to a request, which is made again and again while there is none to it and to no other."""
    global _heard
    pause, began = PAUSE, time.monotonic()
    while True:
        try:
            answer = await ask(*args, **options)
        except Exception as error:
            if not _may_pass(error):
                _heard = time.monotonic()
                raise
            if time.monotonic() - max(began, _heard) > PATIENCE:
                raise
        else:
            _heard = time.monotonic()
            return answer
        await asyncio.sleep(pause * random.uniform(0.5, 1.0))
        pause = min(2 * pause, LONGEST_PAUSE)


def _may_pass(error: Exception) -> bool:
    """Whether the same request may be answered later: the network failed, or the server said so."""
    from gcsfs.retry import is_retriable

    return isinstance(error, TimeoutError) or (is_retriable(error) and getattr(error, "retryable", True))
