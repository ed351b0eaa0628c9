"""`completions SHELL`: a script with which bash, zsh or fish completes commands, flags and models.

It is made from the commands' own parsers and from the manifests, so that it needs no process while a line is typed.
"""

import argparse
import importlib
from collections.abc import Mapping
from dataclasses import dataclass

MODEL_FLAGS = ("--model", "--models", "--remove")
MODEL_COMMANDS = ("download",)  # whose first word is a model
PROGRAM = "mlx-imagegen"
INSTALLED_BY = {
    "bash": f"source <({PROGRAM} completions bash)",
    "zsh": f"source <({PROGRAM} completions zsh)",
    "fish": f"{PROGRAM} completions fish | source",
}


@dataclass(frozen=True)
class Flag:
    name: str
    help: str


def flags(parser: argparse.ArgumentParser) -> None:
    lines = "; ".join(f"{shell}: {line}" for shell, line in INSTALLED_BY.items())
    parser.add_argument("shell", choices=SCRIPTS, help=f"put into the shell's start-up file, {lines}")


def run(args: argparse.Namespace) -> None:
    from ..cli import COMMANDS
    from ..hub.manifest import manifests

    by_command = {name: _flags_of(name) for name in COMMANDS}
    print(SCRIPTS[args.shell](COMMANDS, by_command, list(manifests())))


def _flags_of(command: str) -> list[Flag]:
    """Without those of other programs, which are hidden."""
    parser = argparse.ArgumentParser(prog=PROGRAM)
    importlib.import_module(f".{command}", __package__).flags(parser)
    shown = [action for action in parser._actions if action.help != argparse.SUPPRESS]
    return [
        Flag(name, (action.help or "").replace("%%", "%"))
        for action in shown
        for name in action.option_strings
        if name.startswith("--")
    ]


def _bash(commands: Mapping[str, str], by_command: Mapping[str, list[Flag]], models: list[str]) -> str:
    cases = "\n".join(f'        {name}) flags="{_joined(by_command[name])}" ;;' for name in commands)
    return f"""\
_mlx_imagegen() {{
    local word="${{COMP_WORDS[COMP_CWORD]}}" previous="${{COMP_WORDS[COMP_CWORD-1]}}" flags words
    case "${{COMP_WORDS[1]}}" in
{cases}
        *) flags="{_joined(by_command["generate"])}" ;;
    esac
    if [[ " {" ".join(MODEL_FLAGS)} " == *" $previous "* || " {" ".join(MODEL_COMMANDS)} " == *" $previous "* ]]; then
        words="{" ".join(models)}"
    elif [[ $word == -* ]]; then
        words="$flags"
    elif (( COMP_CWORD == 1 )); then
        words="{" ".join([*commands, "help", "version"])}"
    fi
    COMPREPLY=($(compgen -W "$words" -- "$word"))
}}
complete -o default -F _mlx_imagegen {PROGRAM}"""


def _zsh(commands: Mapping[str, str], by_command: Mapping[str, list[Flag]], models: list[str]) -> str:
    cases = "\n".join(f"        ({name}) flags=({_joined(by_command[name])}) ;;" for name in commands)
    described = "\n".join(f"        {_quoted(f'{name}:{summary}')}" for name, summary in commands.items())
    return f"""\
#compdef {PROGRAM}
(( $+functions[compdef] )) || {{ autoload -Uz compinit && compinit }}
_mlx_imagegen() {{
    local -a flags commands
    commands=(
{described}
    )
    case $words[2] in
{cases}
        (*) flags=({_joined(by_command["generate"])}) ;;
    esac
    if [[ " {" ".join(MODEL_FLAGS)} {" ".join(MODEL_COMMANDS)} " == *" $words[CURRENT-1] "* ]]; then
        compadd -- {" ".join(models)}
        _files -/
    elif [[ $words[CURRENT] == -* ]]; then
        compadd -- $flags
    elif (( CURRENT == 2 )); then
        _describe command commands
    else
        _files
    fi
}}
compdef _mlx_imagegen {PROGRAM}"""


def _fish(commands: Mapping[str, str], by_command: Mapping[str, list[Flag]], models: list[str]) -> str:
    first = "__fish_use_subcommand"
    lines = [f"complete -c {PROGRAM} -n {first} -a {name} -d {_quoted(text)}" for name, text in commands.items()]
    for name in commands:
        within = f"__fish_seen_subcommand_from {name}"
        when = f"{within}; or {first}" if name == "generate" else within  # its name may be left out
        for flag in by_command[name]:
            values = f" -x -a {_quoted(' '.join(models))}" if flag.name in MODEL_FLAGS else ""
            lines.append(f"complete -c {PROGRAM} -n {_quoted(when)} -l {flag.name[2:]} -d {_quoted(flag.help)}{values}")
        if name in MODEL_COMMANDS:
            lines.append(f"complete -c {PROGRAM} -n {_quoted(within)} -f -a {_quoted(' '.join(models))}")
    return "\n".join(lines)


def _joined(flags: list[Flag]) -> str:
    return " ".join(flag.name for flag in flags)


def _quoted(text: str) -> str:
    """For zsh and fish, which both end a quotation at a lone apostrophe."""
    return "'" + text.replace("\\", "\\\\").replace("'", "’") + "'"


SCRIPTS = {"bash": _bash, "zsh": _zsh, "fish": _fish}
