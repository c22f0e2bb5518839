"""One writer at a time, on a disk and in a bucket: seconds are refused, dead ones do not block, lost leases end the process."""

import contextlib
import fcntl
import json
import os
import pathlib
import re
import signal
import threading
import time

import forked
import gcs_server
import numpy as np
import pytest

from jaxdiff.app import cli
from jaxdiff.evaluate import feature_cache
from jaxdiff.io import files, locks, paths
from jaxdiff.io.errors import ConfigError
from jaxdiff.training import run_lock


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("buckets")
    (folder / "bucket").mkdir()
    with gcs_server.server(folder):
        yield folder


@pytest.fixture(params=["disk", "bucket"])
def folder(request, tmp_path):
    if request.param == "disk":
        return tmp_path
    request.getfixturevalue("root")
    return paths.path(f"gs://bucket/{tmp_path.name}")


def hold(name):
    """Holds a folder and writes to it, for ever."""
    locks.RENEW, locks.LAPSE, folder = 0.2, 1.0, paths.path(name)
    with locks.hold(folder / ".writer", "runs/x"):
        while True:
            files.write_text(folder / "written", str(time.time()))
            time.sleep(0.3)


@contextlib.contextmanager
def holder(folder, tmp_path):
    """Another process, which holds the folder and writes to it."""
    child = forked.call(hold, str(folder), out=tmp_path / "out", err=tmp_path / "err")
    try:
        wait_until(lambda: child.poll() is not None or (folder / "written").exists())
        assert child.poll() is None, child.communicate()
        yield child
    finally:
        child.process.kill()
        child.wait(30)


def test_a_second_writer_is_refused_and_told_who_writes(folder):
    with locks.hold(folder / ".writer", "runs/x"):
        with pytest.raises(ConfigError) as refused, locks.hold(folder / ".writer", "runs/x"):
            raise AssertionError
        line = rf"runs/x is being written to by process {os.getpid()} on \S+, since [\d: -]+ \S+; wait for it, or stop it"
        lapses = r" \(if it is dead, its lease lapses in \d+ s: at [\d:]+\)" if paths.in_bucket(folder) else ""
        assert re.fullmatch(line + lapses, str(refused.value))
    assert not (folder / ".writer").exists()
    with locks.hold(folder / ".writer", "runs/x"):
        pass


def test_of_writers_that_begin_at_once_exactly_one_goes_on(folder):
    num = 8
    for _ in range(5):
        barrier, over, entered, refused = threading.Barrier(num), threading.Event(), [], []

        def begin(barrier=barrier, over=over, entered=entered, refused=refused):
            barrier.wait()
            try:
                with locks.hold(folder / ".writer", "runs/x"):
                    entered.append(1)
                    over.wait(30)
            except ConfigError as error:
                refused.append(str(error))

        threads = [threading.Thread(target=begin) for _ in range(num)]
        for thread in threads:
            thread.start()
        wait_until(lambda entered=entered, refused=refused: len(entered) + len(refused) == num)
        over.set()
        for thread in threads:
            thread.join()
        assert len(entered) == 1


def test_the_file_of_a_lock_that_its_holder_removed_is_not_taken_for_the_lock(tmp_path, monkeypatch):
    lock, whole, asked = tmp_path / "lock", fcntl.flock, []

    def flock(file, how):
        if not asked:
            lock.unlink()  # as its holder does at the end: here between the opening and the locking of the file
        asked.append(how)
        whole(file, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    with locks.hold(lock, "runs/x"):
        assert lock.exists()
        with pytest.raises(ConfigError), locks.hold(lock, "runs/x"):
            raise AssertionError
    assert len(asked) == 3


def read(path):
    """The text of a file that is written again and again, which the tests' server does not do at one stroke."""
    deadline = time.monotonic() + 30
    while True:
        try:
            return path.read_text()
        except FileNotFoundError:
            assert time.monotonic() < deadline


def wait_until(happened):
    deadline = time.monotonic() + 30
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_killed_writer_leaves_its_place(folder, tmp_path):
    with holder(folder, tmp_path) as child:
        with (
            pytest.raises(ConfigError, match=f"by process {child.process.pid} on "),
            locks.hold(folder / ".writer", "runs/x"),
        ):
            raise AssertionError
        child.kill()
        child.wait(30)
        assert (folder / ".writer").exists()
        with locks.hold(folder / ".writer", "runs/x"):
            pass


def test_a_writer_that_was_paused_and_lost_its_lease_ends_without_another_write(root, tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "LAPSE", 1.0)
    folder = paths.path(f"gs://bucket/{tmp_path.name}")
    with holder(folder, tmp_path) as child:
        time.sleep(1.5)  # the lease is renewed
        with pytest.raises(ConfigError, match="lapses in"), locks.hold(folder / ".writer", "runs/x"):
            raise AssertionError
        before = read(folder / "written")
        wait_until(lambda: read(folder / "written") != before)
        child.send_signal(signal.SIGSTOP)  # between two writes
        time.sleep(1.5)
        with locks.hold(folder / ".writer", "runs/x"):
            before = read(folder / "written")
            child.send_signal(signal.SIGCONT)
            _, said = child.communicate(timeout=30)
            assert child.returncode == 1
            assert f"jaxdiff: runs/x is now written to by process {os.getpid()} on" in said
            assert read(folder / "written") == before


def test_a_lease_of_another_machine_is_free_when_it_has_lapsed(root, tmp_path, monkeypatch):
    lock = paths.path(f"gs://bucket/{tmp_path.name}/.writer")
    lock.write_text(json.dumps({"host": "far", "pid": 7, "started": "today", "place": "elsewhere"}))
    with (
        pytest.raises(ConfigError, match=r"process 7 on far, since today; .* lapses in (60|59|58) s"),
        locks.hold(lock, "runs/x"),
    ):
        raise AssertionError
    monkeypatch.setattr(locks, "LAPSE", 0.5)
    time.sleep(0.6)
    with locks.hold(lock, "runs/x"):
        assert json.loads(lock.read_text())["pid"] == os.getpid()


def test_a_renewal_whose_answer_was_lost_is_not_taken_for_a_lost_lease(root, tmp_path, monkeypatch):
    lock, whole = paths.path(f"gs://bucket/{tmp_path.name}/.writer"), paths.write_if
    monkeypatch.setattr(locks, "RENEW", 0.05)
    asked, ended = [], []
    monkeypatch.setattr(locks, "_end", lambda *args: ended.append(args))
    with locks.hold(lock, "runs/x"):

        def unheard(*args):
            whole(*args)
            asked.append(args)

        monkeypatch.setattr(paths, "write_if", unheard)
        wait_until(lambda: len(asked) > 2)
        monkeypatch.setattr(paths, "write_if", whole)
    assert not ended
    assert not lock.exists()


def test_of_processes_that_need_the_same_file_of_a_cache_one_makes_it(tmp_path):
    path, made, found, go_on = tmp_path / "cache" / "features.npz", [], [], threading.Event()

    def make():
        made.append(1)
        go_on.wait(30)
        return {"a": np.arange(3)}

    threads = [threading.Thread(target=lambda: found.append(feature_cache.cached_arrays(path, make))) for _ in range(4)]
    for thread in threads:
        thread.start()
    wait_until(lambda: made)
    time.sleep(0.1)
    go_on.set()
    for thread in threads:
        thread.join(30)
    assert made == [1]
    assert [each["a"].tolist() for each in found] == [[0, 1, 2]] * 4
    assert list(path.parent.iterdir()) == [path]


def test_who_waits_for_a_process_that_is_killed_goes_on(tmp_path):
    with holder(tmp_path, tmp_path) as child:
        entered = []

        def wait():
            with locks.take_turns(tmp_path / ".writer", "features.npz"):
                entered.append(child.poll())

        waiting = threading.Thread(target=wait)
        waiting.start()
        time.sleep(0.1)
        assert not entered
        child.kill()
        waiting.join(30)
        assert len(entered) == 1


def test_commands_end_at_once_beside_a_writer(tmp_path, capsys):
    run, rungs = tmp_path / "digits", tmp_path / "ladder"
    recipes = pathlib.Path(__file__).parents[1] / "configs"
    with run_lock.hold(run), run_lock.hold(rungs):
        for command in (
            ["train", str(recipes / "digits.py"), "--workdir", str(run)],
            ["ladder", str(recipes / "digits_ladder.py"), "--workdir", str(rungs)],
        ):
            assert cli.main(command) == 1
            assert f"jaxdiff: {command[-1]} is being written to by process {os.getpid()} on " in capsys.readouterr().err
    assert not run.exists()
