"""Who may call whom (the map of the house), and what importing jaxdiff may not bring along."""

import ast
import pathlib
import subprocess
import sys

import pytest

PACKAGE = pathlib.Path(__file__).parents[1] / "jaxdiff"
CORE = "arguments compilation process denoiser guidance editing cascade samplers losses targets objectives likelihood oracles"
MACHINERY = "data training evaluate interop"
LOWER = f"{CORE} models io {MACHINERY}"
ALLOWED = {  # rooms, and what they may import besides themselves
    "samplers losses targets": "arguments compilation denoiser process",  # do not know each other
    CORE: CORE,
    "models": "io",
    "io": "",
    "training data": "io",  # the training step knows no loss
    "interop": f"{CORE} models io",
    MACHINERY: LOWER,
    "app.config": "io",
    "app.build": f"{LOWER} app.config",
    "app.runs": f"{LOWER} app.config app.build",
    "app.report app.plan app.demo": f"{LOWER} app.config app.build app.runs",
    "app.cli __main__": f"{LOWER} app.config app.build app.runs app.report app.plan app.demo app.cli __version__",
}
LIBRARIES = {  # what a room may import besides us and the standard library; of others anything
    "likelihood": {"jax", "numpy", "chex", "diffrax"},
    CORE: {"jax", "numpy", "chex"},
    "models": {"jax", "numpy", "flax"},
}
WINGS = {"core": CORE, "networks": "models", "machinery": f"io {MACHINERY}", "application": "app"}


def room(module):
    """`samplers` of jaxdiff.samplers.loop, `app.runs` of jaxdiff.app.runs.train."""
    parts = module.split(".")[1:]
    return ".".join(parts[: 2 if parts[:1] == ["app"] else 1])


def entry(table, name):
    """The first row of a table that names a room."""
    return next((row for names, row in table.items() if name in names.split()), None)


def imported(path):
    """Top-level names of libraries, and modules of jaxdiff, that a file imports anywhere."""
    libraries, own = set(), set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [
                f"{node.module}.{alias.name}" if node.module in ("jaxdiff", "jaxdiff.app") else node.module for alias in node.names
            ]
        else:
            continue
        for name in names:
            if name.split(".")[0] == "jaxdiff":
                own.add(name)
            elif name.split(".")[0] not in sys.stdlib_module_names:
                libraries.add(name.split(".")[0])
    return libraries, own


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_one_way(path):
    here = room(".".join(["jaxdiff", *path.relative_to(PACKAGE).with_suffix("").parts]))
    if here in ("__init__", "app.__init__"):
        return
    libraries, own = imported(path)
    assert {room(module) for module in own} <= {here, "", *entry(ALLOWED, here).split()}
    assert libraries <= (entry(LIBRARIES, here) or libraries)


@pytest.mark.parametrize("rooms", WINGS.values(), ids=WINGS)
def test_no_two_modules_of_a_wing_share_a_name(rooms):
    places = [place for name in rooms.split() for place in (PACKAGE / name, PACKAGE / f"{name}.py") if place.exists()]
    paths = [path for place in places for path in ([place] if place.is_file() else place.rglob("*.py"))]
    names = [path.stem for path in paths if path.stem != "__init__"] + [
        path.parent.name for path in paths if path.stem == "__init__"
    ]
    assert [name for name in sorted(set(names)) if names.count(name) > 1] == []


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
start = time.process_time()
import jaxdiff
print(time.process_time() - start)
print(sorted({"tensorflow_datasets", "orbax", "matplotlib", "grain", "flax", "PIL", "sklearn", "tensorflow"} & set(sys.modules)))
"""
    seconds, heavy = python(code).stdout.splitlines()
    assert heavy == "[]"
    assert float(seconds) < 1
