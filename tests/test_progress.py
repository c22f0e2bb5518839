"""Progress bars: shown when it takes long, not when quiet, and never on the line of a log or of a result."""

import logging
import subprocess
import sys

import pytest

from jaxdiff.io import progress

WORK = """
import logging, sys, time
from tqdm.contrib.logging import logging_redirect_tqdm
from jaxdiff.io import progress
logging.basicConfig(format="%(message)s")
with logging_redirect_tqdm():
    for number in progress.track(range(4), "working", "piece"):
        time.sleep(0.8)
        if number == 3:
            logging.getLogger("jaxdiff").warning("a line of the log")
            progress.print_above("a result")
"""


def test_a_long_loop_shows_its_time_left_and_lines_stay_their_own():
    child = subprocess.run([sys.executable, "-c", WORK], capture_output=True, check=True)
    assert child.stdout == b"a result\n"
    shown = child.stderr.decode()
    assert "working:  50%" in shown
    assert "<00:0" in shown
    lines = [part for part in shown.split("\r") if "a line of the log" in part]
    assert len(lines) == 1
    assert lines[0].startswith("a line of the log\n")


@pytest.mark.parametrize(("level", "shown"), [(logging.INFO, True), (logging.NOTSET, True), (logging.WARNING, False)])
def test_quiet_means_no_bar(monkeypatch, capsys, level, shown):
    monkeypatch.setattr(logging.getLogger("jaxdiff"), "level", level)
    with progress.bar(2, "working", "piece", patience=0) as bar:
        bar.update()
        bar.refresh()
    assert ("working" in capsys.readouterr().err) == shown


def test_what_is_short_shows_nothing(monkeypatch, capsys):
    monkeypatch.setattr(logging.getLogger("jaxdiff"), "level", logging.INFO)
    assert list(progress.track(range(3), "working", "piece")) == [0, 1, 2]
    assert "piece" not in capsys.readouterr().err


def test_the_clock_runs_while_nothing_is_done(monkeypatch, capsys):
    monkeypatch.setattr(progress, "PATIENCE", 0.1)
    monkeypatch.setattr(progress, "TICK", 0.1)
    monkeypatch.setattr(logging.getLogger("jaxdiff"), "level", logging.INFO)
    import time

    with progress.bar(1, "working", "piece", patience=0.1):
        time.sleep(0.5)
    shown = capsys.readouterr().err
    assert shown.count("working:   0%") >= 2
    assert shown.split("\r")[-2].strip() == shown.split("\r")[-1] == ""  # and its line is clear at the end
