"""The server of the page, on one address until Ctrl-C; it leaves no files behind and calls nobody."""

import contextlib
import os
import socket
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

from jaxdiff.app.demo import page
from jaxdiff.app.demo.drawing import Pictures
from jaxdiff.app.demo.programs import Opened
from jaxdiff.io.errors import ConfigError

UPLOADS = "20mb"  # at most


def free_port(host: str, port: int) -> int:
    """The port, or with 0 any that is free.

    Raises:
        ConfigError: it cannot be listened on.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            return probe.getsockname()[1]
    except (OSError, OverflowError) as error:
        why = getattr(error, "strerror", None) or error
        raise ConfigError(f"--host {host} --port {port}: {why}; choose another --port, 0 for any that is free") from error


@contextlib.contextmanager
def serving(runs: Sequence[Opened], drawn: Sequence[Pictures], host: str, port: int) -> Iterator[str]:
    """The address of the page of the runs, which is served inside the block; `drawn` is what it shows first."""
    with tempfile.TemporaryDirectory(prefix="jaxdiff-demo-") as directory:
        os.environ["GRADIO_TEMP_DIR"] = directory  # of what is uploaded and drawn
        blocks = page.page(runs, drawn).queue(max_size=16)
        where: dict[str, Any] = {"server_name": host, "server_port": port, "share": False, "inbrowser": False}
        looks: dict[str, Any] = {"theme": page.THEME, "css": page.CSS, "footer_links": [], "ssr_mode": False}
        try:
            blocks.launch(
                prevent_thread_lock=True,
                quiet=True,
                max_file_size=UPLOADS,
                mcp_server=False,
                enable_monitoring=False,
                **where,
                **looks,
            )
            yield f"http://{f'[{host}]' if ':' in host else host}:{port}"
        finally:
            blocks.close(verbose=False)
