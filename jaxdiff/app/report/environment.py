"""Where and by what a page is made."""

from __future__ import annotations

import collections
import datetime
import importlib.metadata
import pathlib
import platform
import subprocess

import jax

import jaxdiff

LIBRARIES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "tensorflow-datasets", "numpy")


def environment() -> dict[str, str]:
    """Versions, devices and the moment, by name; without what cannot be told."""
    kinds = collections.Counter(device.device_kind for device in jax.devices())
    versions = {"jaxdiff": jaxdiff.__version__, "jaxdiff's git commit": _commit(), "Python": platform.python_version()}
    for name in LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    devices = ", ".join(f"{number} x {kind}" for kind, number in kinds.items())
    system = f"{platform.system()} {platform.release()}, {platform.machine()}"
    moment = datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")
    return {
        name: value
        for name, value in {
            "made": moment,
            "devices": f"{devices} ({jax.default_backend()} backend)",
            **versions,
            "system": system,
        }.items()
        if value
    }


def _commit() -> str:
    """The commit of the repository that the package is run from; empty where it is none."""
    package = pathlib.Path(jaxdiff.__file__).parents[1]
    if not (package / ".git").exists():
        return ""
    git = ["git", "-C", str(package)]
    try:
        commit = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, timeout=10)
        changed = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return commit.stdout.strip() + (" with changes" if changed.stdout.strip() else "") if commit.returncode == 0 else ""
