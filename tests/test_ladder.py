"""The ladder: what is trained and sampled, the table and the figure, and going on after an interruption."""

import dataclasses
import json
import os
import signal

import pytest
from PIL import Image

from jaxdiff.app import cli, config
from jaxdiff.app.runs import ladder, sources, train
from jaxdiff.training import checkpoint

TEACHER = """
from jaxdiff.app.config import *

config = Experiment(
    {kind}
    data=Data(name="digits", image_shape=(8, 8, 1), batch_size=8),
    model=Model(channels=8, multipliers=(1,), blocks=1, head_channels=8, num_classes=10),
    optimizer=Optimizer(learning_rate=1e-2),
    ema={{"ema": 0.5}},
    steps={steps},
    checkpoint_every=1,
    sampling=Sampling(sampler="{sampler}", steps=1, num=10),
)
"""
KINDS = {
    "teacher": ("", 2, "ddim"),
    "guided": ('objective="guided", sources=Sources(teacher="{}"), distillation=Distillation(guidance=(1.0, 2.0)),', 2, "ddim"),
    "consistency": (
        'objective="consistency", sources=Sources(teacher="{}"), distillation=Distillation(steps=3, guidance=(2.0, 2.0)),',
        *(3, "consistency"),
    ),
}
LADDER = """
from jaxdiff.app.config import Ladder

ladder = Ladder(
    students=("{0}/guided.py", "{0}/consistency.py"),
    calls=(1, 2), baselines=("ddim",), guidance=(2.0,), reference_steps=3, num=20, shown=10, epochs=1,
)
"""


pytestmark = pytest.mark.usefixtures("small_unet", "one_device")


def written(folder):
    """A ladder's recipe, beside those of its students and of their teacher."""
    for name, (kind, steps, sampler) in KINDS.items():
        text = TEACHER.format(kind=kind.format(folder / "teacher.py"), steps=steps, sampler=sampler)
        (folder / f"{name}.py").write_text(text)
    (folder / "ladder.py").write_text(LADDER.format(folder))
    return folder / "ladder.py"


def climb(folder, data_dir):
    return cli.main(["ladder", str(folder / "ladder.py"), "--workdir", str(folder / "ladder"), "--data-dir", str(data_dir)])


def times(folder, pattern):
    return {path.name: path.stat().st_mtime_ns for path in folder.glob(pattern)}


@pytest.fixture(scope="module")
def climbed(tmp_path_factory, tfds_dir):
    """A ladder that was stopped while its second student was trained, and then climbed to its end; what both said."""
    folder = tmp_path_factory.mktemp("climbed")
    written(folder)
    save = checkpoint.save

    def saving(to, state, values, levels=None):
        save(to, state, values, levels)
        if values["objective"] == "consistency":
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "save", saving)
        stopped = climb(folder, tfds_dir), checkpoint.steps(folder / "consistency"), (folder / "ladder").exists()
    before = (folder / "teacher" / "metrics.jsonl").stat().st_mtime_ns
    assert climb(folder, tfds_dir) == 0
    return folder, stopped, before


GRIDS = {
    *("teacher_ddim_guidance_2_2.png", "teacher_ddim_guidance_2_6.png"),
    *("guided_guidance_2_1.png", "guided_guidance_2_2.png", "consistency_guidance_2_1.png"),
}


def test_a_ladder_is_trained_in_order_and_goes_on_after_ctrl_c(climbed):
    folder, stopped, before = climbed
    assert stopped == (130, [1, 2], False)  # the step after the signal is the last
    assert {name: checkpoint.steps(folder / name)[-1] for name in KINDS} == {"teacher": 2, "guided": 2, "consistency": 3}
    assert (folder / "teacher" / "metrics.jsonl").stat().st_mtime_ns == before
    steps = [json.loads(line)["step"] for line in (folder / "consistency" / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3]


def test_a_ladder_measures_every_place(climbed):
    folder, *_ = climbed
    rows = json.loads((folder / "ladder" / "ladder.json").read_text())["rows"]
    assert [(row["name"], row["calls"], row["settings"]["steps"]) for row in rows] == [
        ("teacher ddim, guidance 2", 2, 1),
        ("teacher ddim, guidance 2", 6, 3),
        ("guided, guidance 2", 1, 1),
        ("guided, guidance 2", 2, 2),
        ("consistency, guidance 2", 1, 1),  # of the two numbers of calls the one that divides its three levels
    ]
    assert all(0 <= row["agreement"] <= 1 and row["frechet"] > 0 and row["num_real"] == 20 for row in rows)
    assert [row["training"] for row in rows] == [[16, 0]] * 2 + [[48, 16]] * 2 + [[96, 16]]  # 8 examples a step
    assert len({row["frechet"] for row in rows}) == 5
    assert len({row["frechet_real"] for row in rows}) == 1
    assert {path.name for path in (folder / "ladder").glob("*.png")} == GRIDS | {"ladder.png"}
    assert Image.open(folder / "ladder" / "ladder.png").size == (1210, 550)
    assert (folder / "ladder" / "table.md").read_text() == ladder.markdown_table(rows) + "\n"


def test_a_ladder_that_is_climbed_does_nothing_again(climbed, tmp_path, capsys):
    """Not even reading the data, which is not there."""
    folder, *_ = climbed
    before = times(folder, "*/metrics.jsonl") | times(folder / "ladder", "*_*.png")
    rows = (folder / "ladder" / "ladder.json").read_text()
    assert climb(folder, tmp_path / "nothing") == 0
    assert times(folder, "*/metrics.jsonl") | times(folder / "ladder", "*_*.png") == before
    assert (folder / "ladder" / "ladder.json").read_text() == rows
    assert not (tmp_path / "nothing").exists()
    said = capsys.readouterr().out
    assert "rung " not in said
    assert said.startswith((folder / "ladder" / "table.md").read_text())


def test_what_changed_is_measured_again_and_no_more(climbed, tfds_dir):
    """A run that was trained on, a grid that is missing, and a row that was measured in another way."""
    folder, *_ = climbed
    made = dataclasses.replace(ladder.ladder_runs(config.load_ladder(folder / "ladder.py"), folder / "ladder")[-1].config, steps=4)
    train.train_run(made, folder / "consistency", tfds_dir)
    (folder / "ladder" / "guided_guidance_2_1.png").unlink()
    before, rows = times(folder / "ladder", "*_*.png"), json.loads((folder / "ladder" / "ladder.json").read_text())["rows"]
    first = rows[0] | {"settings": rows[0]["settings"] | {"measured": 1}}
    (folder / "ladder" / "ladder.json").write_text(json.dumps({"rows": [first, *rows[1:]]}))
    assert climb(folder, tfds_dir) == 0
    after, again = times(folder / "ladder", "*_*.png"), json.loads((folder / "ladder" / "ladder.json").read_text())["rows"]
    assert {name for name in after if after[name] != before.get(name)} == {
        "teacher_ddim_guidance_2_2.png",
        "guided_guidance_2_1.png",
        "consistency_guidance_2_1.png",
    }
    assert [one == other for one, other in zip(rows, again, strict=True)] == [True, True, True, True, False]


def resolved(tmp_path, **changes):
    path = written(tmp_path)
    made = dataclasses.replace(config.load_ladder(path), **changes)
    return made, ladder.ladder_runs(made, tmp_path / "ladder")


def test_guidance_costs_two_calls_a_step_and_heun_two_but_in_the_last(tmp_path):
    change = {"calls": (1, 2, 4, 8), "baselines": ("ddim", "heun"), "guidance": (1.0, 2.0), "reference_steps": 50}
    places = list(ladder.ladder_rungs(*resolved(tmp_path, **change)))
    found = {}
    for place in places:
        assert place.config.sampling.eta == 0
        found.setdefault(place.name, []).append((place.calls, place.config.sampling.steps))
        scale = 2 if "guidance 2" in place.name else 1
        assert place.config.sampling.guidance == scale
        assert place.config.sampling.sampler == (place.name.split(",")[0].split()[1:] or [place.config.sampling.sampler])[0]
    assert found == {
        "teacher ddim": [(1, 1), (2, 2), (4, 4), (8, 8), (50, 50)],
        "teacher heun": [(1, 1), (3, 2), (7, 4)],
        "teacher ddim, guidance 2": [(2, 1), (4, 2), (8, 4), (100, 50)],
        "teacher heun, guidance 2": [(2, 1), (6, 2)],
        "guided": [(1, 1), (2, 2), (4, 4), (8, 8)],
        "guided, guidance 2": [(1, 1), (2, 2), (4, 4), (8, 8)],
        "consistency, guidance 2": [(1, 1)],
    }
    assert {place.name: place.workdir for place in places}["consistency, guidance 2"] == tmp_path / "consistency"


def test_a_student_of_other_scales_is_sampled_with_its_own(tmp_path):
    places = ladder.ladder_rungs(*resolved(tmp_path, guidance=(1.0, 4.0), calls=(1,)))
    assert [place.name for place in places if " " not in place.name.split(",")[0]] == ["guided", "consistency, guidance 2"]


def test_each_run_of_a_ladder_is_trained_once(tmp_path):
    made, trained = resolved(tmp_path)
    assert [stage.workdir for stage in trained] == [tmp_path / name for name in ("teacher", "guided", "consistency")]
    assert [stage.config.sources.teacher for stage in trained] == ["", *[str(tmp_path / "teacher")] * 2]
    assert sources.unfinished(trained) == trained
    turned = dataclasses.replace(made, students=made.students[::-1])
    assert [stage.workdir.name for stage in ladder.ladder_runs(turned, tmp_path / "ladder")] == ["teacher", "consistency", "guided"]


ROWS = [
    {"name": name, "calls": calls, "agreement": share, "frechet": distance, "accuracy": 0.975, "frechet_real": 3.5, "num_real": 299}
    | {"training": (51_200.0, 0.0) if name.startswith("teacher") else (76_800.0, 51_200.0)}
    for name, calls, share, distance in (
        ("teacher ddim", 2, 0.5, 40.0),
        ("teacher ddim", 100, 0.99, 4.256),
        ("student, guidance 2", 1, 0.8765, 12.0),
        ("student, guidance 2", 2, 0.9, 8.0),
    )
]


def test_a_table_has_a_line_a_method():
    assert ladder.markdown_table(ROWS).splitlines() == [
        "| samples named by their label, Frechet distance | calls in training | 1 call | 2 calls | 100 calls |",
        "|---|---|---|---|---|",
        "| teacher ddim | 51 k |  | 50.0%, 40.00 | 99.0%, 4.26 |",
        "| student, guidance 2 | 77 k + 51 k | 87.6%, 12.00 | 90.0%, 8.00 |  |",
        "",
        "Real held-out images: 97.5%, 3.50. Frechet distances are of 299 images.",
    ]


def test_a_figure_has_a_line_a_method(tmp_path, monkeypatch):
    """Of both measures over the calls; students in colour."""
    import matplotlib.figure as figures

    seen, save = [], figures.Figure.savefig

    def kept(figure, *args, **options):
        seen.append(figure)
        return save(figure, *args, **options)

    monkeypatch.setattr(figures.Figure, "savefig", kept)
    ladder.draw_figure(ROWS, tmp_path / "x.png")
    assert Image.open(tmp_path / "x.png").format == "PNG"
    (figure,) = seen
    for axes, measure in zip(figure.axes, ("frechet", "agreement"), strict=True):
        lines = {line.get_label(): line for line in axes.get_lines()}
        for name in ("teacher ddim", "student, guidance 2"):
            points = list(zip(*lines[name].get_data(), strict=True))
            assert points == [(row["calls"], row[measure]) for row in ROWS if row["name"] == name]
        assert lines["teacher ddim"].get_color() == "grey"
        assert lines["student, guidance 2"].get_color() != "grey"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("train", "configs/digits_ladder.py"),
            "configs/digits_ladder.py is a ladder of several recipes; climb it: jaxdiff ladder configs/digits_ladder.py",
        ),
        (
            ("ladder", "configs/digits.py"),
            "configs/digits.py is a recipe and no ladder of several; train it: jaxdiff train configs/digits.py",
        ),
        (
            ("ladder", "configs/digit_ladder.py"),
            "no config file configs/digit_ladder.py; did you mean configs/digits_ladder.py?; see jaxdiff recipes",
        ),
    ],
)
def test_ladders_and_recipes_are_told_apart(capsys, words, message):
    assert cli.main(words) == 1
    assert capsys.readouterr().err == f"jaxdiff: {message}\n"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("students=()", "students must be at least one recipe (.py), got []"),
        ("students=('runs/digits',)", "students must be at least one recipe (.py), got ['runs/digits']"),
        ("students='configs/digits_guided.py'", "students: Input should be a valid"),
        ("students=('configs/digit_guided.py',)", "no config file configs/digit_guided.py; did you mean configs/digits_guided.py?"),
        ("students=('configs/digits.py',)", "students: configs/digits.py trains diffusion, which distils nothing; name recipes of"),
        ("students=('configs/digits_guided.py', 'configs/mnist_guided.py')", "students: all must be of the same images, got [('di"),
        ("students=('configs/digits_guided.py',), calls=(0,)", "calls must be at least one number, each at least 1, got [0]"),
        ("students=('configs/digits_guided.py',), num=1", "num must be at least 10, and at least shown, got 1"),
        ("students=('configs/digits_guided.py',), guidance=(0.5,)", "guidance must be at least one scale, each at least 1"),
        ("students=('configs/digits_guided.py',), epochs=0", "epochs must be at least 1, got 0"),
        ("students=('configs/digits_guided.py',), baselines=('euler',)", "baselines.0: Input should be 'ddim', 'dpmpp_2m'"),
        ("students=('configs/digits_guided.py',), samples=3", "unexpected keyword argument 'samples'"),
    ],
)
def test_wrong_ladders(tmp_path, capsys, body, message):
    path = tmp_path / "wrong.py"
    path.write_text(f"from jaxdiff.app.config import Ladder\n\nladder = Ladder({body})\n")
    assert cli.main(["ladder", str(path), "--workdir", str(tmp_path / "ladder")]) == 1
    line, *traceback = capsys.readouterr().err.splitlines()
    assert message in line
    assert bool(traceback) == ("samples=3" in body)  # an error of the user's own code, with its traceback
    assert list(tmp_path.iterdir()) == [path]
