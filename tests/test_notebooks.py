"""The notebooks of colab/: each runs from top to bottom at reduced sizes, and stands in the repository as people should find it."""

import ast
import base64
import io
import os
import pathlib
import re
import sys
import time

import execute
import forked
import jax
import nbformat
import numpy as np
import pytest
import small_unet
from jupyter_client.provisioning import local_provisioner
from PIL import Image

COLAB = pathlib.Path(__file__).parents[1] / "colab"
NOTEBOOKS = sorted(COLAB.glob("[0-9]*.ipynb"))
BADGE = (
    "[![Open In Colab](https://colab.research.google.com/assets/colab-badge.svg)]"
    "(https://colab.research.google.com/github/jaxdiff/jaxdiff/blob/main/colab/{})"
)
PICTURE, WHOLE = 60_000, 500_000  # bytes
LONGEST = 12  # lines of a function or class: what is longer belongs in the library
LAST_INSTALLING = 2  # the cells up to this one find or install jaxdiff

SMALL = """\
import contextlib, io, os, runpy, shlex, sys
from IPython.utils.text import SList
from small_unet import replace_networks, share_contexts
from jaxdiff.app import cli
{quick}()

def first_on_path(info):
    os.environ["PATH"] = {bin!r} + os.pathsep + os.environ["PATH"]

def system(command, run=get_ipython().system):
    command = get_ipython().var_expand(command, depth=1)
    simple = command.removeprefix("JAX_PLATFORMS=cpu ").removesuffix(' || echo "exit status $?"')
    words = [] if set("|&>") & set(simple) else shlex.split(simple)
    if words[:1] == ["jaxdiff"]:
        status = cli.main(words[1:])
        assert status == 0 or simple != command, command
    elif words[:1] == ["python"]:
        runpy.run_path(words[1], run_name="__main__")
    else:
        run(command)

def getoutput(command, *options, run=get_ipython().getoutput, **more):
    words = shlex.split(command)
    if words[:2] != ["python", "-c"]:
        return run(command, *options, **more)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(words[2], {{}})
    return SList(printed.getvalue().splitlines())

get_ipython().system, get_ipython().getoutput = system, getoutput
get_ipython().events.register("pre_run_cell", first_on_path)
"""
"""Of a notebook that is tested: small networks or quick compilation (`quick`), and simple commands without a process each."""

each = pytest.mark.parametrize("path", NOTEBOOKS, ids=[path.stem for path in NOTEBOOKS])


def read(path):
    return nbformat.read(path, as_version=4)


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def parameters(notebook):
    (cell,) = (cell for cell in code(notebook) if "parameters" in cell.metadata.get("tags", []))
    return cell


def python(source):
    """The Python of a cell, without commands: `!`, `x = !`, and files written by `%%writefile` but for their first line."""
    lines = source.splitlines()
    lines = lines[1:] if source.startswith("%%writefile") else lines
    return "\n".join(re.sub(r"(^\s*|= ?)[!%].*", r"\1None", line) for line in lines)


def pictures(notebook):
    found = [
        output.data["image/png"] for cell in code(notebook) for output in cell.outputs if "image/png" in output.get("data", {})
    ]
    return [base64.b64decode(picture) for picture in found]


def blank(picture):
    pixels = np.asarray(Image.open(io.BytesIO(picture)).convert("L"))
    return pixels.std() < 1


@pytest.fixture
def forked_kernels(tmp_path, monkeypatch):
    """Kernels are forked from a process that has imported everything, as leaders of their process groups."""

    def launch(command, env, cwd, **_):
        out, err = tmp_path / "kernel.out", tmp_path / "kernel.err"
        child = forked.call(kernel, command[command.index("-f") :], env, cwd, out=out, err=err)
        while child.poll() is None and os.getpgid(child.pid) != child.pid:
            time.sleep(0.01)
        return child

    monkeypatch.setattr(local_provisioner, "launch_kernel", launch)


def kernel(words, env, cwd):
    """What `python -m ipykernel_launcher` does, in a process that has read another environment."""
    import matplotlib
    from ipykernel import kernelapp

    os.setsid()
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    sys.path.insert(0, "")
    jax.config.update("jax_platforms", env.get("JAX_PLATFORMS", "cpu"))
    jax.config.update("jax_num_cpu_devices", int(env.get("JAX_NUM_CPU_DEVICES", 1)))
    matplotlib.use("module://matplotlib_inline.backend_inline")
    kernelapp.launch_new_instance(words)


@pytest.mark.slow
@each
def test_runs_from_top_to_bottom(path, tmp_path, tfds_dir, forked_kernels):
    offline = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    offline |= dict.fromkeys(("no_proxy", "NO_PROXY"), "localhost,127.0.0.1")  # where processes of one run meet
    here = {
        "JAX_PLATFORMS": "cpu",
        "TFDS_DATA_DIR": tfds_dir,
        "JAXDIFF_CACHE_DIR": str(tmp_path / "cache"),
        "IPYTHONDIR": str(tmp_path),
        "JAX_NUM_CPU_DEVICES": "8" if path.name.startswith("05") else "1",
    }
    command = tmp_path / "bin" / "jaxdiff"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec {sys.executable} {small_unet.__file__} "$@"\n')
    command.chmod(0o755)
    published = path.name.startswith("06")  # its networks are small ones of the published kinds
    small = SMALL.format(bin=str(command.parent), quick="share_contexts" if published else "replace_networks")
    ran = execute.executed(path, tmp_path, reduced=True, before=small, **offline, **here)
    drawn = pictures(ran)
    assert len(drawn) == len(pictures(read(path)))
    assert not any(map(blank, drawn))


@each
def test_opens_with_badge_and_run_time(path):
    opening = read(path).cells[0]
    assert opening.cell_type == "markdown"
    assert opening.source.startswith("# ")
    assert BADGE.format(path.name) in opening.source
    assert "CPU cores" in opening.source
    assert "measured" in opening.source
    assert "TPU" in opening.source
    assert "@@" not in opening.source


@each
def test_sizes_are_set_in_one_cell_and_reduced_in_the_metadata(path):
    notebook = read(path)
    source = parameters(notebook).source
    targets = [node.targets for node in ast.walk(ast.parse(python(source))) if isinstance(node, ast.Assign)]
    names = {target.id for several in targets for target in several if isinstance(target, ast.Name)}
    assert "default_backend()" in source
    assert notebook.metadata.jaxdiff.reduced.keys() <= names


@each
def test_imports_jaxdiff_and_defines_nothing_that_belongs_there(path):
    for cell in code(read(path)):
        for node in ast.walk(ast.parse(python(cell.source))):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                assert node.end_lineno - node.lineno < LONGEST, node.name


@each
def test_stored_outputs_are_whole(path):
    notebook = read(path)
    nbformat.validate(notebook)
    for cell in code(notebook)[LAST_INSTALLING:]:
        assert all(output.output_type != "error" for output in cell.outputs)
        if re.search(r"^\s*(!jaxdiff|print\(|figure, )", cell.source, re.MULTILINE) and "if NAME" not in cell.source:
            assert cell.outputs, cell.source
    assert pictures(notebook)


@each
def test_stored_outputs_are_small_and_tell_nothing_of_a_machine(path):
    notebook = read(path)
    assert path.stat().st_size < WHOLE
    assert max(map(len, pictures(notebook))) < PICTURE
    assert set(notebook.metadata) <= {"accelerator", "colab", "jaxdiff", "kernelspec", "language_info"}
    assert notebook.metadata.kernelspec == {"display_name": "Python 3", "language": "python", "name": "python3"}
    for cell in code(notebook):
        assert cell.execution_count is None
        texts = [output.get("text", "") + str(output.get("data", {}).get("text/plain", "")) for output in cell.outputs]
        assert not re.search(r"/(tmp|work|home|root|usr|opt)/|\x1b|\r", "".join(texts)), texts
        assert not re.search(r"\b\d?\d%\|", "".join(texts).replace("100%|", "")), texts


@each
def test_no_command_waits_for_a_chip_that_the_notebook_holds(path):
    """A TPU belongs to one process: where commands want it, the device is asked for in another process."""
    notebook = read(path)
    commands = [line for cell in code(notebook)[1:] for line in cell.source.splitlines() if re.match(r"\s*!.*jaxdiff ", line)]
    if any("JAX_PLATFORMS=cpu" not in line for line in commands):
        assert "!python -c" in parameters(notebook).source


def test_a_cell_fails_with_its_command(tmp_path, forked_kernels):
    cells = [nbformat.v4.new_code_cell("", metadata={"tags": ["parameters"]}), nbformat.v4.new_code_cell("!exit 3")]
    path = tmp_path / "failing.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    with pytest.raises(Exception, match="exit status 3"):
        execute.executed(path, tmp_path)


def test_printed_keeps_the_last_state_of_lines():
    bars = "training:   0%|   | 0/4 [00:00<?]\rtraining:  50%|#  | 2/4 [00:01<00:01]\rtraining: 100%|###| 4/4 [00:02<00:00]"
    assert execute.printed(bars + "\r\nsaved\r\n") == "training: 100%|###| 4/4 [00:02<00:00]\nsaved\n"
    assert execute.printed("sampling: 100%|##| 2/2 [00:00]\r" + " " * 40 + "\r\x1b[1mdone\x1b[0m\n") == "done\n"


def test_every_notebook_is_here():
    assert [path.name[:3] for path in NOTEBOOKS] == ["01_", "02_", "03_", "04_", "05_", "06_"]
