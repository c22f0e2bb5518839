"""Processes of `jaxdiff` with small networks, forked from one that has imported everything: real ones, without the imports.

They start in milliseconds instead of four seconds of CPU each, and end as any other process of Python.
"""

import atexit
import contextlib
import dataclasses
import multiprocessing
import multiprocessing.process
import os
import pathlib
import signal
import sys
import threading

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    [
        *("forked", "small_unet", "jaxdiff.app.runs.train", "jaxdiff.app.runs.sources", "tensorboardX"),
        *("ipykernel.kernelapp", "matplotlib.figure"),  # of notebooks
    ]
)


@dataclasses.dataclass(frozen=True)
class Child:
    """What tests do with a `subprocess.Popen`, of a process that writes to files."""

    process: multiprocessing.process.BaseProcess
    out: pathlib.Path
    err: pathlib.Path

    stdin = stdout = stderr = None

    @property
    def pid(self):
        return self.process.pid

    @property
    def returncode(self):
        return self.process.exitcode

    def poll(self):
        return self.process.exitcode

    def wait(self, timeout=None):
        self.process.join(timeout)
        assert self.process.exitcode is not None, f"{self.process.name} goes on after {timeout} s"
        return self.process.exitcode

    def communicate(self, timeout=None):
        self.wait(timeout)
        return self.out.read_text(), self.err.read_text()

    def send_signal(self, number):
        os.kill(self.process.pid, number)

    def kill(self):
        self.send_signal(signal.SIGKILL)

    def terminate(self):
        self.send_signal(signal.SIGTERM)


def start(words, out, err, event=""):
    """`jaxdiff` with these words and one device, which appends what it prints to two files.

    With an event its process 1 of several gets that signal, or an error from its data, before the sixth batch.
    """
    out, err = pathlib.Path(out), pathlib.Path(err)
    process = SERVER.Process(target=_jaxdiff, args=(list(words), out, err, event))
    process.start()
    return Child(process, out, err)


def call(function, *arguments, out, err):
    """A process that calls a function, in the environment as it is now, and appends what it prints to two files."""
    process = SERVER.Process(target=_call, args=(function, arguments, out, err, dict(os.environ)))
    process.start()
    return Child(process, out, err)


def _call(function, arguments, out, err, environment):
    _print_to(out, err)
    os.environ.update(environment)
    with _ending():
        function(*arguments)


def _print_to(out, err):
    for number, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)


@contextlib.contextmanager
def _ending():
    """Does at its end what a process does at the end of Python, which a forked one does not reach."""
    try:
        yield
    finally:
        threading._shutdown()
        atexit._run_exitfuncs()


def _jaxdiff(words, out, err, event):
    import jax
    from small_unet import replace_networks

    from jaxdiff import data
    from jaxdiff.app import cli

    _print_to(out, err)
    sys.argv = ["jaxdiff", *words]
    jax.config.update("jax_num_cpu_devices", 1)
    replace_networks()
    plain = data.batches

    def spoiled(*arguments, **options):
        for number, batch in enumerate(plain(*arguments, **options)):
            if number == 5 and words[-1] == "1":  # the process number
                if event == "raise":
                    raise ValueError("a damaged record")
                os.kill(os.getpid(), getattr(signal, event))
            yield batch

    if event:
        data.batches = spoiled
    with _ending():
        cli.entry()
