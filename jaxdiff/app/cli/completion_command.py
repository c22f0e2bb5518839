"""`jaxdiff completion`: its flags, and what it does."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import tyro

from jaxdiff.app.cli import flags
from jaxdiff.app.cli.flags import Flag, GlobalFlags
from jaxdiff.io.recipes import bundled

TAKE_RECIPES = ("train", "plan", "ladder")
ZSH = "autoload -Uz compinit bashcompinit && compinit && bashcompinit\n"  # bash's completion in zsh
BASH = """_jaxdiff() {{
  local word=${{COMP_WORDS[COMP_CWORD]}} command=${{COMP_WORDS[1]}} flags="" values="" recipes=""
  case $command in
{flags}
  esac
  case "$command ${{COMP_WORDS[COMP_CWORD-1]}}" in
{values}
    {places}) recipes="{recipes}" ;;
  esac
  if [ "$COMP_CWORD" = 1 ]; then COMPREPLY=($(compgen -W "{commands} --help --version" -- "$word"))
  elif [ -n "$values" ]; then COMPREPLY=($(compgen -W "$values" -- "$word"))
  elif [ "${{word#-}}" != "$word" ]; then COMPREPLY=($(compgen -W "$flags" -- "$word"))
  else COMPREPLY=($(compgen -f -W "$recipes" -- "$word")); fi
}}
complete -o filenames -F _jaxdiff jaxdiff
"""


@dataclass(frozen=True)
class Completion:
    """Print a script that makes a shell complete commands, flags, their values, recipes and paths.

    Example: jaxdiff completion bash > ~/.local/share/bash-completion/completions/jaxdiff
    """

    shell: tyro.conf.Positional[Literal["bash", "zsh", "fish"]]
    """bash: that file, or a line of ~/.bashrc: source <(jaxdiff completion bash). zsh: the same in ~/.zshrc.
    fish: jaxdiff completion fish > ~/.config/fish/completions/jaxdiff.fish"""


def completion(args: Completion) -> int:
    from jaxdiff.app.cli import COMMANDS

    shared = [*flags.of(GlobalFlags), Flag("--help", "", (), "", "show all flags")]
    known = {name: [*flags.of(kind), *shared] for name, (kind, _) in COMMANDS.items()}
    print(_fish(known) if args.shell == "fish" else (ZSH if args.shell == "zsh" else "") + _bash(known), end="")
    return 0


def _bash(known: Mapping[str, list[Flag]]) -> str:
    names = {name: [flag.name for flag in each if flag.name.startswith("-")] for name, each in known.items()}
    choices = {  # a positional argument comes after the command
        f'"{name} {flag.name if flag.name in names[name] else name}"': flag.choices
        for name, each in known.items()
        for flag in each
        if flag.choices
    }
    return BASH.format(
        flags="\n".join(f'    {name}) flags="{" ".join(each)}" ;;' for name, each in names.items()),
        values="\n".join(f'    {place}) values="{" ".join(each)}" ;;' for place, each in choices.items()),
        commands=" ".join(known),
        places="|".join(f'"{name} {name}"' for name in TAKE_RECIPES) + '|"recipes copy"',
        recipes=" ".join(bundled()),
    )


def _fish(known: Mapping[str, list[Flag]]) -> str:
    lines = [f"complete -c jaxdiff -n __fish_use_subcommand -f -a {name}" for name in known]
    for name, each in known.items():
        for flag in each:
            what = f" -l {flag.name[2:]}" if flag.name.startswith("-") else ""
            what += f" -x -a '{' '.join(flag.choices)}'" if flag.choices else " -r" if flag.value else ""
            if what:
                lines.append(f"complete -c jaxdiff -n '__fish_seen_subcommand_from {name}'{what}")
    lines.append(f"complete -c jaxdiff -n '__fish_seen_subcommand_from {' '.join(TAKE_RECIPES)} copy' -a '{' '.join(bundled())}'")
    return "\n".join(lines) + "\n"
