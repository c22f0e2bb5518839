"""Who may call whom (the map of the house), and what importing jaxdiff may not bring along."""

import ast
import pathlib
import subprocess
import sys

import pytest

PACKAGE = pathlib.Path(__file__).parents[1] / "jaxdiff"
DENOISERS = {"denoiser", "process"}
ALLOWED = {
    "process": {"process"},
    "denoiser": {"process"},
    "guidance": DENOISERS,
    "samplers": {"samplers", *DENOISERS},
    "losses": DENOISERS,
    "targets": DENOISERS,
    "oracles": {"oracles", "samplers", *DENOISERS},
    "editing": {"samplers", *DENOISERS},
    "likelihood": {"likelihood", "samplers", *DENOISERS},
    "objectives": {"objectives", "likelihood", "losses", "targets", "guidance", *DENOISERS},
    "cascade": {"objectives", "samplers", *DENOISERS},
    "train": {"errors"},
    "errors": set(),
    "files": set(),
    "progress": set(),
    "mesh": {"sharding", "train"},
    "sharding": set(),
    "watch": set(),
    "processes": {"errors", "train", "watch"},
    "checkpoint": {"errors", "process", "processes", "progress", "train"},
    "config": {"config", "errors"},
    "metrics": {"files", "processes"},
    "pictures": {"files"},
    "models": {"models", "weights"},
    "weights": {"errors"},
    "datasets": {"datasets", "errors"},
    "data": {"config", "datasets", "errors", "progress"},
    "evaluate": {"evaluate", "config", "data", "errors", "files", "mesh", "models", "pictures", "progress", "train"},
    "loading": {"errors", "samplers"},
    "trained": {"config", "denoiser", "errors", "lineage", "process", "recipe", "samplers"},
    "__main__": {"cli"},
    "recipe": {
        "recipe",
        "cascade",
        "config",
        "errors",
        "likelihood",
        "losses",
        "mesh",
        "models",
        "objectives",
        "samplers",
        "guidance",
        "targets",
        "train",
    }
    | DENOISERS,
    "run": {"autoencoding", "latents", "lineage", "checkpoint", "config", "errors", "files", "data", "mesh", "metrics"}
    | {"pictures", "processes", "profiling", "progress", "recipe", "rounds", "train"},
    "ladder": {"config", "errors", "files", "lineage", "pictures", "progress", "reports", "run", "stages"},
    "rounds": {"checkpoint", "config", "lineage", "mesh", "processes", "recipe", "train"},
    "reports": {"autoencoding", "config", "data", "evaluate", "files", "lineage", "pictures", "progress", "recipe", "run"},
    "latents": {"config", "data", "datasets", "errors", "lineage", "mesh", "progress", "recipe"},
    "stages": {"checkpoint", "config", "errors", "lineage"},
    "lineage": {"checkpoint", "config", "errors", "files", "process", "processes", "recipe", "train", "weights"},
    "autoencoding": {"config", "data", "objectives", "pictures", "processes", "progress", "recipe", "train"},
    "bits": {"config", "data", "errors", "files", "likelihood", "process", "progress", "recipe", "samplers"},
    "page": {"page", "checkpoint", "config", "data", "errors", "files", "ladder", "lineage", "metrics", "pictures"}
    | {"jaxdiff", "progress", "recipe", "reports", "run"},
    "plan": {"config", "errors", "files", "lineage", "plan", "progress", "recipe"},
    "profiling": {"errors"},
    "doctor": {"files"},
    "cli": {
        "__version__",
        "cli",
        "plan",
        "bits",
        "checkpoint",
        "files",
        "ladder",
        "latents",
        "lineage",
        "stages",
        "loading",
        "oracles",
        "page",
        "config",
        "doctor",
        "errors",
        "evaluate",
        "datasets",
        "pictures",
        "processes",
        "profiling",
        "progress",
        "reports",
        "run",
        "train",
    },
}
CORE = (
    "process",
    "denoiser",
    "guidance",
    "samplers",
    "losses",
    "targets",
    "oracles",
    "editing",
    "likelihood",
    "objectives",
    "cascade",
)
LIBRARIES = {
    **{name: {"jax", "numpy", "chex"} for name in CORE},
    "likelihood": {"jax", "numpy", "diffrax"},
    "models": {"jax", "flax"},
    "train": {"jax", "numpy", "chex", "optax"},
}


def imported(path):
    """Top-level names of libraries, and modules of jaxdiff, that a file imports anywhere."""
    libraries, own = set(), set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" if node.module == "jaxdiff" else node.module for alias in node.names]
        else:
            continue
        for name in names:
            first, *rest = name.split(".")
            if first == "jaxdiff":
                own.add(rest[0] if rest else "jaxdiff")
            elif first not in sys.stdlib_module_names:
                libraries.add(first)
    return libraries, own


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_one_way(path):
    room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    libraries, own = imported(path)
    if room != "__init__":
        assert own <= ALLOWED[room]
        assert libraries <= LIBRARIES.get(room, libraries)


def python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


def test_the_core_works_with_flax_blocked():
    code = """
import sys
for name in ("flax", "optax", "orbax", "tensorflow_datasets", "grain"): sys.modules[name] = None
import jax, jaxdiff as jd
from jaxdiff import oracles
denoise = oracles.denoiser(oracles.gaussian([1.0], 0.1))
x = jd.sample(jd.ddim(), denoise, jax.numpy.ones((2, 1)), jd.grid(jd.cosine(), 4), jax.random.key(0))
print(x.shape)
"""
    result = python(code)
    assert result.stdout.strip() == "(2, 1)", result.stderr


def test_import_is_light():
    code = """
import sys, time, jax
start = time.perf_counter()
import jaxdiff
print(time.perf_counter() - start)
print(sorted({"tensorflow_datasets", "orbax", "matplotlib", "grain", "flax", "PIL", "sklearn", "tensorflow"} & set(sys.modules)))
"""
    seconds, heavy = python(code).stdout.splitlines()
    assert heavy == "[]"
    assert float(seconds) < 1
