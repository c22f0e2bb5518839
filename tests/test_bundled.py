"""The library's recipes: listed, trained by name from any folder, copied; and the wheel that carries them."""

import pathlib
import re
import shutil

import pytest

from jaxdiff.app import cli, config
from jaxdiff.app.cli import arguments
from jaxdiff.app.runs.sources import resolve_sources
from jaxdiff.io import recipes
from jaxdiff.io.errors import ConfigError

CONFIGS = pathlib.Path(__file__).parents[1] / "configs"
NAMES = sorted(path.stem for path in CONFIGS.glob("*.py"))


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A folder of its own as the current one."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_list_has_a_line_for_every_recipe(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert cli.main(["recipes"]) == 0
    head, *lines = capsys.readouterr().out.split("\n\n")[0].splitlines()
    assert re.split(r"\s\s+", head) == ["name", "data set", "cost", "score"]
    assert [re.split(r"\s\s+", line) for line in lines] == [list(row) for row in recipes.table()[1:]]  # nothing is cut off
    assert [line.split()[0] for line in lines] == NAMES
    assert all(all(row) for row in recipes.table())
    monkeypatch.setenv("COLUMNS", "50")
    assert cli.main(["recipes"]) == 0
    assert all(len(line) <= 50 for line in capsys.readouterr().out.split("\n\n")[0].splitlines())


@pytest.mark.parametrize(("name", "data", "_cost", "_score"), recipes.table()[1:], ids=NAMES)
def test_the_data_set_is_that_of_the_config(name, data, _cost, _score):
    path = CONFIGS / f"{name}.py"
    loaded = config.load(config.load_ladder(path).students[0]) if name.endswith("_ladder") else config.load(path)
    assert data == (loaded.data.name or "none")  # of a network that is imported


@pytest.mark.parametrize("name", ["digits", "configs/digits.py"])
def test_a_name_is_the_recipe_of_the_library_where_no_such_file_is(name, elsewhere):
    assert config.load(pathlib.Path(name)) == config.load(CONFIGS / "digits.py")
    (elsewhere / "digits").mkdir()  # a folder is no recipe
    assert recipes.find(name) == CONFIGS / "digits.py"
    for file in ("digits.py", "digits") if name == "digits" else ("configs/digits.py",):
        path = elsewhere / file
        shutil.rmtree(path, ignore_errors=True)
        path.parent.mkdir(exist_ok=True)
        path.write_text("from jaxdiff.app.config import *\nconfig = Experiment(steps=3)\n")
        assert recipes.find(name).absolute() == path
        assert config.load(pathlib.Path(name)).steps == 3


@pytest.mark.parametrize("name", ["runs/digits", "digits.py", "/configs/digits.py", "../configs/digits.py", "configs/digits"])
def test_other_paths_are_not_taken_for_recipes_of_the_library(name, elsewhere):
    with pytest.raises(ConfigError, match=r"^no config file .*digits(\.py)?; did you mean digits\?; see jaxdiff recipes$"):
        recipes.find(name)


def test_train_and_ladder_take_names(elsewhere, capsys):
    assert cli.main(["train", "digits", "--help", "run"]) == 0
    assert "[400]" in capsys.readouterr().out  # the steps of the recipe
    assert cli.main(["train", "digits_consistency", "--sources.teacher", "configs/digits.py"]) == 1
    assert "jaxdiff train configs/digits.py --workdir runs/digits" in capsys.readouterr().err
    assert cli.main(["ladder", "digits"]) == 1
    assert "digits is a recipe and no ladder of several" in capsys.readouterr().err
    assert not list(elsewhere.iterdir())


@pytest.mark.parametrize(
    ("words", "recipe"),
    [
        ("digits --steps 3", "digits"),
        ("--quiet digits --steps 3", "digits"),
        ("--steps 3 digits", "digits"),
        ("mine.py --data.name digits", "mine.py"),
        ("--data.name digits mine.py", "mine.py"),
        ("digits --sources.teacher mine.py", "digits"),
        ("--data.name digits", None),
    ],
)
def test_a_recipe_is_told_from_the_values_of_flags(words, recipe):
    assert next(arguments._recipes(words.split()), None) == recipe


def test_a_copy_is_the_file_and_starts_from_the_recipes_of_the_library(elsewhere, capsys):
    assert cli.main(["recipes", "copy", "digits_latent", "--to", "mine/latent.py"]) == 0
    said = capsys.readouterr().out
    assert "Run: jaxdiff train mine/latent.py --workdir runs/digits_latent --with-stages" in said
    assert "jaxdiff recipes copy digits_kl --to configs/digits_kl.py" in said
    copied = elsewhere / "mine" / "latent.py"
    assert copied.read_text() == (CONFIGS / "digits_latent.py").read_text()
    _, before = resolve_sources(config.load(copied), elsewhere / "runs" / "latent")
    assert [stage.workdir.name for stage in before] == ["digits_classifier", "digits_kl"]
    assert cli.main(["recipes", "copy", "digits"]) == 0
    (elsewhere / "digits.py").write_text("changed")
    assert cli.main(["recipes", "copy", "digits"]) == 1
    assert (elsewhere / "digits.py").read_text() == "changed"
