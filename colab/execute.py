"""Runs notebooks from top to bottom and stores their outputs, cleaned: python colab/execute.py colab/02_functional_samplers.ipynb.

A notebook says in its metadata with which values the cell tagged `parameters` is followed where it is only tested:
`"jaxdiff": {"reduced": {"STEPS": 20}}`. Needs pip install -e ".[test]".
"""

from __future__ import annotations

import base64
import io
import os
import pathlib
import re
import resource
import sys
import tempfile
import time
from collections.abc import Mapping

import nbclient
import nbformat
from PIL import Image

PICTURE = 59_000
FEW = 10_000  # bytes of a picture that stays as it is
ROOT = pathlib.Path(__file__).resolve().parents[1]
STRICT = """\
def strict(command, run=get_ipython().system):
    run(command)
    if get_ipython().user_ns["_exit_code"]:
        raise RuntimeError(f"exit status {get_ipython().user_ns['_exit_code']}: {command}")


get_ipython().system = strict
"""
"""What makes a failing `!command` fail its cell, which it does not by itself."""


def executed(
    path: pathlib.Path, workdir: pathlib.Path, reduced: bool = False, before: str = "", **env: str
) -> nbformat.NotebookNode:
    """The notebook with the outputs that it has in `workdir`, run by this Python with the variables `env` beside its own.

    `before` is Python that runs first.

    Raises:
        CellExecutionError: a cell failed, or a command in it.
    """
    notebook = nbformat.read(path, as_version=4)
    cells = list(notebook.cells)
    first = nbformat.v4.new_code_cell(STRICT + before)
    place = next(number for number, cell in enumerate(cells) if "parameters" in cell.metadata.get("tags", []))
    values = notebook.metadata.jaxdiff.reduced if reduced else {}
    small = nbformat.v4.new_code_cell("\n".join(f"{name} = {value!r}" for name, value in values.items()))
    running = nbformat.from_dict({**notebook, "cells": [first, *cells[: place + 1], small, *cells[place + 1 :]]})
    (workdir / "configs").symlink_to(ROOT / "configs")
    client = nbclient.NotebookClient(running, timeout=None, kernel_name="python3", resources={"metadata": {"path": str(workdir)}})
    client.execute(env=_environment(env))
    return nbformat.from_dict({**running, "cells": running.cells[1 : place + 2] + running.cells[place + 3 :]})


def _environment(env: Mapping[str, str]) -> dict[str, str]:
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "PYTHONWARNINGS": "ignore:os.fork", **env}


def cleaned(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The notebook without what differs from run to run: counts, times, and all but the last state of progress bars."""
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number:02d}"
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.execution_count = None
            cell.outputs = list(filter(None, map(_output, _joined(cell.outputs))))
    notebook.metadata.kernelspec = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook.metadata.language_info = {"name": "python"}
    return notebook


def _joined(outputs: list) -> list:
    """The outputs, with what a cell printed in pieces in one."""
    joined: list = []
    for output in outputs:
        if joined and output.output_type == joined[-1].output_type == "stream" and output.name == joined[-1].name:
            joined[-1].text += output.text
        else:
            joined.append(output)
    return joined


def _output(output: nbformat.NotebookNode) -> nbformat.NotebookNode | None:
    if output.output_type == "execute_result":
        output.execution_count = None
    if "image/png" in output.get("data", {}):
        output.data = {"image/png": smaller(output.data["image/png"]), "text/plain": output.data["text/plain"]}
    if output.output_type != "stream":
        return output
    output.text = printed(output.text)
    return output if output.text.strip() else None


def printed(text: str) -> str:
    """The text as a terminal shows it at the end, without colours and unfinished progress bars."""
    lines = []
    for line in re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text).replace("\r\n", "\n").split("\n"):
        shown = ""
        for part in line.split("\r"):
            shown = part + shown[len(part) :]
        unfinished = re.search(r"(\d+)%\|.*\d+/\d+", shown)
        shown = shown[unfinished.end() :].partition("]")[2] if unfinished and unfinished[1] != "100" else shown
        if shown.strip() or not line:
            lines.append(shown.rstrip())
    return "\n".join(lines)


def smaller(picture: str) -> str:
    """The PNG picture (in base64) with as many colours, up to 64, as leave it below `PICTURE` bytes; with 16 if it never is.

    One of few bytes stays as it is.
    """
    if 3 * len(picture) < 4 * FEW:
        return picture
    found, drawn = Image.open(io.BytesIO(base64.b64decode(picture))).convert("RGB"), io.BytesIO()
    for colours in (64, 48, 32, 24, 16):
        drawn = io.BytesIO()
        found.quantize(colours, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(drawn, format="PNG", optimize=True)
        if drawn.tell() < PICTURE:
            break
    return base64.b64encode(drawn.getvalue()).decode()


def main() -> None:
    """Executes the notebooks that the command line names, and says what time each took."""
    for path in map(pathlib.Path, sys.argv[1:]):
        began, spent = time.perf_counter(), _cpu_seconds()
        with tempfile.TemporaryDirectory() as workdir:
            notebook = cleaned(executed(path, pathlib.Path(workdir)))
        nbformat.write(notebook, path)
        print(f"{path}: {time.perf_counter() - began:.0f} s, {_cpu_seconds() - spent:.0f} s of CPU")


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()
