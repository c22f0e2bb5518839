"""Real processes on this machine that train one run, with real collectives between them."""

import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

import forked
import jax
import numpy as np
import pytest
from PIL import Image

from jaxdiff.app import build, cli
from jaxdiff.app.runs import storage
from jaxdiff.training import checkpoint, distributed

TINY = (
    *("--data.batch-size", "16", "--model.channels", "128", "--steps", "20"),  # as wide as arrays must be to be shared out
    *("--optimizer.warmup-steps", "5", "--optimizer.schedule", "constant", "--log-every", "1", "--checkpoint-every", "5"),
    *("--sampling.every", "10", "--sampling.num", "20", "--sampling.batch-size", "8", "--sampling.steps", "2"),
    *("--evaluation.num", "0", "--keep", "9"),
)


def train(workdir, tfds_dir, flags=()):
    return ("train", "configs/digits.py", "--workdir", str(workdir), "--data-dir", tfds_dir, *TINY, *flags)


def start_all(workdir, tfds_dir, num, flags=(), event=""):
    """That many processes with a device each."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        joined = ("--coordinator", f"localhost:{free.getsockname()[1]}", "--num-processes", str(num), "--process-id")
    flags = (*flags, "--sampling.every", "0") if event else flags
    words = (*train(workdir, tfds_dir, flags), *joined)
    folder = pathlib.Path(tempfile.mkdtemp(dir=workdir.parent))
    return [forked.start((*words, str(index)), folder / f"out-{index}", folder / f"err-{index}", event) for index in range(num)]


def ended(all_of_them, seconds=400):
    """Exit statuses, what they printed, and the lines of jaxdiff on stderr."""
    texts = [process.communicate(timeout=seconds) for process in all_of_them]
    lines = [[line for line in err.splitlines() if line.startswith("jaxdiff: ")] for _, err in texts]
    return [process.returncode for process in all_of_them], texts, lines


def metrics(workdir):
    path = pathlib.Path(workdir) / "metrics.jsonl"
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


pytestmark = pytest.mark.usefixtures("small_unet")


def state(workdir):
    single = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return checkpoint.restore(workdir, storage.with_sharding(build.state_shapes(storage.read_config(workdir)), single))


def assert_equal(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(np.asarray(x), np.asarray(y)), a, b)


def at_step(run, step, workdir):
    """A copy of a run as it was at a step."""
    shutil.copytree(run, workdir)
    for saved in checkpoint.steps(workdir):
        if saved > step:
            shutil.rmtree(workdir / "checkpoints" / str(saved))
    lines = (workdir / "metrics.jsonl").read_text().splitlines(keepends=True)
    (workdir / "metrics.jsonl").write_text("".join(lines[:step]))
    return workdir


@pytest.fixture
def alone(tfds_dir, monkeypatch):
    """A function that trains in one process, this one, with so many devices."""
    all_of_them = jax.devices()

    def alone(workdir, devices, flags=()):
        monkeypatch.setattr(jax, "devices", lambda *backend: all_of_them[:devices])
        assert cli.main(list(train(workdir, tfds_dir, flags))) == 0

    return alone


@pytest.fixture(scope="module")
def pair(tmp_path_factory, tfds_dir):
    """A run of two processes from start to end, its params shared out between them."""
    workdir = tmp_path_factory.mktemp("runs") / "pair"
    statuses, texts, lines = ended(start_all(workdir, tfds_dir, 2, flags=("--mesh.fsdp", "2")))
    assert statuses == [0, 0], texts
    assert lines == [[], []]
    assert f"20 samples of step 20: {workdir / 'samples.png'}" in texts[0][0]
    assert "samples" not in texts[1][0]
    assert "training" in texts[0][1]
    assert texts[1][1] == ""
    assert checkpoint.steps(workdir) == [5, 10, 15, 20]
    return workdir


@pytest.mark.slow
def test_two_processes_are_one_with_two_devices(pair, alone, tmp_path):
    alone(tmp_path, 2)
    assert [line["step"] for line in metrics(pair)] == list(range(1, 21))
    for name in ("loss", "grad_norm", "param_norm"):
        one, two = ([line[name] for line in metrics(workdir)] for workdir in (tmp_path, pair))
        np.testing.assert_allclose(two, one, rtol=2e-6)


@pytest.mark.slow
def test_two_processes_draw_the_grid_that_one_device_draws(pair, tmp_path, monkeypatch):
    """In batches of seven, of which the second is made by the second process."""
    drawn, devices = Image.open(pair / "samples" / "step_0000010.png"), jax.devices()
    monkeypatch.setattr(jax, "devices", lambda *backend: devices[:1])
    assert cli.main(["sample", str(at_step(pair, 10, tmp_path / "run")), "--num", "20", "--out", str(tmp_path / "one.png")]) == 0
    np.testing.assert_array_equal(np.asarray(drawn), np.asarray(Image.open(tmp_path / "one.png")))


@pytest.mark.slow
def test_four_processes_go_on_as_one_with_four_devices_until_one_raises(pair, alone, tfds_dir, tmp_path):
    """And then one with fewer: after step 10 of the run of two the losses are those that it went on to have itself."""
    reference, workdir = (at_step(pair, 10, tmp_path / name) for name in ("reference", "run"))
    alone(reference, 4, ("--mesh.fsdp", "4", "--sampling.every", "0"))
    begun = time.monotonic()
    flags = ("--mesh.fsdp", "4", "--checkpoint-every", "1")
    statuses, texts, lines = ended(start_all(workdir, tfds_dir, 4, flags, event="raise"))
    assert time.monotonic() - begun < 120  # and not the five minutes of a barrier at the interpreter's end
    assert statuses == [1] * 4, texts
    assert "\nValueError: a damaged record\njaxdiff: process 1 of 4: this is a bug" in texts[1][1]
    assert [("another process was lost" in line) for index in (0, 2, 3) for line in lines[index]] == [True] * 3
    assert 10 < checkpoint.steps(workdir)[-1] < 17
    together = metrics(workdir)
    alone(workdir, 1, ("--sampling.every", "0"))
    for name in ("loss", "grad_norm", "param_norm"):
        four, one, after, two = ([line[name] for line in lines] for lines in (together, *map(metrics, (reference, workdir, pair))))
        assert 11 < len(four) < 17
        np.testing.assert_allclose(four, one[: len(four)], rtol=2e-6)
        np.testing.assert_allclose(after, two, rtol=1e-4)


@pytest.mark.slow
def test_a_killed_process_ends_the_other_and_both_go_on_until_a_signal_to_one(pair, tfds_dir, tmp_path):
    """From the checkpoint before the newest, which is damaged; at the signal all save."""
    workdir = at_step(pair, 10, tmp_path / "run")
    flags = ("--mesh.fsdp", "2", "--checkpoint-every", "100")
    statuses, texts, (lines, _) = ended(start_all(workdir, tfds_dir, 2, flags, event="SIGKILL"))
    assert statuses == [1, -signal.SIGKILL]
    assert len(lines) == 1
    assert "process 0 of 2: another process was lost" in lines[0], texts[0][1]
    assert checkpoint.steps(workdir) == [5, 10]
    opt_state = workdir / "checkpoints" / "10" / "opt_state"
    largest = max((path for path in opt_state.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])
    (workdir / "checkpoints" / "12.orbax-checkpoint-tmp").mkdir()
    statuses, texts, lines = ended(start_all(workdir, tfds_dir, 2, ("--mesh.fsdp", "2"), event="SIGTERM"))
    assert statuses == [0, 0], texts
    assert lines == [[], []]
    assert "going back to the checkpoint before it" in texts[0][1]
    assert texts[1][1] == ""
    assert [path.name for path in (workdir / "damaged").iterdir()] == ["10-0"]
    assert not list((workdir / "checkpoints").glob("*tmp*"))
    step = checkpoint.steps(workdir)[-1]
    assert 10 < step < 15
    assert f"SIGTERM: saved step {step} of {workdir}; rerunning the same command resumes from there" in texts[0][0]
    losses, unbroken = ([line["loss"] for line in metrics(run)] for run in (workdir, pair))
    assert losses == unbroken[:step]
    assert_equal(*(state(at_step(run, 10, tmp_path / name)) for run, name in ((workdir, "resumed"), (pair, "unbroken"))))


@pytest.mark.slow
def test_a_frozen_process_ends_the_other_after_the_step_timeout(pair, tfds_dir, tmp_path):
    workdir = at_step(pair, 10, tmp_path / "run")
    both = start_all(workdir, tfds_dir, 2, ("--mesh.fsdp", "2", "--step-timeout", "3"), event="SIGSTOP")
    statuses, _, lines = ended(both[:1])
    both[1].kill()
    both[1].communicate()
    assert statuses == [1]
    assert [("process 0 of 2: no step was done in 3 s" in line) for line in lines[0]] == [True]
    assert "most recent call first" in (workdir / "hung-0.txt").read_text()


AGREES = """
import json, sys
import jax, numpy as np
from jaxdiff.io.errors import ConfigError
from jaxdiff.training import distributed, mesh, run_lock

index = int(sys.argv[2])
distributed.initialize(f"localhost:{sys.argv[1]}", 2, index)
over = jax.NamedSharding(mesh.make_mesh(-1, 2), jax.P(("data", "fsdp")))
whole = distributed.shard_from_host({"a": np.arange(4.0)}, {"a": over})
seen = [len(whole["a"].addressable_shards), whole["a"].addressable_shards[0].data.tolist()]
with distributed.first_process_first():
    seen.append(index)
found = [distributed.broadcast_from_first({"of": index}), distributed.all_true(True), distributed.all_true(index == 0)]
found += [distributed.is_first(), distributed.replicate_locally(whole)["a"].tolist()]
try:
    with run_lock.hold(sys.argv[3]), run_lock.hold(sys.argv[3]):
        pass
except ConfigError as error:  # which the second of two commands would get, on all its processes
    found.append(str(error).partition(" on ")[0])
print(json.dumps([seen, *found, distributed.line_prefix()]))
distributed.exit_together(0)
"""


@pytest.mark.slow
def test_two_processes_agree(tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        words = [sys.executable, "-c", AGREES, str(free.getsockname()[1])]
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": "1"}
    both = [
        subprocess.Popen([*words, index, "run"], stdout=subprocess.PIPE, text=True, env=environment, cwd=tmp_path) for index in "01"
    ]
    said = [json.loads(process.communicate(timeout=120)[0].splitlines()[-1]) for process in both]
    together = [{"of": 0}, True, False]
    refused = f"run is being written to by process {both[0].pid}"
    assert said == [
        [[1, [0.0, 1.0], 0], *together, True, [0.0, 1.0, 2.0, 3.0], refused, "process 0 of 2: "],
        [[1, [2.0, 3.0], 1], *together, False, [0.0, 1.0, 2.0, 3.0], refused, "process 1 of 2: "],
    ]


def test_in_which_environments_processes_find_each_other():
    step = {"SLURM_JOB_ID": "1", "SLURM_STEP_NODELIST": "node[1-2]", "SLURM_PROCID": "1"}
    for environment, found in (
        ({}, False),
        ({**step, "SLURM_NTASKS": "2"}, True),
        ({**step, "SLURM_NTASKS": "1"}, False),
        ({"SLURM_JOB_ID": "1", "SLURM_NTASKS": "4"}, False),  # inside an allocation, not started by srun
        ({"TPU_WORKER_HOSTNAMES": "10.0.0.1,10.0.0.2"}, True),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, False),
        ({"TPU_WORKER_HOSTNAMES": ""}, False),
    ):
        assert distributed.in_cluster(environment) == found, environment


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--num-processes", "2"), "give all of --coordinator HOST:PORT, --num-processes and --process-id, or none of them"),
        (("--coordinator", "here", "--num-processes", "2", "--process-id", "0"), "--coordinator must be HOST:PORT of process 0"),
        (("--coordinator", "a:1", "--num-processes", "2", "--process-id", "2"), "--process-id must be 0 to 1 of --num-processes 2"),
    ],
)
def test_wrong_flags_of_processes(capsys, tmp_path, flags, message):
    assert cli.main(["train", "configs/digits.py", "--workdir", str(tmp_path), *flags]) == 1
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


def test_what_does_not_end_in_time_ends_the_process():
    code = """
import sys, time
from jaxdiff.training import watchdog
with watchdog.deadline(0.5, "not in {:g} s") as postpone:
    time.sleep(0.3)
    postpone(0.5)
    time.sleep(0.3)
print("in time", flush=True)
with watchdog.deadline(0.2, "not in {:g} s"):
    time.sleep(60)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=50)
    assert result.stdout == "in time\n"
    assert result.stderr == "\njaxdiff: not in 0.2 s\n"
    assert result.returncode == 1


def test_one_process_alone_agrees_with_itself():
    assert distributed.broadcast_from_first({"a": [1]}) == {"a": [1]}
    assert distributed.is_first()
    assert not distributed.is_multi_process()
    assert distributed.line_prefix() == ""
    assert [distributed.all_true(well) for well in (True, False)] == [True, False]
