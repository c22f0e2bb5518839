"""Numbers with their nouns."""

import ast
import pathlib
import re

import pytest

import jaxdiff
from jaxdiff.app.runs import finish
from jaxdiff.evaluate import Interval, Result, Spec
from jaxdiff.io import count

NOUNS = ("sample", "image", "step", "process", "device", "row", "call", "epoch", "channel", "slice", "head", "batch", "round")
NEVER_ONE = {  # where it is printed
    "training/mesh.py": ["cannot be shared by {} slices"],
    "training/distributed.py": ["not all of {} processes"],
    "app/config/rules.py": ["the {} rounds from {} steps to"],
    "app/runs/likelihood.py": ["of its {} steps", "{} images of {}", "{} pads images"],  # the second begins with a split's name
    "app/runs/ladder.py": ["are of {} images"],
    "app/report/quality.py": ["of {} images"],
    "app/cli/ladder_command.py": ["takes {} calls"],  # a list
    "cascade.py": ["after images {} must"],  # a shape
    "app/cli/plan_command.py": [", {} slices", "{} images/s"],
    "app/plan/__init__.py": ["{} images/s"],
    "evaluate/measures.py": ["of at least {} images"],
    "oracles/few_steps.py": ["over DDIM's, {} steps"],
}


@pytest.mark.parametrize(
    ("number", "noun", "text"),
    [
        (1, "sample", "1 sample"),
        (0, "sample", "0 samples"),
        (2, "process", "2 processes"),
        (1, "process", "1 process"),
        (3, "batch", "3 batches"),
        (2, "epoch", "2 epochs"),
        (21, "held-out image", "21 held-out images"),
    ],
)
def test_the_noun_follows_its_number(number, noun, text):
    assert count(number, noun) == text


def test_thousands_are_separated_where_asked():
    assert count(60000, "training image", ",") == "60,000 training images"


def test_numbers_before_plurals_are_never_one():
    """The package's own text has no number before a plural but those that are never 1."""
    root = pathlib.Path(jaxdiff.__file__).parent
    plural = re.compile(rf"\{{\}} (?:[a-z-]+ )?(?:{'|'.join(noun + 'e?s' for noun in NOUNS)})\b")
    found = []
    for path in sorted(root.rglob("*.py")):
        strings = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.JoinedStr)]
        texts = ["".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in each.values) for each in strings]
        name, known = str(path.relative_to(root)), NEVER_ONE.get(str(path.relative_to(root)), [])
        found += [(name, text) for text in texts if plural.search(text) and not any(each in text for each in known)]
    assert found == []


def test_one_sample_is_no_samples(tmp_path, monkeypatch):
    monkeypatch.setattr(finish.pictures, "save_grid", lambda *_, **__: None)
    config = finish.Experiment()
    drawn = finish.Drawn(6, [0], [0])
    assert finish.save_sample_grid(config, drawn, tmp_path / "a.png", 1).startswith("1 sample of step 6: ")
    share = Interval(1.0, 0.2, 1.0)
    result = Result(Spec("pixels", "none", "float32", 1, "x"), {"label_agreement": share}, {"label_agreement": share}, 1)
    assert "of 1 sample\nof 1 image a set, by pixels" in str(result)
