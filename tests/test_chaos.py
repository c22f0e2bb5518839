"""What may happen to a run: kills at any moment, by the chaos script; a full disk, a directory that cannot be written."""

import pathlib
import re
import runpy
import subprocess
import sys
import types

import forked
import pytest

from jaxdiff.app import cli
from jaxdiff.training import checkpoint

TINY = (
    *("--data.batch-size", "8", "--model.channels", "100", "--model.attention", "--steps", "40"),
    *("--sampling.every", "0", "--sampling.num", "10", "--sampling.steps", "2", "--evaluation.num", "0", "--checkpoint-every", "2"),
    *("--keep", "99"),
)
TESTS = pathlib.Path(__file__).parent


@pytest.mark.slow
def test_a_run_that_is_killed_at_any_moment_ends_as_one_that_is_not(tfds_dir, small_unet, monkeypatch, capsys):
    chaos = types.SimpleNamespace(**runpy.run_path(str(TESTS.parent / "benchmarks" / "chaos.py")))
    forking = types.SimpleNamespace(Popen=lambda command, stdout, stderr, env: forked.start(command[3:], stdout.name, stderr.name))
    monkeypatch.setitem(chaos.start.__globals__, "subprocess", forking)
    monkeypatch.setattr(sys, "argv", ["chaos.py", "--kills", "2", "--every", "5", "--data-dir", tfds_dir])
    with pytest.raises(SystemExit) as ended:
        chaos.main()
    said = capsys.readouterr().out
    assert ended.value.code == 0, said
    assert "bit-equal: params yes, ema yes, opt_state yes, step yes, metrics yes" in said
    kills, in_saves, lost = map(int, re.search(r"(\d+) kills, (\d+) of them in saves, at most (\d+) steps", said).groups())
    assert kills == 2
    assert in_saves >= 1
    assert lost <= 2 * 5  # a save in the background and the steps since


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 8 MB."""
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "none", str(tmp_path)], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"only root may mount: {mounted.stderr}")
    yield tmp_path
    subprocess.run(["umount", "--lazy", str(tmp_path)], check=True)


def test_a_full_disk_is_said_in_one_line_and_older_checkpoints_stay(small_disk, tfds_dir, capsys, one_device, small_unet):
    workdir = small_disk / "run"
    assert cli.main(["train", "configs/digits.py", "--workdir", str(workdir), "--data-dir", tfds_dir, *TINY]) == 1
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert re.search(r"jaxdiff: a checkpoint in .* could not be saved: it may take .* MB, the disk has .* MB left; make room", line)
    assert checkpoint.steps(workdir)[0] == 2
    assert not list((workdir / "checkpoints").glob("*tmp*"))


def test_a_directory_that_cannot_be_written_is_said_before_anything_is_computed(capsys, tfds_dir):
    assert cli.main(["train", "configs/digits.py", "--workdir", "/proc/run", "--data-dir", tfds_dir, *TINY]) == 1
    line = capsys.readouterr().err.splitlines()[-1]  # below a progress bar, where reading the data takes long
    assert line == "jaxdiff: /proc/run cannot be written (No such file or directory); choose another --workdir"
