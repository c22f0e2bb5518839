"""The doctor: what it finds on a machine that is in order, and on ones that are not."""

import os
import subprocess
import sys

import pytest

from jaxdiff.app import cli
from jaxdiff.app.cli import doctor_command as doctor


def examined(tmp_path, **environment):
    """Status and text of a doctor in a process of its own."""
    settled = {"JAXDIFF_CACHE_DIR": str(tmp_path / "cache"), "TFDS_DATA_DIR": str(tmp_path / "data"), "JAX_PLATFORMS": "cpu"}
    child = subprocess.run(
        [sys.executable, "-m", "jaxdiff", "doctor", "--quiet"],
        capture_output=True,
        text=True,
        env={**os.environ, **settled, **environment},
    )
    return child.returncode, child.stdout, child.stderr


def installed(folder, name, version):
    """A folder for PYTHONPATH in which a package of that version says that it is installed."""
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    return os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])


def test_a_machine_in_order(tmp_path, capsys, tfds_dir):
    (tmp_path / "cache" / "judges").mkdir(parents=True)
    (tmp_path / "cache" / "judges" / "one").write_bytes(bytes(3_000_000))
    status, out, err = examined(tmp_path)
    assert (status, err) == (0, "")
    assert out.endswith("nothing is wrong\n")
    assert "\n  judges: 3.0 MB\n" in out
    assert "cpu (cpu)" in out
    assert "JAX_PLATFORMS is cpu" in out
    for name in ("python", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "tensorflow-datasets", "grain"):
        assert f"\n  {name} " in out


def test_prepared_data_sets_are_listed(tmp_path):
    from jaxdiff import data

    data.load_split("digits", "test", (8, 8, 1), data_dir=str(tmp_path))
    listed = doctor._prepared(tmp_path)
    assert len(listed) == 1
    assert listed[0].startswith("digits/1.0.0: ")


@pytest.mark.parametrize(
    ("name", "version", "said"),
    [
        ("libtpu", "0.0.1", 'libtpu is 0.0.1, jax {jax} wants ==0.0.*; type: pip install -U "jax[tpu]=={jax}"'),
        ("jaxlib", "0.1.2", 'jaxlib is 0.1.2, jax {jax} wants *; type: pip install -U "jax=={jax}"'),
        ("jax-cuda13-plugin", "0.4.0", 'jax-cuda13-plugin is 0.4.0, jax {jax} wants *; type: pip install -U "jax[cuda13]=={jax}"'),
    ],
)
def test_another_version_than_jax_wants(tmp_path, monkeypatch, name, version, said):
    import jax

    installed(tmp_path, name, version)
    monkeypatch.syspath_prepend(str(tmp_path))
    first, last = said.replace("{jax}", jax.__version__).split("*")
    lines = list(doctor._unfitting("jax", {"jax": jax.__version__, name: version}))
    assert any(line.startswith(first) and line.endswith(last) for line in lines), lines


def test_another_libtpu_is_told_with_what_to_type(tmp_path):
    status, out, _ = examined(tmp_path, PYTHONPATH=installed(tmp_path / "site", "libtpu", "0.0.1"))
    assert status == 1
    last = out.splitlines()[-1]
    assert last.startswith("wrong: libtpu is 0.0.1, jax ")
    assert 'type: pip install -U "jax[tpu]==' in last


def test_what_jaxdiff_requires_and_is_too_old_or_absent(tmp_path, monkeypatch):
    for name, version in (("jaxdiff", "9.0"), ("optax", "0.0.1")):
        installed(tmp_path, name, version)
    with (tmp_path / "jaxdiff-9.0.dist-info" / "METADATA").open("a") as file:
        file.write('Requires-Dist: optax>=0.2\nRequires-Dist: not-there-at-all>=3\nRequires-Dist: neither-this; extra == "test"\n')
    monkeypatch.syspath_prepend(str(tmp_path))
    assert list(doctor._unfitting("jaxdiff", {"jaxdiff": "9.0"})) == [
        'optax is 0.0.1, jaxdiff 9.0 wants >=0.2; type: pip install -U "optax>=0.2"',
        'not-there-at-all is missing, jaxdiff 9.0 wants >=3; type: pip install -U "not-there-at-all>=3"',
    ]


def test_a_platform_that_is_not_there(tmp_path):
    status, out, _ = examined(tmp_path, JAX_PLATFORMS="tpu")
    assert status == 1
    assert "wrong: JAX finds no device (RuntimeError: Unable to initialize backend 'tpu'" in out
    assert "type: unset JAX_PLATFORMS" in out


@pytest.mark.parametrize(
    ("driver", "versions", "said"),
    [
        ("CUDA Version: 13.1", {"jax": "1.0"}, 'jax has no plugin for it; type: pip install -U "jax[cuda13]==1.0"'),
        ("CUDA Version: 12.4", {"jax": "1.0"}, 'jax has no plugin for it; type: pip install -U "jax[cuda12]==1.0"'),
        ("CUDA Version: 12.4", {"jax": "1.0", "jax-cuda12-plugin": "0.9"}, "its plugin jax-cuda12-plugin 0.9 does not start"),
    ],
)
def test_a_gpu_that_jax_does_not_use(tmp_path, monkeypatch, driver, versions, said):
    (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\necho '| {driver} |'\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    lines = list(doctor._unused([("cpu", "cpu", 0)], "", versions))
    assert len(lines) == 1
    assert lines[0].startswith("an NVIDIA GPU is here, but ")
    assert said in lines[0]
    assert list(doctor._unused([("gpu", "NVIDIA H200", 0)], "", versions)) == []
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert list(doctor._unused([("cpu", "cpu", 0)], "", versions)) == []


def test_directories_that_are_none_or_full(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    assert list(doctor._cramped("data", tmp_path / "file")) == [f"{tmp_path / 'file'} (data) is not a directory; name one"]
    assert list(doctor._cramped("data", tmp_path / "not" / "yet")) == []
    monkeypatch.setattr(doctor, "ROOM", 2**80)
    assert "MB left; make room, or set JAXDIFF_CACHE_DIR" in next(doctor._cramped("caches", tmp_path))
    assert cli.main(["doctor", "--quiet", "--data-dir", str(tmp_path / "file")]) == 1
