"""`jaxdiff doctor`: what is installed, which devices there are, where data and caches are, and what is wrong with any of it."""

import importlib.metadata
import json
import os
import pathlib
import platform
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from packaging.requirements import Requirement

from jaxdiff.app.cli.flags import DataDir
from jaxdiff.io import files, paths, progress

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
class Doctor:
    """Print versions, devices, directories of data and caches, and problems with any of them; exit status 1 if there are some.

    Example: jaxdiff doctor
    """

    data_dir: DataDir = None


def doctor(args: Doctor) -> int:
    versions = {name: version for name in (*SHOWN, *BESIDE) if (version := _version(name))}
    with progress.waiting("looking for devices"):
        devices, reason = _devices()
    counted = [
        f"{number} {backend} ({kind}{f', {size / 2**30:.1f} GiB each' if size else ''})"
        for (backend, kind, size), number in Counter(devices).items()
    ]
    asked, cache = os.environ.get("JAX_PLATFORMS"), files.cache_dir()
    data = paths.path(args.data_dir or os.environ.get("TFDS_DATA_DIR") or pathlib.Path.home() / "tensorflow_datasets")
    disks = {"here": pathlib.Path.cwd(), "data": data, "caches": cache}
    disks = {name: path for name, path in disks.items() if not paths.in_bucket(path)}
    parts = {
        "versions": [f"python {platform.python_version()}", *(f"{name} {version}" for name, version in versions.items())],
        "devices": (counted or ["none"]) + ([f"JAX_PLATFORMS is {asked}"] if asked else []),
        f"data sets in {data}": _prepared(data)
        or ["none yet; digits and digits_text are prepared on first use, others by: jaxdiff data mnist, or data import"],
        f"caches in {cache}": _sizes(cache, cache.iterdir() if cache.is_dir() else []) or ["none yet"],
        "disk": [f"{name}: {shutil.disk_usage(_existing(path)).free / 1e9:.1f} GB free" for name, path in disks.items()],
    }
    problems = [*_unfitting("jax", versions), *_unfitting("jaxdiff", versions), *_unused(devices, reason, versions)]
    problems += [problem for name, path in disks.items() for problem in _cramped(name, path)]
    for part, lines in parts.items():
        print("\n".join([part, *(f"  {line}" for line in lines)]))
    print("\n".join(f"wrong: {problem}" for problem in problems) or "nothing is wrong")
    return 1 if problems else 0


def _version(name: str) -> str | None:
    return next((each.version for each in importlib.metadata.distributions(name=name)), None)


def _unfitting(name: str, versions: dict[str, str]) -> Iterator[str]:
    """Requirements of a package that are missing or installed in another version."""
    extras = [EXTRAS[each] for each in versions if each in EXTRAS] if name == "jax" else []
    told = set()
    for text in (importlib.metadata.requires(name) or []) if name in versions else []:
        wanted = Requirement(text)
        needed = wanted.marker is None or wanted.marker.evaluate({"extra": ""})
        extra = next((each for each in extras if wanted.marker and wanted.marker.evaluate({"extra": each}) and not needed), "")
        installed = _version(wanted.name)
        fits = installed and wanted.specifier.contains(installed, prereleases=True)
        if not (needed or extra) or wanted.name in told or fits:
            continue
        told.add(wanted.name)
        state = f"is {installed}" if installed else "is missing"
        target = f"{name}[{extra}]" if extra else name
        target = f"{target}=={versions[name]}" if name == "jax" else f"{wanted.name}{wanted.specifier}"
        yield f'{wanted.name} {state}, {name} {versions[name]} wants {wanted.specifier or "any"}; type: pip install -U "{target}"'


def _devices() -> tuple[list[tuple[str, str, int]], str]:
    """Platform, kind and bytes of each device that JAX finds, or why it fails; in a child process, since libtpu may abort."""
    try:
        child = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        return [], f"no answer after {PATIENCE} s; another process may hold the devices"
    devices = re.search(r"^devices (.*)$", child.stdout, re.MULTILINE)
    said = [line for line in child.stderr.splitlines() if line.strip() and not line.startswith(" ")]
    return ([tuple(each) for each in json.loads(devices[1])] if devices else []), said[-1][:200] if said else ""


def _unused(devices: list[tuple[str, str, int]], reason: str, versions: dict[str, str]) -> Iterator[str]:
    """Problems with devices: none at all, or some that JAX does not use."""
    asked, platforms = os.environ.get("JAX_PLATFORMS", ""), {platform for platform, _, _ in devices}
    if not devices:
        unset = "; type: unset JAX_PLATFORMS" if asked else "; type: python -c 'import jax; jax.devices()' for all it says"
        yield f"JAX finds no device ({reason}){unset}"
    if "cpu" in asked.split(",")[0]:  # which is deliberate
        return
    cuda = _driver()
    if cuda and "gpu" not in platforms:
        plugin = next((name for name in versions if name.startswith("jax-cuda")), None)
        wanted = f"jax[cuda{max(12, min(cuda, 13))}]=={versions.get('jax', '')}"
        why = f"its plugin {plugin} {versions[plugin]} does not start ({reason})" if plugin else "jax has no plugin for it"
        yield f'an NVIDIA GPU is here, but {why}; type: pip install -U "{wanted}"'
    if _tpu() and "tpu" not in platforms:
        why = f"libtpu {versions['libtpu']} does not start ({reason})" if "libtpu" in versions else "libtpu is not installed"
        yield f'a TPU is here, but {why}; type: pip install -U "jax[tpu]=={versions.get("jax", "")}"'


def _driver() -> int:
    """The major version of CUDA that the NVIDIA driver supports; 0 without a GPU."""
    said = subprocess.run(["nvidia-smi"], capture_output=True, text=True).stdout if shutil.which("nvidia-smi") else ""
    version = re.search(r"CUDA Version: (\d+)", said)
    return int(version[1]) if version else 12 * pathlib.Path("/dev/nvidia0").exists()


def _tpu() -> bool:
    """Whether this machine has a TPU."""
    cards = pathlib.Path("/sys/bus/pci/devices").glob("*/vendor")
    google = [card.parent / "device" for card in cards if card.read_text().strip() == "0x1ae0"]
    return any(pathlib.Path("/dev").glob("accel*")) or any(path.read_text().strip() in TPUS for path in google)


def _prepared(directory: pathlib.Path) -> list[str]:
    """The data sets that tensorflow-datasets has prepared there, with their sizes."""
    infos = [info for depth in ("*/*", "*/*/*") for info in directory.glob(f"{depth}/dataset_info.json")]
    return _sizes(directory, [info.parent for info in infos])


def _sizes(directory: pathlib.Path, within: Iterable[pathlib.Path]) -> list[str]:
    """The files or directories by their names in `directory`, with their sizes."""
    return [f"{path.relative_to(directory)}: {paths.total_bytes(path) / 1e6:,.1f} MB" for path in sorted(within)]


def _existing(path: pathlib.Path) -> pathlib.Path:
    """The directory itself, or its nearest parent that exists."""
    return next(each for each in (path.absolute(), *path.absolute().parents) if each.is_dir())


def _cramped(name: str, path: pathlib.Path) -> Iterator[str]:
    """Problems with writing to a directory."""
    if path.exists() and not path.is_dir():
        yield f"{path} ({name}) is not a directory; name one"
        return
    how = {"here": "cd elsewhere", "data": "give --data-dir, or set TFDS_DATA_DIR", "caches": "set JAXDIFF_CACHE_DIR"}[name]
    if not os.access(_existing(path), os.W_OK):
        yield f"{path} ({name}) cannot be written; {how}"
    if (free := shutil.disk_usage(_existing(path)).free) < ROOM:
        yield f"the disk of {path} ({name}) has {free / 1e6:.0f} MB left; make room, or {how}"
