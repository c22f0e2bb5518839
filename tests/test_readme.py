"""The README's Python runs as it stands."""

import pathlib
import re

import pytest

README = (pathlib.Path(__file__).parents[1] / "README.md").read_text()


@pytest.mark.parametrize(
    "code",
    re.findall(r"```python\n(.*?)```", README, re.DOTALL),
    ids=["plain", "linen", "nnx", "equinox", "verify", "likelihood", "distillation", "training"],
)
def test_example_runs(code):
    exec(code, {})


def test_every_file_is_on_the_map():
    package = pathlib.Path(__file__).parents[1] / "jaxdiff"
    missing = [path.name for path in package.glob("[!_]*.py") if path.name not in README]
    assert missing == []
