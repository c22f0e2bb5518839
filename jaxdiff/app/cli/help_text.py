"""What `jaxdiff` and `jaxdiff COMMAND --help` print."""

from __future__ import annotations

import dataclasses
import inspect
import shutil
import textwrap
from collections.abc import Iterable
from typing import Any

from jaxdiff.app.cli import flags
from jaxdiff.app.cli.flags import Flag
from jaxdiff.app.config import Experiment
from jaxdiff.io.errors import UsageError

COLUMN, NARROW = 26, 15  # where texts begin, of flags and of groups
TOP = "run"  # the group of the config's fields that have none

USAGE = """jaxdiff: diffusion models on JAX. A first command, which ends with pictures:

  jaxdiff train configs/digits.py --workdir runs/digits

runs
  train CONFIG      train a recipe such as configs/digits.py, or resume its run
  ladder CONFIG     train distilled students, compare all at equal network calls
  sample RUN        draw images, as .png or .npz; --labels 0..9 --steps 50
  evaluate RUN ...  FID, KID, precision, recall; --likelihood: bits per dimension
  report RUN        one HTML page: curves, samples, quality, nearest training images
  latents RUN       encode a data set with the autoencoder of a run

setup and checks
  plan CONFIG       memory and speed on TPUs, from the compiler; needs no TPU
  verify SAMPLER    test a sampler on data whose denoiser is known exactly
  data NAME         prepare mnist or cifar10
  doctor            versions, devices, directories, and what is wrong with them
  completion SHELL  script that completes commands, flags and paths

with every command
  --help            its flags, with an example; fields of a recipe: train --help model
  --device gpu      where to run: cpu, gpu or tpu
  --quiet           print only results and errors
jaxdiff --version   the version

exit status: 0 success; 1 error, or plan, verify or doctor found a problem;
2 wrong arguments; 130 Ctrl-C
"""


def command_help(name: str, kind: Any, also: Any, values: Any = None, group: str = "") -> str:
    """The help of a command: the flags of the dataclass `kind`, then those of `also`, which all commands have.

    If its flags include a recipe's fields, their groups are listed by name. With a `group`, or `all`: those fields instead.

    Raises:
        UsageError: there is no such group.
    """
    width = min(shutil.get_terminal_size((80, 24)).columns, 100)
    own, config = _parted(kind, values)
    if group and not config:
        raise UsageError(f"{name} has no groups of flags; write jaxdiff {name} --help")
    if group:
        return _rows(_chosen(name, config, group), width)
    about, _, example = (inspect.getdoc(kind) or "").partition("Example: ")
    words = " ".join(flag.name for flag in own if not flag.name.startswith("-"))
    head = [f"usage: jaxdiff {name} {words} [flags]", "", textwrap.fill(" ".join(about.split()), width), f"  {example.strip()}", ""]
    rest = [_rows([*own, *flags.of(also)], width)]
    if config:
        listed = {TOP: ", ".join(dict.fromkeys(flag.name.lstrip("-").partition(".")[0] for flag in config if _group(flag) == TOP))}
        listed |= flags.groups(Experiment)
        rest += ["", f"Fields of CONFIG are flags too: jaxdiff {name} CONFIG --help GROUP, or all."]
        rest += [
            f"  {each}".ljust(NARROW) + textwrap.shorten(said, width - NARROW, placeholder=" ...") for each, said in listed.items()
        ]
    return "\n".join([*head, *rest])


def _group(flag: Flag) -> str:
    return flag.group if flag.group in flags.groups(Experiment) else TOP


def _parted(kind: Any, values: Any) -> tuple[list[Flag], list[Flag]]:
    """A command's own flags, and those of its config."""
    named = {field.name for field in dataclasses.fields(kind)}
    config = list(flags.of(Experiment, values.experiment)) if "experiment" in named else []
    names = {flag.name for flag in config}
    return [flag for flag in flags.of(kind, values) if flag.name not in names], config


def _chosen(name: str, config: list[Flag], group: str) -> list[Flag]:
    found = [flag for flag in config if group in ("all", _group(flag))]
    if not found:
        known = dict.fromkeys(map(_group, config))
        raise UsageError(f"{name} --help {group}: no such group; write one of {', '.join(known)}, all")
    return found


def _rows(found: Iterable[Flag], width: int) -> str:
    """Rows of flags: name, value or short choices; then the text, long choices and the default."""
    rows = []
    for flag in found:
        short = f"{flag.name} {'|'.join(flag.choices) or flag.value}".strip()
        fits = len(short) < COLUMN - 2
        choices = f"One of {', '.join(flag.choices)}." if flag.choices and not fits else ""
        said = (flag.text, choices, f"[{flag.default}]" if flag.default else "")
        rows.append(_row(short if fits else f"{flag.name} {flag.value}".strip(), " ".join(part for part in said if part), width))
    return "\n".join(rows)


def _row(head: str, said: str, width: int) -> str:
    lines = textwrap.wrap(said, width - COLUMN) or [""]
    head = f"  {head}"
    if len(head) >= COLUMN:
        return "\n".join([head, *(" " * COLUMN + line for line in lines if line)])
    return "\n".join([f"{head:{COLUMN}}{lines[0]}".rstrip(), *(" " * COLUMN + line for line in lines[1:])])
