"""The flags of commands, read from their dataclasses by the rules by which tyro parses them; and what `--help` prints."""

import dataclasses
import inspect
import pathlib
import shutil
import textwrap
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple

import docstring_parser
import tyro

from jaxdiff.app.config import Experiment
from jaxdiff.io.errors import UsageError

DataDir = Annotated[str | None, tyro.conf.arg(help="Directory of tensorflow-datasets, on a disk or gs://.")]
WORDS = {int: "N", float: "X", str: "TEXT", pathlib.Path: "PATH", bool: ""}  # placeholders of values
COLUMN, NARROW = 26, 15  # where texts begin, of flags and of groups
TOP = "run"  # the group of the config's fields that have none

USAGE = """jaxdiff: diffusion models on JAX. A first command, which ends with pictures:

  jaxdiff train digits --workdir runs/digits

runs
  train CONFIG      train a recipe, the file or its name, or resume its run
  ladder CONFIG     train distilled students, compare all at equal network calls
  sample RUN        draw images, as .png or .npz; --labels 0..9 --steps 50
  demo RUN          a page that draws and edits images; --versus RUN: side by side
  evaluate RUN ...  FID, KID, precision, recall; --likelihood: bits per dimension
  report RUN        one HTML page: curves, samples, quality, nearest training images
  ema RUN           another average of the params, of any length, after the training
  latents RUN       encode a data set with the autoencoder of a run

published weights
  import SOURCE     a run of diffusers', CompVis' or OpenAI's weights, or of the hub
  export RUN        a folder that diffusers opens, or a LoRA file
  inspect FILE      names and shapes in a file of weights, and their family

setup and checks
  recipes           names of recipes, with cost and score; recipes copy NAME
  plan CONFIG       memory and speed on TPUs, from the compiler; needs no TPU
  verify SAMPLER    test a sampler on data known exactly, or the network of a run
  data NAME         prepare mnist or cifar10; data import SOURCE: your own images
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


@dataclass(frozen=True)
class GlobalFlags:
    """Flags of every command."""

    device: Literal["cpu", "gpu", "tpu"] | None = None
    """Where to run; by default the best device there is."""
    quiet: bool = False
    """Print only results and errors, no progress bars."""


class Flag(NamedTuple):
    """A flag or positional argument."""

    name: str
    value: str  # placeholder
    choices: tuple[str, ...]
    default: str
    text: str


def of(kind: Any, values: Any = None, prefix: str = "") -> Iterator[Flag]:
    """The flags of a dataclass in order, with defaults from `values`, an instance."""
    hints, below = typing.get_type_hints(kind, include_extras=True), docstring_parser.parse_from_object(kind).params
    texts = {each.arg_name: " ".join((each.description or "").split()) for each in below}
    for field in dataclasses.fields(kind):
        marks = getattr(hints[field.name], "__metadata__", ())
        hint = typing.get_args(hints[field.name])[0] if marks else hints[field.name]
        if typing.get_origin(hint) in (typing.Union, types.UnionType):
            hint = next(each for each in typing.get_args(hint) if each is not type(None))
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        value: Any = getattr(values, field.name, default)
        name = prefix + field.name.replace("_", "-")
        text = texts.get(field.name) or next((mark.help for mark in marks if getattr(mark, "help", None)), "")
        choices = tuple(map(str, typing.get_args(hint))) if typing.get_origin(hint) is Literal else ()
        if dataclasses.is_dataclass(hint):
            inline = any(getattr(mark, "name", None) == "" for mark in marks)
            yield from of(hint, value if dataclasses.is_dataclass(value) else None, "" if inline else f"{name}.")
        elif typing.get_origin(hint) is Mapping:
            yield from (Flag(f"--{name}.{key}", "X", (), str(each), text) for key, each in value.items())
        elif tyro.conf.Positional in marks:
            yield Flag(field.name.upper(), "", choices, "", text)
        else:
            default = f"on; off by --{prefix}no-{name.removeprefix(prefix)}" if value is True else _written(value)
            yield Flag(f"--{name}", _word(hint), choices, default, text)


def _word(hint: Any) -> str:
    """The placeholder of a value in the help: N, X, PATH; empty for a bool, `N N N` or `N ...` for a tuple."""
    if typing.get_origin(hint) is not tuple:
        return WORDS.get(hint, "NAME")
    return " ".join("..." if part is Ellipsis else _word(part) for part in typing.get_args(hint))


def _written(value: Any) -> str:
    """A default as one would type it; empty for None, False and a missing one."""
    if any(value is none for none in (None, False, dataclasses.MISSING, tyro.MISSING)):
        return ""
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def command_help(name: str, kind: Any, values: Any = None, group: str = "") -> str:
    """The help of a command: the flags of the dataclass `kind`, then those of all commands.

    If its flags include a recipe's fields, their groups are listed by name. With a `group`, or `all`: those fields instead.
    """
    width = min(shutil.get_terminal_size((80, 24)).columns, 100)
    config = {flag: flag.name.lstrip("-").partition(".")[0] for flag in of(Experiment, values.experiment)} if values else {}
    hints = {name: hint for name, hint in typing.get_type_hints(Experiment).items() if dataclasses.is_dataclass(hint)}
    groups = {TOP: ", ".join(dict.fromkeys(head for head in config.values() if head not in hints))}
    groups |= {name: docstring_parser.parse_from_object(hint).short_description or "" for name, hint in hints.items()}
    if group and not config:
        raise UsageError(f"{name} has no groups of flags; write jaxdiff {name} --help")
    if group:
        chosen = [flag for flag, head in config.items() if group in ("all", head if head in hints else TOP)]
        if not chosen:
            raise UsageError(f"{name} --help {group}: no such group; write one of {', '.join(groups)}, all")
        return _rows(chosen, width)
    own = [flag for flag in of(kind, values) if flag not in config]
    about, _, example = (inspect.getdoc(kind) or "").partition("Example: ")
    usage = " ".join(["usage: jaxdiff", name, *(flag.name for flag in own if not flag.name.startswith("-")), "[flags]"])
    lines = [usage, "", textwrap.fill(" ".join(about.split()), width), f"  {example.strip()}", ""]
    lines += [_rows([*own, *of(GlobalFlags)], width)]
    if config:
        lines += ["", f"Fields of CONFIG are flags too: jaxdiff {name} CONFIG --help GROUP, or all."]
        for each, text in groups.items():
            lines.append(f"  {each}".ljust(NARROW) + textwrap.shorten(text, width - NARROW, placeholder=" ..."))
    return "\n".join(lines)


def _rows(flags: Iterable[Flag], width: int) -> str:
    """Rows of flags: name, value or short choices; then the text, long choices and the default."""
    rows = []
    for flag in flags:
        head = f"  {flag.name} {'|'.join(flag.choices) or flag.value}".rstrip()
        choices = ""
        if len(head) >= COLUMN and flag.choices:
            head, choices = f"  {flag.name} {flag.value}".rstrip(), f"One of {', '.join(flag.choices)}."
        text = " ".join(part for part in (flag.text, choices, f"[{flag.default}]" if flag.default else "") if part)
        lines = textwrap.wrap(text, width - COLUMN)
        if len(head) < COLUMN:
            head = f"{head:{COLUMN}}{''.join(lines[:1])}".rstrip()
            lines = lines[1:]
        rows += [head, *(" " * COLUMN + line for line in lines)]
    return "\n".join(rows)
