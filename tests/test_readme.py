"""The README's Python runs as it stands, each block by itself."""

import pathlib
import re

import pytest

README = (pathlib.Path(__file__).parents[1] / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_example_runs(number, compilations):
    """Twice; what calls no `jit` compiles nothing the second time."""
    exec(BLOCKS[number], {})
    if "jax.jit" not in BLOCKS[number]:
        compilations.clear()
        exec(BLOCKS[number], {})
        assert not compilations


def test_every_file_is_on_the_map():
    package = pathlib.Path(__file__).parents[1] / "jaxdiff"
    missing = [path.name for path in package.glob("[!_]*.py") if path.name not in README]
    assert missing == []
