"""Wrong inputs of every command: each ends in one line that says what to do, without our traceback, and an exit status above 0."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from jaxdiff.app import cli, config
from jaxdiff.app.build import init
from jaxdiff.training import checkpoint

RECIPE = """
from jaxdiff.app.config import *
config = Experiment(model=Model(channels=8, multipliers=(1,), blocks=1, head_channels=8), steps=2)
"""
FILES = {
    "tiny.py": RECIPE,
    "empty.py": "",
    "exits.py": "import sys; sys.exit()",
    "notes.txt": "no run, no recipe, no array\n",
    "other.py": "from jaxdiff.app.config import *\nconfig = Experiment(objective='classifier', model=Model(num_classes=0))",
}

GUIDED = "train {}/tiny.py --objective guided --sampling.guidance 1 --data.name digits"

# Words, where {} is a folder with what `folder` makes; exit status; what the line says, the remedy with it.
WRONG = {
    "no such command": ("smaple runs/digits", 2, "no command 'smaple'; did you mean sample?"),
    "import: no such source": (
        "import {}/nothing.safetensors --workdir {}/imported",
        1,
        "there is no {}/nothing.safetensors; write",
    ),
    "import: a scale without a run": (
        "import {}/tiny.py --workdir {}/imported --scale 2",
        2,
        "--scale is of a LoRA; give --adapt RUN",
    ),
    "export: no such run": ("export {}/nothing --out {}/out", 1, "no run in {}/nothing; train one"),
    "inspect: no such file": ("inspect {}/nothing.pt", 1, "there is no file {}/nothing.pt; write the path of a .safetensors"),
    "a flag for a command": ("--quiet", 2, "flags come after it"),
    "no group of that name": ("train {}/tiny.py --help modle", 2, "write one of run, data, model"),
    "train: no such recipe": ("train digit", 1, "no config file digit; did you mean digits?; see jaxdiff recipes"),
    "plan: no such recipe": ("plan nothing --topology v5e:1x1", 1, "write the path of a recipe, or a name; see jaxdiff recipes"),
    "train: a folder as recipe": ("train {}/folder.py", 1, "no config file {}/folder.py; "),
    "train: a binary file": ("train {}/binary.py", 1, "source code string cannot contain null bytes"),
    "train: a file without a config": ("train {}/empty.py", 1, "must define config = jaxdiff.app.config.Experiment(...)"),
    "train: a file that exits": ("train {}/exits.py", 1, "exits.py: SystemExit"),
    "train: a wrong field": ("train {}/other.py", 1, "must be at least 1 for a classifier, got 0"),
    "train: a misspelt flag": ("train {}/tiny.py --model.chanels 3", 2, "did you mean --model.channels?; see jaxdiff train --help"),
    "train: beyond float32": ("train {}/tiny.py --optimizer.learning-rate 1e39", 1, "must be a finite number, got 1e+39"),
    "train: a huge seed": ("train {}/tiny.py --seed 99999999999999999999", 1, "seed must be below 2^32"),
    "train: a workdir below a file": ("train {}/tiny.py --workdir {}/notes.txt/run --data-dir {tfds}", 1, "choose another"),
    "train: a run of another config": (
        "train {}/tiny.py --seed 1 --workdir {}/run --data-dir {tfds}",
        1,
        "choose another --workdir",
    ),
    "train: no such teacher": (f"{GUIDED} --sources.teacher {{}}/no --workdir {{}}/new", 1, "no run in {}/no; train one: jaxdiff"),
    "train: no name of a data set": ("train {}/tiny.py --data.name ../x --workdir {}/new --data-dir {tfds}", 1, "such as digits"),
    "train: more than memory": (
        "train {}/tiny.py --data.batch-size 800000000000 --workdir {}/new --data-dir {tfds}",
        1,
        "ask for less",
    ),
    "train: a profile that is none": ("train {}/tiny.py --profile 10 --workdir {}/new --data-dir {tfds}", 1, "such as 10:20"),
    "train: one process of unknown": ("train {}/tiny.py --num-processes 2 --workdir {}/new", 1, "give all of --coordinator"),
    "ladder: a recipe": ("ladder {}/tiny.py", 1, "is a recipe and no ladder of several; train it: jaxdiff train"),
    "ladder: no such file": ("ladder nowhere.py", 1, "no config file nowhere.py; write the path"),
    "sample: no run": ("sample {}/notes.txt", 1, "no run in {}/notes.txt; train one"),
    "sample: a path of two lines": ("sample {}/a\nb", 1, "train one: jaxdiff train CONFIG"),
    "sample: no samples": ("sample {}/run --num 0", 1, "--num must be at least 1, got 0"),
    "sample: a fraction of a step": ("sample {}/run --steps 1.5", 2, "--steps: invalid literal for int() with base 10: '1.5'; see"),
    "sample: a negative seed": ("sample {}/run --seed -1", 1, "--seed must be at least 0 and below 2^32, got -1"),
    "sample: guidance that is no number": ("sample {}/run --guidance nan", 1, "must be a finite number, got nan"),
    "sample: labels that are none": ("sample {}/run --labels १", 1, "write 0..9, 3, or 0,3,7"),
    "train: no such sink": ("train {}/tiny.py --log tensorbord", 1, "no sink 'tensorbord'; write tensorboard, wandb or path/to"),
    "ladder: no sink in a file": ("ladder configs/digits_ladder.py --log {}/tiny.py:sink", 1, "tiny.py:sink: there is no sink"),
    "sample: no such sampler": ("sample {}/run --sampler eulr", 2, "write one of consistency, ddim, ddpm"),
    "sample: a jpeg": ("sample {}/run --out {}/a.jpg", 1, "write a name that ends in .png or .npz"),
    "sample: out below a file": ("sample {}/run --out {}/notes.txt/a.npz", 1, "cannot be written"),
    "sample: out is a folder": ("sample {}/run --out {}/folder.png", 1, "it is a directory); choose another --out"),
    "sample: a context that is none": ("sample {}/run --context {}/notes.txt", 1, "must be a .npy file of numbers"),
    "sample: a classifier that is none": ("sample {}/run --classifier {}/run", 1, "here a classifier run is wanted"),
    "sample: no such average": ("sample {}/run --ema best", 1, "write one of ema"),
    "sample: a device that is absent": ("sample {}/run --device tpu", 1, "but cpu; write --device cpu, or ask why: jaxdiff doctor"),
    "sample: no checkpoint": ("sample {}/fresh", 1, "has no checkpoint; train it first"),
    "sample: an empty checkpoint": ("sample {}/emptied", 1, "nothing was changed; train anew in another --workdir"),
    "sample: a checkpoint cut short": ("sample {}/cut", 1, "nothing was changed; train anew in another --workdir"),
    "sample: a config that is no text": ("sample {}/bytes", 1, "config.json is not JSON"),
    "sample: a config of other things": ("sample {}/numbers", 1, "unknown key model; did you mean model."),
    "sample: sources cut short": ("sample {}/sources", 1, "sources.json no longer says what"),
    "demo: no run": ("demo {}/notes.txt", 1, "no run in {}/notes.txt; train one"),
    "demo: no other run": ("demo {}/run --versus {}/nowhere", 1, "no run in {}/nowhere; train one"),
    "demo: of an autoencoder": ("demo {}/coded", 1, "is an autoencoder run, here a diffusion run is wanted"),
    "demo: no such port": ("demo {}/run --port 70000", 1, "--port must be at least 0 and below 65536, got 70000"),
    "evaluate: no checkpoint": ("evaluate {}/fresh --data-dir {tfds}", 1, "has no checkpoint; train it first"),
    "evaluate: one image": ("evaluate {}/run --num 1", 1, "--num must be at least 10, got 1"),
    "evaluate: no such estimator": ("evaluate {}/run --likelihood --estimators x", 1, "write some of discrete, continuous"),
    "evaluate: weights of no network": (
        "evaluate {}/run --weights {}/notes.txt",
        1,
        "of which network? write --features inception (FILE",
    ),
    "evaluate: nothing is stored": ("evaluate {}/run --stored", 1, "has no evaluations; run: jaxdiff evaluate"),
    "report: no run": ("report {}/notes.txt", 1, "no run in {}/notes.txt; train one"),
    "report: a page that is none": ("report {}/run --out {}/a.pdf", 1, "write a name that ends in .html"),
    "report: a negative number": ("report {}/run --num -1", 1, "--num must be at least 0, got -1"),
    "plan: no such TPU": ("plan {}/tiny.py --topology v9:1x1", 1, "no such TPU; write v5e or v6e with"),
    "plan: no topology": ("plan {}/tiny.py", 2, "--topology STR Topology of a slice: v5e:4x4"),
    "plan: no batch": ("plan {}/tiny.py --topology v5e:1x1 --batch -1", 1, "must be at least 1, got -1"),
    "verify: no such sampler": ("verify hein", 1, "did you mean heun?"),
    "verify: an order that is none": ("verify heun --order nan", 1, "--order must be above 0 and below 100, got nan"),
    "verify: a seed that is none": ("verify heun --seed 4294967296", 1, "below 2^32, got 4294967296"),
    "data: another data set": ("data svhn", 1, "write one of mnist, cifar10"),
    "data: no raw files": (
        "data mnist --raw-dir {}/folder.py --data-dir {}/data",
        1,
        "--raw-dir must hold train-images-idx3-ubyte.gz",
    ),
    "data: nothing to import": ("data import", 2, "needs a source of images: jaxdiff data import my/pictures --name photos"),
    "data: no such folder": ("data import {}/nowhere --data-dir {}/data", 1, "no folder or file {}/nowhere; write where"),
    "data: a file of another kind": ("data import {}/notes.txt --data-dir {}/data", 1, "unpack it, and give the folder"),
    "data: no images": ("data import {}/run --data-dir {}/data", 1, "can be imported"),
    "data: a name of tfds": ("data import {} --name cifar10 --data-dir {}/data", 1, "choose another, such as my_cifar10"),
    "data: a name that is none": ("data import {} --name ../x --data-dir {}/data", 1, "write small letters, digits and _"),
    "data: a size that is none": ("data import {} --size 64x", 1, "such as 64, or HEIGHTxWIDTH, such as 48x64"),
    "data: all is held out": ("data import {} --held-out 1", 1, "--held-out must be at least 0 and below 1, got 1"),
    "data: two splits": ("data import {} --split train,test", 1, "write the name of one split, such as train"),
    "data: a flag of import": ("data mnist --size 64", 1, "--size is for import, not for mnist"),
    "data: a flag of mnist": ("data import {} --raw-dir {}", 1, "--raw-dir is for mnist and cifar10, not for import"),
    "ema: no run": ("ema {}/notes.txt --length 0.1", 1, "no run in {}/notes.txt; train one"),
    "ema: a run without snapshots": ("ema {}/run --length 0.1", 1, "was trained without snapshots; train it anew with --power-ema"),
    "ema: a length that is none": ("ema {}/run --length 0.3", 1, "--length must be above 0 and at most 0.28, got 0.3"),
    "latents: of a diffusion run": ("latents {}/run", 1, "is a diffusion run, here an autoencoder run is wanted"),
    "latents: no batch": ("latents {}/coded --batch-size 0", 1, "--batch-size must be at least 1, got 0"),
    "latents: out is there": ("latents {}/coded --out {}/folder.py", 1, "exists already and stays as it is; remove it, or choose"),
    "recipes: no such recipe": (
        "recipes copy digts --to {}/new.py",
        1,
        "no recipe 'digts'; did you mean digits?; see jaxdiff recipes",
    ),
    "recipes: a file that is there": (
        "recipes copy digits --to {}/tiny.py",
        1,
        "tiny.py exists already and stays as it is; choose",
    ),
    "recipes: a folder below a file": ("recipes copy digits --to {}/tiny.py/a.py", 1, "cannot be written"),
    "recipes: a name without copy": ("recipes list digits", 1, "are for copy: jaxdiff recipes copy NAME --to FILE"),
    "recipes: another action": ("recipes digits", 2, "write one of copy, list"),
    "doctor: too many words": ("doctor please", 2, "Unrecognized options: please; see jaxdiff doctor --help"),
    "completion: another shell": ("completion tcsh", 2, "SHELL; write one of bash, fish, zsh"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Recipes that are none, and a run at step 0, whole and damaged in many ways."""
    import jax
    import jax.numpy as jnp

    folder = tmp_path_factory.mktemp("wrong")
    for name, text in FILES.items():
        (folder / name).write_text(text)
    (folder / "binary.py").write_bytes(bytes(range(256)))
    for name in ("folder.py", "folder.png"):
        (folder / name).mkdir()
    recipe = config.load(folder / "tiny.py")
    for name in ("run", "fresh", "bytes", "numbers"):
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(json.dumps(config.to_dict(recipe)))
    with checkpoint.manager(folder / "run") as to:
        state = jax.eval_shape(lambda: init(recipe, jax.random.key(0)))
        checkpoint.save(to, jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), state), config.to_dict(recipe))
    for name in ("emptied", "cut", "sources"):
        shutil.copytree(folder / "run", folder / name)
    shutil.rmtree(folder / "emptied" / "checkpoints" / "0")
    (folder / "emptied" / "checkpoints" / "0").mkdir()
    for path in (folder / "cut" / "checkpoints").rglob("*"):
        if path.is_file() and "ema_ema" in str(path):
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    (folder / "sources" / "sources.json").write_text('{"teacher": ')
    (folder / "bytes" / "config.json").write_bytes(b"\xff\xfe\x00")
    (folder / "numbers" / "config.json").write_text('{"model": 3, "autoencoder": [4]}')
    (folder / "coded").mkdir()
    values = {**config.to_dict(recipe), "objective": "autoencoder", "sampling": {"every": 0}, "evaluation": {"num": 0}}
    (folder / "coded" / "config.json").write_text(json.dumps(values))
    return folder


@pytest.mark.parametrize("name", WRONG)
def test_one_line_says_what_to_do(folder, tfds_dir, capsys, name):
    words, expected, said = WRONG[name]
    placed = [word.replace("{tfds}", tfds_dir).replace("{}", str(folder)) for word in words.split(" ")]
    status = cli.main([*placed[:1], *["--quiet"] * (placed[0] in cli.COMMANDS), *placed[1:]])
    line = capsys.readouterr().err
    assert said.replace("{}", str(folder)) in line
    assert line.startswith("jaxdiff")
    assert line.count("\n") == 1 or name == "train: a file that exits"  # an error of the user's own code, with its traceback
    assert status == expected


def test_the_line_is_the_same_at_every_width_of_the_terminal(folder, capsys, monkeypatch):
    lines = set()
    for width in range(40, 100, 3):  # the lines of the parser's message break elsewhere, even within its punctuation
        monkeypatch.setenv("COLUMNS", str(width))
        cli.main(["sample", f"{folder}/run", "--sampler", "eulr"])
        lines.add(capsys.readouterr().err)
    (line,) = lines
    assert "write one of consistency, ddim, ddpm, ddpm_large, ddpm_learned, dpmpp_2m," in line


def test_every_command_has_wrong_inputs():
    assert {words.split(" ")[0] for words, *_ in WRONG.values()} >= set(cli.COMMANDS)


def test_what_is_our_fault_keeps_its_traceback(capsys, monkeypatch):
    kind, _ = cli.COMMANDS["doctor"]
    monkeypatch.setitem(cli.COMMANDS, "doctor", (kind, lambda args: [][1]))
    assert cli.main(["doctor"]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("Traceback")
    assert lines[-2] == "IndexError: list index out of range"
    assert "report" in lines[-1]


@pytest.mark.parametrize(
    ("raised", "status", "said"),
    [
        (MemoryError(), 1, "out of memory"),
        (RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes."), 1, "out of memory (RESOURCE_EXHAUSTED: Out of"),
        (OSError(28, "No space left on device", "/x"), 1, "the disk is full ([Errno 28] No space left on device: '/x')"),
        (RuntimeError("RESOURCE_EXHAUSTED: Error writing /x: No space left on device"), 1, "the disk is full (RESOURCE_EXHAUSTED"),
        (RuntimeError("Unable to initialize backend 'tpu': no chip"), 1, "JAX cannot use"),
        (PermissionError(13, "Permission denied", "/x"), 1, "/x: Permission denied; choose another path"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_what_the_machine_refuses(capsys, monkeypatch, raised, status, said):
    def fails(args):
        raise raised

    monkeypatch.setitem(cli.COMMANDS, "doctor", (cli.COMMANDS["doctor"][0], fails))
    assert cli.main(["doctor"]) == status
    line = capsys.readouterr().err
    assert said in line
    assert line.count("\n") == bool(said)


def test_a_quota_is_not_memory(capsys, monkeypatch):
    def fails(args):
        raise RuntimeError("RESOURCE_EXHAUSTED: Quota exceeded for requests to the bucket")

    monkeypatch.setitem(cli.COMMANDS, "doctor", (cli.COMMANDS["doctor"][0], fails))
    assert cli.main(["doctor"]) == 1
    assert "out of memory" not in capsys.readouterr().err


def test_an_absent_device_of_the_environment_is_one_line():
    child = subprocess.run(
        [sys.executable, "-m", "jaxdiff", "verify", "ddim"],
        capture_output=True,
        text=True,
        env={**os.environ, "JAX_PLATFORMS": "cuda"},
    )
    assert child.returncode == 1
    assert child.stderr.count("\n") == 1, child.stderr
    assert "jaxdiff doctor" in child.stderr
