"""What is installed, which devices there are, where data and caches are; and what is wrong with any of it."""

from __future__ import annotations

import importlib.metadata
import json
import os
import pathlib
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from packaging.requirements import Requirement

from jaxdiff.io import files

SHOWN = ("jaxdiff", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "tensorflow-datasets", "grain", "numpy")
BESIDE = ("libtpu", "jax-cuda12-plugin", "jax-cuda13-plugin", "jax-cuda12-pjrt", "jax-cuda13-pjrt", "jax-rocm7-plugin")
EXTRAS = {"libtpu": "tpu", "jax-cuda12-plugin": "cuda12", "jax-cuda13-plugin": "cuda13"}  # of jax, that bring these
TPUS = ("0x0027", "0x0056", "0x005e", "0x0062", "0x0063", "0x006f", "0x0076")  # PCI devices of Google's that are no network card
PATIENCE = 120  # seconds in which devices must be found
ROOM = 2**30  # bytes of disk below which little can be trained
PROBE = """
import json, jax
found = [(each.platform, each.device_kind, (each.memory_stats() or {}).get("bytes_limit", 0)) for each in jax.devices()]
print("devices", json.dumps(found))
"""


@dataclass(frozen=True)
class Findings:
    """Lines about each part of the machine, and one line per problem, which ends with the command that fixes it."""

    parts: dict[str, list[str]]
    problems: list[str]

    def __str__(self) -> str:
        lines = [line for part, found in self.parts.items() for line in (part, *(f"  {each}" for each in found))]
        return "\n".join(
            [*lines, *(f"wrong: {each}" for each in self.problems or ()), *(() if self.problems else ("nothing is wrong",))]
        )


def examine(data_dir: str | None = None) -> Findings:
    """The findings on this machine; `data_dir` is the directory of tensorflow-datasets, by default its own."""
    versions = {name: version for name in (*SHOWN, *BESIDE) if (version := _version(name))}
    devices, reason = _devices()
    data = pathlib.Path(data_dir or os.environ.get("TFDS_DATA_DIR") or pathlib.Path.home() / "tensorflow_datasets")
    disks = {"here": pathlib.Path.cwd(), "data": data, "caches": files.cache_dir()}
    parts = {
        "versions": [f"python {platform.python_version()}", *(f"{name} {version}" for name, version in versions.items())],
        "devices": (_counted(devices) or ["none"]) + [f"JAX_PLATFORMS is {asked}" for asked in _asked()],
        f"data sets in {data}": _prepared(data) or ["none yet; digits is prepared on first use, others by: jaxdiff data mnist"],
        f"caches in {files.cache_dir()}": _sizes(files.cache_dir()) or ["none yet"],
        "disk": [f"{name}: {_free(path) / 1e9:.1f} GB free" for name, path in disks.items()],
    }
    problems = [*_unfitting("jax", versions), *_unfitting("jaxdiff", versions), *_unused(devices, reason, versions)]
    return Findings(parts, [*problems, *(problem for name, path in disks.items() for problem in _cramped(name, path))])


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _unfitting(name: str, versions: dict[str, str]) -> Iterator[str]:
    """Requirements of a package that are missing or installed in another version."""
    extras = [EXTRAS[each] for each in versions if each in EXTRAS] if name == "jax" else []
    told = set()
    for text in (importlib.metadata.requires(name) or []) if name in versions else []:
        wanted = Requirement(text)
        needed = wanted.marker is None or wanted.marker.evaluate({"extra": ""})
        extra = next((each for each in extras if wanted.marker and wanted.marker.evaluate({"extra": each}) and not needed), "")
        there = _version(wanted.name)
        if not (needed or extra) or wanted.name in told or (there and wanted.specifier.contains(there, prereleases=True)):
            continue
        told.add(wanted.name)
        found = f"{wanted.name} is {there}" if there else f"{wanted.name} is missing"
        where = f"{name}[{extra}]" if extra else name
        how = f"{where}=={versions[name]}" if name == "jax" else f"{wanted.name}{wanted.specifier}"
        yield f'{found}, {name} {versions[name]} wants {wanted.specifier or "any"}; type: pip install -U "{how}"'


def _devices() -> tuple[list[tuple[str, str, int]], str]:
    """Platform, kind and bytes of each device that JAX finds, or why it fails; in a child process, since libtpu may abort."""
    try:
        child = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        return [], f"no answer after {PATIENCE} s; another process may hold the devices"
    found = re.search(r"^devices (.*)$", child.stdout, re.MULTILINE)
    said = [line for line in child.stderr.splitlines() if line.strip() and not line.startswith(" ")]
    return ([tuple(each) for each in json.loads(found[1])] if found else []), said[-1][:200] if said else ""


def _counted(devices: list[tuple[str, str, int]]) -> list[str]:
    kinds = dict.fromkeys(devices)
    memory = {kind: f", {kind[2] / 2**30:.1f} GiB each" if kind[2] else "" for kind in kinds}
    return [f"{devices.count(kind)} {kind[0]} ({kind[1]}{memory[kind]})" for kind in kinds]


def _asked() -> list[str]:
    """JAX_PLATFORMS, if it is set."""
    return [asked] if (asked := os.environ.get("JAX_PLATFORMS")) else []


def _unused(devices: list[tuple[str, str, int]], reason: str, versions: dict[str, str]) -> Iterator[str]:
    """Problems with devices: none at all, or some that JAX does not use."""
    asked, found = "".join(_asked()), {platform for platform, _, _ in devices}
    if not devices:
        unset = "; type: unset JAX_PLATFORMS" if asked else "; type: python -c 'import jax; jax.devices()' for all it says"
        yield f"JAX finds no device ({reason}){unset}"
    elsewhere = bool(asked) and "cpu" in asked.split(",")[0]  # which is deliberate
    cuda = _driver()
    if cuda and not elsewhere and "gpu" not in found:
        plugin = next((name for name in versions if name.startswith("jax-cuda")), None)
        wanted = f"jax[cuda{max(12, min(cuda, 13))}]=={versions.get('jax', '')}"
        why = f"its plugin {plugin} {versions[plugin]} does not start ({reason})" if plugin else "jax has no plugin for it"
        yield f'an NVIDIA GPU is here, but {why}; type: pip install -U "{wanted}"'
    if _tpu() and not elsewhere and "tpu" not in found:
        why = f"libtpu {versions['libtpu']} does not start ({reason})" if "libtpu" in versions else "libtpu is not installed"
        yield f'a TPU is here, but {why}; type: pip install -U "jax[tpu]=={versions.get("jax", "")}"'


def _driver() -> int:
    """The major version of CUDA that the NVIDIA driver supports; 0 without a GPU."""
    if not shutil.which("nvidia-smi"):
        return 12 * pathlib.Path("/dev/nvidia0").exists()
    said = subprocess.run(["nvidia-smi"], capture_output=True, text=True).stdout
    found = re.search(r"CUDA Version: (\d+)", said)
    return int(found[1]) if found else 12 * pathlib.Path("/dev/nvidia0").exists()


def _tpu() -> bool:
    """Whether this machine has a TPU."""
    cards = pathlib.Path("/sys/bus/pci/devices").glob("*/vendor")
    google = [card.parent / "device" for card in cards if card.read_text().strip() == "0x1ae0"]
    return any(pathlib.Path("/dev").glob("accel*")) or any(path.read_text().strip() in TPUS for path in google)


def _prepared(directory: pathlib.Path) -> list[str]:
    """The data sets that tensorflow-datasets has prepared there, with their sizes."""
    found = sorted(each.parent for depth in ("*/*", "*/*/*") for each in directory.glob(f"{depth}/dataset_info.json"))
    return [f"{path.relative_to(directory)}: {_bytes([path]) / 1e6:,.1f} MB" for path in found]


def _sizes(directory: pathlib.Path) -> list[str]:
    found = sorted(directory.iterdir()) if directory.is_dir() else []
    return [f"{path.name}: {_bytes([path]) / 1e6:,.1f} MB" for path in found]


def _bytes(paths: Iterable[pathlib.Path]) -> int:
    return sum(each.stat().st_size for path in paths for each in (path.rglob("*") if path.is_dir() else [path]) if each.is_file())


def _there(path: pathlib.Path) -> pathlib.Path:
    """The directory itself, or its nearest parent that exists."""
    return next(each for each in (path.absolute(), *path.absolute().parents) if each.is_dir())


def _free(path: pathlib.Path) -> int:
    return shutil.disk_usage(_there(path)).free


def _cramped(name: str, path: pathlib.Path) -> Iterator[str]:
    """Problems with writing to a directory."""
    if path.exists() and not path.is_dir():
        yield f"{path} ({name}) is not a directory; name one"
        return
    how: Any = {"here": "cd elsewhere", "data": "give --data-dir, or set TFDS_DATA_DIR", "caches": "set JAXDIFF_CACHE_DIR"}
    if not os.access(_there(path), os.W_OK):
        yield f"{path} ({name}) cannot be written; {how[name]}"
    if _free(path) < ROOM:
        yield f"the disk of {path} ({name}) has {_free(path) / 1e6:.0f} MB left; make room, or {how[name]}"
