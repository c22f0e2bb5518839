"""Sinks of metrics: what they get, what a resumed run goes on with, and that none of them stops a training."""

import json
import sys
import time

import numpy as np
import pytest

from jaxdiff.training import metrics, sinks

PIXELS = np.zeros((4, 4, 3), np.uint8)
OWN = """
import json
import neighbour
from jaxdiff.training.sinks import Sink

def written(run):
    def add(*words):
        with (run.folder / "own.txt").open("a") as file:
            file.write(" ".join(map(str, words)) + chr(10))

    add("opened", run.start, run.config["steps"])
    return Sink(
        lambda step, values: add("scalars", step, json.dumps(values)),
        lambda step, name, pixels: add("image", step, name, pixels.shape),
        lambda: add("closed"),
    )
"""


def train(workdir, made, start=0):
    """Metrics of two steps and a picture, as training writes them."""
    with metrics.writer(workdir, start, made, {"steps": 2}) as (write, show, _):
        for step in (start + 1, start + 2):
            write(step, {"loss": 1 / step})
        show(start + 2, PIXELS)


def test_a_sink_of_ones_own_gets_all(tmp_path):
    (tmp_path / "mine.py").write_text(OWN)
    (tmp_path / "neighbour.py").write_text("")
    train(tmp_path, sinks.factories(f"{tmp_path}/mine.py:written"))
    told = (tmp_path / "own.txt").read_text().splitlines()
    expected = ["opened 0 2", 'scalars 1 {"loss": 1.0}', 'scalars 2 {"loss": 0.5}', "image 2 samples (4, 4, 3)", "closed"]
    assert told == expected


def test_weights_and_biases_resumes_its_run(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setattr(sys, "exit", sys.exit)  # which wandb replaces for good
    for start in (0, 2):
        train(tmp_path, sinks.factories("wandb"), start)
        wandb.teardown()  # as at the end of a program: waits for its own process, which writes after a run has finished
        time.sleep(1)  # it names folders by the second
    name = (tmp_path / "wandb_id.txt").read_text()
    first, second = sorted(tmp_path.glob(f"wandb/offline-run-*/run-{name}.wandb"), key=lambda path: path.stat().st_mtime)
    for path, value in ((first, b"0.5"), (second, b"0.25")):
        content = path.read_bytes()
        assert b"loss" in content
        assert value in content
        assert b"samples" in content


def test_tensorboard_keeps_all_events_of_one_second(tmp_path):
    for start in (0, 2, 2):
        train(tmp_path, sinks.factories("tensorboard"), start)
    metrics.write_pictures(tmp_path, 4, {"loss of detail": PIXELS})
    written = sorted((tmp_path / "tensorboard").iterdir())
    assert len(written) == 4
    assert all(b"loss" in path.read_bytes() for path in written)


@pytest.mark.parametrize("broken", ["open", "scalars", "image", "close"])
def test_a_sink_that_fails_warns_once_and_stops_nothing(broken, tmp_path, caplog):
    calls = []

    def factory(run):
        def method(name):
            def call(*args):
                calls.append(name)
                if name == broken:
                    raise OSError("no route to host")

            return call

        method("open")()
        return sinks.Sink(method("scalars"), method("image"), method("close"))

    train(tmp_path, {"own": factory, "tensorboard": sinks.tensorboard})
    assert [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [1, 2]
    assert len(list((tmp_path / "tensorboard").iterdir())) == 1
    assert [record.getMessage() for record in caplog.records if record.name.startswith("jaxdiff")] == [
        "--log own failed, and gets nothing from now on: OSError: no route to host"
    ]
    assert calls.count(broken) == 1
    assert calls[-1] == broken
