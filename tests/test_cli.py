"""The command line: what is typed wrongly is answered in one line that says what to type instead."""

import io
import json
import logging
import pathlib
import re

import pytest
import tyro

from jaxdiff.app import cli, config
from jaxdiff.app.cli import arguments, flags
from jaxdiff.app.cli.sample_command import parse_labels
from jaxdiff.io import errors


def answer(capsys, *words):
    """Exit status and the one line of stderr, else stdout; a traceback of the user's own file may follow the line."""
    quiet = ("--quiet",) if words and words[0] in cli.COMMANDS else ()
    status = cli.main((*words[:1], *quiet, *words[1:]))
    captured = capsys.readouterr()
    line, _, trace = captured.err.partition("\n")
    assert not trace or trace.startswith(("Traceback", "  File")), captured.err
    return status, line or captured.out


@pytest.fixture
def recipe_file(tmp_path):
    def write(body):
        path = tmp_path / "recipe.py"
        path.write_text(f"from jaxdiff.app.config import *\nconfig = {body}\n")
        return str(path)

    return write


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--optimizer.learing-rate", "3e-4"), "--optimizer.learing-rate.*did you mean --optimizer.learning-rate"),
        (("--optimizer.learning-rate", "abc"), "--optimizer.learning-rate: could not convert string to float: 'abc'"),
        (
            ("--diffusion.schedule", "cosin"),
            "invalid choice 'cosin' for argument '--diffusion.schedule'; write one of betas, cosine",
        ),
        (("--steps",), "Missing value for argument '--steps'"),
        (("--steps", "0"), "steps must be at least 1, got 0"),
        (("--data.image-shape", "28", "28", "1", "--model.multipliers", "1", "2", "2", "2"), "image_shape must be divisible by 8"),
        (("--data.batch-size", "-4"), "data.batch_size must be at least 1, got -4"),
        (("--model.dropout", "1"), "model.dropout must be below 1, got 1.0"),
        (("--sampling.eta", "2"), "sampling.eta must be at most 1, got 2.0"),
        (("--sampling.sampler", "ddpm", "--sampling.eta", "0.5"), "sampling.eta must be 0 for a sampler that is not ddim"),
        (("--sampling.sampler", "dpmpp_2m_sde", "--sampling.eta", "1"), "sampling.eta must be 0 for a sampler that is not ddim"),
        (("--sampling.spacing", "even"), "invalid choice 'even'"),
        (
            ("--sampling.classifier-scale", "3"),
            "sampling.classifier_scale must be 1 unless sampling.classifier names a run, got 3.0",
        ),
        (
            ("--objective", "classifier"),
            "sampling.every must be 0 for a classifier, which draws no samples while it trains, got 200",
        ),
        (("--objective", "vae", "--sampling.every", "0"), "evaluation.num must be 0 for a vae, which has no labels, got 1000"),
        (("--diffusion.schedule", "learned"), "diffusion.weight must be elbo with a learned schedule, which lowers its variance"),
        (
            ("--diffusion.schedule", "linear_logsnr", "--diffusion.sampling-schedule", "cosine"),
            "diffusion.sampling_schedule must be empty or linear_logsnr: training saw no levels beyond its ends",
        ),
        (
            ("--objective", "vae", "--sampling.every", "0", "--evaluation.num", "0", "--model.dropout", "0.1"),
            "model.dropout must be not set for a vae, whose network has none",
        ),
        (("--vae.std", "0"), "vae.std must be above 0, got 0.0"),
        (("--vae.beta", "-1"), "vae.beta must be at least 0, got -1.0"),
        (("--sampling.guidance", "nan"), "sampling.guidance must be a finite number, got nan"),
        (("--optimizer.b1", "2"), "optimizer.b1 must be below 1, got 2.0"),
        (("--model.attention", "5"), r"model.attention must be sizes that the network has: .4, 8."),
        (("--model.num-classes", "-1"), "model.num_classes must be at least 0"),
        (("--diffusion.sampling-schedule", "karras"), "diffusion.sampling_schedule must be of the family of cosine, unless"),
        (("--sampling.steps", "0"), "sampling.steps must be at least 1, got 0"),
        (("--data.name", "mnisst"), "no data set is named 'mnisst'; did you mean mnist"),
        (
            ("--data.name", "mnist", "--data.image-shape", "28", "28", "1", "--model.attention", "14"),
            "mnist is not prepared in .*; run: jaxdiff data mnist",
        ),
        (("--data.image-shape", "8", "8", "3"), "digits has 1 channel; set data.image_shape to end in 1"),
        (("--data.batch-size", "12"), "data.batch_size 12 is not divisible by 8 devices"),
        (("--mesh.fsdp", "3"), "mesh: data 2 x fsdp 3 x tensor 1 does not make up 8 devices"),
        (("--model.num-classes", "5"), "model.num_classes must be at least 10 for the data set digits"),
        (
            ("--model.channels", "28", "--model.head-channels", "5", "--model.attention", "8"),
            "28 channels cannot be shared by 5 heads",
        ),
    ],
)
def test_wrong_flags_of_train(capsys, tmp_path, tfds_dir, flags, message):
    words = ("train", "configs/digits.py", "--workdir", str(tmp_path / "run"), "--data-dir", tfds_dir, *flags)
    status, line = answer(capsys, *words)
    assert status in (1, 2)
    assert re.search(message, line), line
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("Experiment(stepz=5)", "unknown key stepz in Experiment; did you mean steps?"),
        ("Experiment(data=Data(batchsize=5))", "unknown key batchsize in Data; did you mean batch_size?"),
        ("Experiment(optimizer=Optimizer(learning_rate='fast'))", "optimizer.learning_rate: Input should be a valid number"),
        ("Experiment(steps=2.5)", "steps: Input should be a valid integer"),
        ("Experiment(diffusion=Diffusion(prediction='epsilon'))", "diffusion.prediction: Input should be 'x0', 'noise'"),
        ("Experiment(diffusion=Diffusion(schedule='lognormal'))", "diffusion.sampling_schedule must be set"),
        ("Experiment(data=5)", "data must be a Data(...), got 5"),
        ("Experiment(ema=0.99)", "ema: Input should be an object, got 0.99"),
        ("Experiment(steps=no)", "NameError: name 'no' is not defined"),
        ("Experiment(", "SyntaxError: "),
        ("3", "must define config = jaxdiff.app.config.Experiment"),
    ],
)
def test_wrong_values_in_a_config_file(capsys, recipe_file, body, message):
    status, line = answer(capsys, "train", recipe_file(body))
    assert status == 1
    assert message in line


FAULTY_RECIPE = """
from jaxdiff.app.config import *
from beside import learning_rate
config = Experiment(optimizer=Optimizer(learning_rate=learning_rate(0)))
"""


def test_an_error_in_a_recipe_shows_its_traceback_from_the_recipe_on(capsys, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "beside.py").write_text("def learning_rate(steps):\n    return 1 / steps\n")
    path = tmp_path / "recipe.py"
    path.write_text(FAULTY_RECIPE)
    assert cli.main(["train", str(path)]) == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if line.strip(" ~^")]
    assert lines == [
        f"jaxdiff: {path}: ZeroDivisionError: division by zero",
        "Traceback (most recent call last):",
        f'  File "{path}", line 4, in <module>',
        "    config = Experiment(optimizer=Optimizer(learning_rate=learning_rate(0)))",
        f'  File "{tmp_path}/beside.py", line 2, in learning_rate',
        "    return 1 / steps",
        "ZeroDivisionError: division by zero",
    ]


RAISING = {  # the user's file, files beside it, and the lines of its traceback: numbers stand for lines of the first
    "a missing module": (
        "x = 1\nimport nowhere_to_be_found\n",
        {},
        [2],
        "ModuleNotFoundError: No module named 'nowhere_to_be_found'",
    ),
    "no python": ("x = 1\ndef f(:\n", {}, ['  File "{file}", line 2'], "SyntaxError: invalid syntax"),
    "deep inside": (
        "def f(x):\n  return 1 / x\ndef g():\n  return f(0)\ny = g()\n",
        {},
        [5, 4, 2],
        "ZeroDivisionError: division by zero",
    ),
    "a module's function": (
        "import beside_1 as beside\nbeside.f()\n",
        {"beside_1": "def f():\n  return {}['a']\n"},
        [2, "beside_1"],
        "KeyError: 'a'",
    ),
    "a module's import": (
        "import beside_2\n",
        {"beside_2": "import nowhere_else\n"},
        [1, "beside_2"],
        "ModuleNotFoundError: No module named 'nowhere_else'",
    ),
    "a module that is no python": (
        "import beside_3\n",
        {"beside_3": "y = (1,\n"},
        [1, "beside_3"],
        "SyntaxError: '(' was never closed",
    ),
    "an exit": ("import sys\nsys.exit('no')\n", {}, [2], "SystemExit: no"),
    "a library's function": (
        "import json\njson.loads('{')\n",
        {},
        [2, "json/__init__", "json/decoder"],
        "json.decoder.JSONDecodeError",
    ),
}


@pytest.mark.parametrize("what", RAISING)
@pytest.mark.parametrize("command", ["train", "plan", "ladder", "verify"])
def test_a_file_that_raises_shows_one_line_of_ours_and_its_own(capsys, tmp_path, monkeypatch, command, what):
    body, beside, places, last = RAISING[what]
    monkeypatch.syspath_prepend(tmp_path)
    for name, text in beside.items():
        (tmp_path / f"{name}.py").write_text(text)
    path = tmp_path / "jaxdiff_of_a_user.py"  # which looks like the package's name
    path.write_text(body)
    assert cli.main([command, f"{path}:f" if command == "verify" else str(path)]) == 1
    said, *trace = capsys.readouterr().err.rstrip().splitlines()
    kind = last.partition(":")[0].rpartition(".")[2]
    assert said.startswith(f"jaxdiff: {path}: {kind}: ")
    assert trace[0] == "Traceback (most recent call last):" or kind == "SyntaxError"
    assert trace[-1].startswith(last)
    files = [line for line in trace if line.startswith("  File ")]
    for line, place in zip(files, places, strict=kind != "JSONDecodeError"):
        wanted = f'  File "{path}", line {place},' if isinstance(place, int) else place.format(file=path)
        assert wanted in line


def test_a_directory_that_begins_as_the_package_does_is_not_the_package():
    package = pathlib.Path(errors.__file__).parents[1]
    assert str(package / "app" / "cli.py").startswith(errors.OURS)
    assert not f"{package}_mine/recipe.py".startswith(errors.OURS)


def test_a_recipe_that_is_no_python_shows_the_line(capsys, recipe_file):
    path = recipe_file("Experiment(steps==)")
    assert cli.main(["train", path]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith(f"jaxdiff: {path}: SyntaxError: invalid syntax")
    assert lines[1:3] == [f'  File "{path}", line 2', "    config = Experiment(steps==)"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("train",), "train needs a recipe, a file that ends in .py, or a name: jaxdiff train digits"),
        (("plan",), "plan needs a recipe, a file that ends in .py, or a name: jaxdiff plan digits"),
        (("train", "configs/digit.py"), "no config file configs/digit.py; did you mean configs/digits.py?"),
        (("trian",), "no command 'trian'; did you mean train?"),
        (("--quiet",), "no command '--quiet'; write one of train, ladder, sample, demo, evaluate, report, ema, latents, import"),
        (("sample", "nowhere"), "no run in nowhere; train one: jaxdiff train CONFIG --workdir nowhere"),
        (("data", "svhn"), "'svhn' has no preparation here; write one of mnist, cifar10"),
        (("data", "mnist", "--raw-dir", "nowhere"), "no file nowhere/train-images-idx3-ubyte.gz"),
    ],
)
def test_wrong_words(capsys, tmp_path, words, message):
    words = (*words, "--data-dir", str(tmp_path)) if words[0] == "data" else words
    status, line = answer(capsys, *words)
    assert status == (2 if "recipe" in message or "command" in message else 1)
    assert message in line


def test_flags_may_stand_before_the_config(capsys, tmp_path):
    status, line = answer(capsys, "train", "--steps", "0", "--workdir", str(tmp_path / "run"), "configs/digits.py")
    assert status == 1
    assert "steps must be at least 1, got 0" in line


def test_a_workdir_that_is_a_file_or_holds_no_config(capsys, tmp_path, tfds_dir):
    (tmp_path / "file").write_text("")
    status, line = answer(
        capsys, "train", "configs/digits.py", "--data-dir", tfds_dir, "--workdir", str(tmp_path / "file"), "--data.batch-size", "8"
    )
    assert status == 1
    assert str(tmp_path / "file") in line
    for text, message in (('{"steps"', "is not JSON"), ("[]", "must hold a config")):
        (tmp_path / "config.json").write_text(text)
        status, line = answer(capsys, "sample", str(tmp_path))
        assert status == 1
        assert message in line


def test_log_lines_are_plain_whoever_made_the_handler(monkeypatch):
    handler = logging.StreamHandler(io.StringIO())
    monkeypatch.setattr(logging.getLogger(), "handlers", [handler])
    assert cli.main(["recipes"]) == 0
    logging.getLogger("jaxdiff").warning("a line")
    assert handler.stream.getvalue() == "a line\n"


def test_usage_and_help(capsys):
    assert cli.main([]) == cli.main(["--help"]) == 0
    out = capsys.readouterr().out
    assert "jaxdiff train digits" in out
    assert 24 <= out.count("\n") // 2 <= 40
    assert all(f"\n  {command} " in out for command in cli.COMMANDS)
    assert cli.main(["--version"]) == 0
    assert re.fullmatch(r"jaxdiff \d+\.\d+\.\d+\n", capsys.readouterr().out)


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_the_help_of_a_command_fits_a_screen_and_shows_an_example(capsys, monkeypatch, command):
    monkeypatch.setenv("COLUMNS", "80")
    assert cli.main([command, "--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 42
    assert max(map(len, lines)) <= 81  # one example is a character longer
    assert any(line.startswith(f"  jaxdiff {command}") for line in lines)
    assert any("--quiet" in line for line in lines)


def test_the_help_of_a_config_has_the_values_of_the_file(capsys):
    assert cli.main(["train", "configs/digits.py", "--help"]) == 0
    out = capsys.readouterr().out
    assert "optimizer    AdamW" in out
    assert "--optimizer.learning-rate" not in out
    for words in (("configs/digits.py", "--help", "optimizer"), ("--help", "optimizer", "configs/digits.py")):
        assert cli.main(["train", *words]) == 0
        out = capsys.readouterr().out
        assert re.search(r"--optimizer.learning-rate X\s+\[0.002\]", out)  # of the file, not of the class
        assert "--data.batch-size" not in out
    assert cli.main(["plan", "configs/digits.py", "--help", "all"]) == 0
    out = capsys.readouterr().out
    assert all(flag in out for flag in ("--optimizer.learning-rate", "--data.batch-size", "--ema.ema", "--seed"))
    assert answer(capsys, "train", "--help", "modle")[0] == 2


def test_the_help_names_every_flag_that_is_parsed_and_no_other(capsys):
    for command, (kind, _) in cli.COMMANDS.items():
        values = arguments._default(command, kind, ["configs/digits.py"])
        with pytest.raises(SystemExit):
            tyro.cli(kind, default=values, args=["--help"], config=(tyro.conf.AvoidSubcommands,))
        parsed = set(re.findall(r"--[a-z][\w.-]*(?=[ ,\n])", re.sub("[│╭╰╮╯─]", " ", capsys.readouterr().out)))
        told = {flag.name for flag in flags.of(kind, values) if flag.name.startswith("-")}
        unheard = {name for name in parsed - told if ".no-" not in name and not name.startswith("--no-")}
        assert not told - parsed
        assert unheard <= {"--help", "--num-processes", "--process-id", "--likelihood", "--sweep"}  # words of texts


def test_labels():
    assert parse_labels("", 10) == parse_labels("0..9", 10) == list(range(10))
    assert parse_labels("3", 10) == [3]
    assert parse_labels("0,3,7..9", 10) == [0, 3, 7, 8, 9]
    assert parse_labels("none", 10) == [10]
    for text, message in (
        ("0..10", "this run has the labels 0..9"),
        ("a", "write 0..9, 3, or 0,3,7"),
        ("5..3", "and a range ascends"),
        ("0..1000000000", "this run has the labels 0..9"),
    ):
        with pytest.raises(errors.ConfigError, match=message):
            parse_labels(text, 10)


def test_a_config_survives_json():
    original = config.load("configs/cifar10.py")
    assert config.from_dict(json.loads(json.dumps(config.to_dict(original)))) == original
    with pytest.raises(errors.ConfigError, match=r"unknown key model.chanels; did you mean model.channels\?"):
        config.from_dict({**config.to_dict(original), "model": {"chanels": 3}})


def test_the_config_of_an_older_run_still_loads():
    values = config.to_dict(config.load("configs/digits.py"))
    for name in ("spacing", "classifier", "classifier_scale"):
        del values["sampling"][name]
    del values["objective"]
    assert config.from_dict(values) == config.load("configs/digits.py")


def test_a_key_that_begins_like_ema_is_unknown_all_the_same():
    values = {**config.to_dict(config.load("configs/digits.py")), "emas": {"ema": 0.9}}
    with pytest.raises(errors.ConfigError, match=r"unknown key emas.ema; did you mean"):
        config.from_dict(values)


FIXED = """
objective seed ema ema_dtype power_ema
data.name data.split data.image_shape data.fit data.reduce data.flip data.batch_size data.latents
model.network model.channels model.multipliers model.blocks model.attention model.head_channels model.heads model.transformer
model.context_channels model.scale_shift model.num_classes model.dropout model.fourier model.residual_resampling model.dtype
cascade.factor cascade.max_augmentation
"""
FIXED_GROUPS = "text dit published betas diffusion distillation flow matching vae autoencoder optimizer"


def test_every_field_may_change_on_resume_or_may_not():
    """A new field must be put in one of the two lists."""
    fields = [name for name in config.flatten(config.to_dict(config.Experiment())) if not name.startswith("ema.")] + ["ema"]
    fixed = {name for name in fields if name in FIXED.split() or name.split(".")[0] in FIXED_GROUPS.split()}
    assert set(FIXED.split()) <= set(fields)
    assert {name for name in fields if config.is_resumable(name)} == set(fields) - fixed


def test_differences_name_what_a_resumed_run_must_not_change():
    old = config.to_dict(config.load("configs/digits.py"))
    new = {**old, "steps": 7, "seed": 3, "optimizer": {**old["optimizer"], "learning_rate": 1.0}}
    assert sorted(config.differences(old, new)) == ["optimizer.learning_rate was 0.002, now 1.0", "seed was 0, now 3"]


SAMPLERS = """
import jax
import jaxdiff as jd
three = 3
def factory():
    return jd.ddim()
def without_weights():
    raise ValueError("no weights")
def not_yet(denoise, x, levels, key=None):
    raise NotImplementedError
def alpha_of_the_wrong_time(denoise, x, levels, key):
    def step(x, levels):
        t, s = levels
        return x * s.sigma / t.sigma + (t.alpha - s.sigma / t.sigma * t.alpha) * denoise(x, t), None
    return jax.lax.scan(step, x, (levels[:-1], levels[1:]))[0]
def on_the_host(denoise, x, levels, key):
    return x * float(levels.sigma[0])
"""


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("three", "must be a jaxdiff.Sampler or a function .*, got 3"),
        ("alpha_of_the_wrong_tim", "no sampler 'alpha_of_the_wrong_tim'; did you mean alpha_of_the_wrong_time?"),
        ("without_weights", "without_weights: ValueError: no weights"),
        ("not_yet", "not_yet: NotImplementedError$"),
        ("nothing", "no sampler 'nothing'; write a name in .*mine.py, such as factory, without_weights, not_yet"),
        ("on_the_host", "on_the_host: ConcretizationTypeError: Abstract tracer value"),
    ],
)
def test_verify_says_what_is_no_sampler(tmp_path, capsys, name, message):
    (tmp_path / "mine.py").write_text(SAMPLERS)
    status, line = answer(capsys, "verify", f"{tmp_path}/mine.py:{name}")
    assert status == 1
    assert re.search(message, line), line


def test_an_error_in_a_sampler_shows_its_traceback_from_the_file_on(tmp_path, capsys):
    path = tmp_path / "mine.py"
    path.write_text(SAMPLERS)
    for name, line, last in (
        ("without_weights", 'raise ValueError("no weights")', "ValueError: no weights"),  # while it is made
        ("not_yet", "raise NotImplementedError", "NotImplementedError"),  # while it is called
    ):
        assert cli.main(["verify", f"{path}:{name}", "--quiet"]) == 1
        said, *trace = capsys.readouterr().err.splitlines()
        assert said.startswith(f"jaxdiff: {path}:{name}: {last}")
        assert trace[0] == "Traceback (most recent call last):"
        assert trace[1].startswith(f'  File "{path}", line ')
        assert (trace[2].strip(), trace[-1]) == (line, last)
        assert len(trace) == 4


def test_verify_says_what_is_no_file_and_no_name(tmp_path, capsys):
    assert answer(capsys, "verify", "nowhere.py:f")[1] == "jaxdiff: no file nowhere.py; write path/to/file.py:my_sampler"
    assert answer(capsys, "verify", "hein")[1] == "jaxdiff: no sampler 'hein'; did you mean heun?"
    (tmp_path / "broken.py").write_text("import nothing_of_this_name")
    assert "broken.py: ModuleNotFoundError: No module named" in answer(capsys, "verify", f"{tmp_path}/broken.py:f")[1]


def test_verify_prints_the_table_and_fails_a_broken_sampler(tmp_path, capsys):
    (tmp_path / "mine.py").write_text(SAMPLERS)
    for name, expected in (("factory", 0), ("alpha_of_the_wrong_time", 1)):
        status, table = answer(capsys, "verify", f"{tmp_path}/mine.py:{name}", "--num", "2000")
        assert status == expected
        assert table.count("FAILS") >= 3 * expected
        assert all(line in table for line in ("order of convergence", "sliced Wasserstein", "compilations", "dtype"))
