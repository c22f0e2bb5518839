"""A folder that grows while a program runs, kept in a bucket, which cannot append to a file: written on the disk, and uploaded."""

from __future__ import annotations

import contextlib
import logging
import pathlib
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator

from jaxdiff.io import gcs, locks, paths
from jaxdiff.io.errors import first_line

log = logging.getLogger(__name__)

EVERY = 60.0  # seconds between two uploads


@contextlib.contextmanager
def uploaded_folder(folder: pathlib.Path, every: float = EVERY) -> Iterator[tuple[pathlib.Path, Callable[[], None]]]:
    """A folder of the disk to write to, and a function that uploads to `folder` what is new in it.

    That happens also each minute, in the background, and at the end of the block. On a disk it is `folder` itself, and the
    function does nothing.
    """
    if not paths.in_bucket(folder):
        yield folder, lambda: None
        return
    with tempfile.TemporaryDirectory(prefix="jaxdiff_upload_") as name:
        local, done, lock = pathlib.Path(name), threading.Event(), threading.Lock()
        sent: dict[pathlib.Path, tuple[int, int]] = {}

        def upload() -> None:
            with lock:
                _upload_new(local, folder, sent)

        def repeat() -> None:
            while not done.wait(every):
                try:
                    upload()
                except Exception as error:  # of many kinds; the next one, or that of a checkpoint, may succeed
                    reason = gcs.refusal(error) or first_line(error)
                    log.warning("%s could not be written to (%s); trying again in %g s", folder, reason, every)

        thread = threading.Thread(target=repeat, daemon=True)
        thread.start()
        try:
            yield local, upload
        except BaseException:
            with contextlib.suppress(Exception):  # what the block failed of is to be said
                upload()
            raise
        else:
            upload()
        finally:
            done.set()
            thread.join()


def _upload_new(local: pathlib.Path, folder: pathlib.Path, sent: dict[pathlib.Path, tuple[int, int]]) -> None:
    """Uploads the files that have changed since `sent`, each as it is now: it may grow meanwhile."""
    with tempfile.TemporaryDirectory(prefix="jaxdiff_upload_") as name:
        locks.confirm()
        for file in sorted(local.rglob("*")):
            now = (file.stat().st_size, file.stat().st_mtime_ns)
            if file.is_file() and sent.get(file) != now:
                copy = shutil.copyfile(file, pathlib.Path(name) / file.name)
                paths.upload(copy, folder / str(file.relative_to(local)))
                sent[file] = now
