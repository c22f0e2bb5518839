"""A run's directory is written to by the processes of one command at a time."""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Iterator

from jaxdiff.io import files, locks, paths
from jaxdiff.io.errors import ConfigError
from jaxdiff.training import distributed


@contextlib.contextmanager
def hold(workdir: pathlib.Path) -> Iterator[None]:
    """Keeps all but the processes of this run from its directory: the first holds it, and tells the others. All must call it.

    Raises:
        ConfigError: another command writes to it, or it cannot be written.
    """
    with contextlib.ExitStack() as stack:
        refused = ""
        if distributed.is_first():
            try:
                with files.writing_to(workdir, "--workdir"):
                    stack.enter_context(locks.hold(paths.path(workdir) / ".writer", str(workdir)))
            except ConfigError as error:
                refused = str(error)
        if refused := distributed.broadcast_from_first(refused):
            raise ConfigError(refused)
        yield
