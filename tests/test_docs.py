"""The pages run as they stand, what they point to is there, their pictures are those that the script draws, and the site builds."""

import doctest
import pathlib
import re
import runpy
import sys

import jax
import matplotlib
import pdoc
import pytest

ROOT = pathlib.Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))
TEXTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *PAGES]
PICTURES = {path.stem for path in (DOCS / "pictures").glob("*.png")}
# By docs/demo.py, which needs a browser, a run of configs/digits_text.py, and benchmarks/terrain.py, of weights that it downloads.
MEASURED = {"demo", "digits_text", "terrain"}
DRAWN = sorted(PICTURES - MEASURED)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_python_runs(page, compilations):
    """The blocks of a page are one session; those with prompts say what comes back.

    What calls no `jit` compiles nothing again. `verify` is left out: test_verification.py verifies twice.
    """
    session = {}
    for number, code in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL), 1):
        session = after(code, session, f"{page.name}, block {number}")
        if "jit" not in code and "verify" not in code:
            compilations.clear()
            session = after(code, session, f"{page.name}, block {number} again")
            assert not compilations


def after(code, session, name):
    """The session after a block."""
    if not code.startswith(">>>"):
        exec(code, session)
        return session
    test = doctest.DocTestParser().get_doctest(code, session, name, None, 0)
    printed = []
    failed = doctest.DocTestRunner().run(test, out=printed.append, clear_globs=False).failed
    assert not failed, "".join(printed)
    return test.globs


@pytest.mark.parametrize("text", TEXTS, ids=lambda text: text.stem)
def test_links_lead_somewhere(text):
    places = re.findall(r"\]\((?!https?://)([^)#\s]+)[^)\s]*\)", text.read_text())
    assert [place for place in places if not (text.parent / place).exists()] == []


def test_pictures_are_shown_and_small():
    shown = re.findall(r"\(pictures/(\w+)\.png\)", "".join(page.read_text() for page in PAGES))
    assert sorted(set(shown) - MEASURED) == DRAWN
    assert max((DOCS / "pictures" / f"{name}.png").stat().st_size for name in PICTURES) < 60_000


def test_the_script_draws_all_pictures_that_are_shown():
    assert sorted(runpy.run_path(str(DOCS / "draw.py"))["PICTURES"]) == DRAWN


@pytest.fixture
def run(monkeypatch):
    """A function that runs a script in this process, with the modes that JAX has outside these tests; its exit status."""

    def run(script, *words):
        monkeypatch.setattr(sys, "argv", [script, *map(str, words)])
        with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"), matplotlib.rc_context():
            return runpy.run_path(str(DOCS / script))["main"]()

    return run


@pytest.mark.slow
def test_a_picture_is_drawn(tmp_path, run):
    run("draw.py", "progressive", "--out", tmp_path)
    assert [path.stem for path in tmp_path.iterdir()] == ["progressive"]


@pytest.mark.slow
def test_site_builds(tmp_path, run, capsys, monkeypatch):
    monkeypatch.setitem(pdoc.render.env.filters, "highlight", lambda doc: doc.source)  # colours of sources take a third of the time
    assert run("build.py", "--out", tmp_path / "site") == 0, capsys.readouterr().err
    assert {"index.html", "road.html", "jaxdiff.html"} <= {path.name for path in (tmp_path / "site").iterdir()}
    hosts = re.findall(r'<(?:img|script|link)\b[^>]*(?:src|href)="(https?:[^"]*)"', (tmp_path / "site" / "road.html").read_text())
    assert hosts == []
