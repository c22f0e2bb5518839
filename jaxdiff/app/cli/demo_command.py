"""`jaxdiff demo`: its flags, and what it does."""

import importlib.util
import pathlib
import time
from dataclasses import dataclass

import tyro

from jaxdiff.io import progress
from jaxdiff.io.errors import ConfigError

LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True)
class Demo:
    """Serve a page that draws and edits images of a run, until Ctrl-C.

    Example: jaxdiff demo runs/digits --versus runs/digits_consistency
    """

    run: tyro.conf.Positional[pathlib.Path]
    """Directory of a diffusion run or a student."""
    versus: pathlib.Path | None = None
    """Another run, such as its student, that draws from the same noise beside it."""
    host: str = "127.0.0.1"
    """Address to listen on; this one is reached from this machine alone, 0.0.0.0 from all that reach it."""
    port: int = 7860
    """0: any that is free."""


def demo(args: Demo) -> int:
    from jaxdiff.app.demo import drawing, programs
    from jaxdiff.app.runs import storage

    if not 0 <= args.port < 2**16:
        raise ConfigError(f"--port must be at least 0 and below 65536, got {args.port}")
    workdirs = [path for path in (args.run, args.versus) if path is not None]
    for workdir in workdirs:
        storage.read_config(workdir, "diffusion")
    if importlib.util.find_spec("gradio") is None:
        raise ConfigError('demo: gradio, which makes the page, is not installed; run: pip install "jaxdiff[demo]"')
    from jaxdiff.app.demo import server

    port, runs = server.free_port(args.host, args.port), [programs.open_run(workdir) for workdir in workdirs]
    drawing.check_together(runs)
    with progress.waiting("compiling"):
        drawn = drawing.first(runs)
    with server.serving(runs, drawn, args.host, port) as address:
        whose = "" if args.host in LOOPBACK else ", open to all who reach this address"
        print(f"{address}{whose}; Ctrl-C ends it", flush=True)
        while True:
            time.sleep(3600)
