"""`mlx-imagegen COMMAND …`: finds the command, runs it, and turns what goes wrong into one line and an exit code.

Exit codes: 0 done, 2 refused or failed with a reason, 130 interrupted. Results go to stdout, everything else to stderr.
Must not know: what any command does.
"""

import argparse
import difflib
import importlib
import os
import re
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import NoReturn

from . import __version__, interrupts
from .errors import ImagegenError, RequestError, file_errors
from .launched import launch
from .streams import drop_output, standard_streams

# commands/<name>.py -> what it does, in a few words.
COMMANDS = {
    "generate": "make pictures from prompts (this is what runs when no command is named)",
    "upsample": "write the long caption that FLUX.3 wants, from a few words",
    "models": "list the models with their sizes and licences; remove downloaded ones",
    "download": "get a model's files before they are needed",
    "quantize": "write a smaller copy of a model",
    "plan": "say what a run would take: memory, arithmetic, seconds at best",
    "bench": "measure quants and sizes: seconds a stage, memory, difference",
    "compare": "pictures of several models side by side, on one sheet",
    "doctor": "check this machine, and say which models fit it",
    "info": "print how a picture was made, or what a file of weights is",
    "lora": "print what a LoRA is made of, and what of it fits",
    "serve": "keep a model warm behind HTTP: OpenAI's and A1111's APIs, and a page",
    "completions": "print what a shell needs to complete commands, flags and models",
    "mcp": "let an agent make pictures, over MCP on standard input and output",
}
USAGE = f"""\
usage: mlx-imagegen COMMAND [options]
       mlx-imagegen "a prompt" [options]

{chr(10).join(f"  {name:<12} {summary}" for name, summary in COMMANDS.items())}

mlx-imagegen help COMMAND lists a command's options; mlx-imagegen version prints the version."""
ON_RANKS = ("generate", "compare")  # what several ranks do together
# What other programs call them.
OTHER_NAMES = {
    "list": "models", "ls": "models", "pull": "download", "fetch": "download", "convert": "quantize", "show": "info",
    "gen": "generate", "txt2img": "generate", "img2img": "generate", "diff": "compare", "check": "doctor",
}  # fmt: skip

NUMBERS = {"int": "not a whole number", "float": "not a number"}  # in the place of Python's names of types


class Parser(argparse.ArgumentParser):
    """argparse, with its complaint as one line of ours."""

    def error(self, message: str) -> NoReturn:
        message = re.sub("invalid (int|float) value: (.*)", lambda found: f"{found[2]} is {NUMBERS[found[1]]}", message)
        words = re.match("unrecognized arguments: [^-]", message) and self.prog.endswith("generate")
        quotes = " (a prompt of several words goes in quotes)" if words else ""
        raise RequestError(f"{message}{quotes}{self._near(message)}; {self.prog} --help lists the options.")

    def _near(self, message: str) -> str:
        unknown = re.match("unrecognized arguments: (--[^ =]+)", message)
        if unknown is None:
            return ""
        actions = self._option_string_actions
        flags = sorted(
            actions.keys() - {"--help"}, key=lambda flag: (actions[flag].help == argparse.SUPPRESS, len(flag), flag)
        )
        begun = [flag for flag in flags if flag.startswith(unknown[1])]
        near = begun or difflib.get_close_matches(unknown[1], flags, n=1, cutoff=0.7)
        if not near:
            return ""
        action = actions[near[0]]  # a hidden one answers with the flag that is meant
        return f" (did you mean {action.const if action.help == argparse.SUPPRESS else near[0]}?)"


def main(argv: Sequence[str] | None = None) -> int:
    try:
        with standard_streams():
            return _exit_code(list(sys.argv[1:] if argv is None else argv))
    except BrokenPipeError:  # `mlx-imagegen models | head`
        drop_output()
        return 141


def _exit_code(arguments: list[str]) -> int:
    try:
        with interrupts.Raised(), file_errors():
            _run(arguments)
            sys.stdout.flush()  # a reader who has gone or a full disk is noticed here
    except ImagegenError as error:
        print(f"mlx-imagegen: {error}", file=sys.stderr)
        return 2
    except MemoryError:
        print("mlx-imagegen: the memory that this process may use is not enough; raise its limit.", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return interrupts.report()
    return 0


def entry(*command: str) -> NoReturn:
    interrupts.begin()
    sys.exit(main([*command, *sys.argv[1:]]))


def _run(arguments: list[str]) -> None:
    first, *rest = arguments or ["help"]
    if first in ("-h", "--help", "help"):
        _help(rest if first == "help" else [])
    elif first in ("--version", "version") and not rest:
        print(__version__)
    else:
        name, rest = _command(arguments)
        if name not in ON_RANKS and launch():
            raise RequestError(f"{name} is not shared out over ranks; run it on one host, without mlx.launch.")
        module = _module(name)
        args = _parser(name, module).parse_args(rest)
        if getattr(args, "comfy", None):  # for all that the command opens, in its processes too
            os.environ["MLX_IMAGEGEN_COMFY"] = args.comfy
        module.run(args)


def _help(names: list[str]) -> None:
    if not names:
        print(USAGE)
        return
    name = names[0]
    if len(names) > 1 or name not in COMMANDS:
        prompt = _as_prompt(f'"help {" ".join(names)}"')
        raise RequestError(f"'{' '.join(names)}' is no command; there are {', '.join(COMMANDS)}.{prompt}")
    _parser(name, _module(name)).print_help()


def _parser(name: str, module: ModuleType) -> Parser:
    parser = Parser(prog=f"mlx-imagegen {name}", description=COMMANDS[name], allow_abbrev=False)
    module.flags(parser)
    return parser


def _command(arguments: list[str]) -> tuple[str, list[str]]:
    """The command and its arguments; a line that begins with a prompt or an option means `generate`."""
    first = arguments[0]
    if first in COMMANDS:
        return first, arguments[1:]
    if meant := _nearest_command(first):
        raise RequestError(
            f"'{first}' is no command; did you mean {meant}? mlx-imagegen help lists them.{_as_prompt(first)}"
        )
    return "generate", arguments


def _nearest_command(word: str) -> str | None:
    """The command that a first word probably means; None for a prompt or an option."""
    if " " in word or word.startswith("-"):
        return None
    word = word.lower()
    known = {**{name: name for name in (*COMMANDS, "help", "version")}, **OTHER_NAMES}
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.7)
    return known[near[0]] if near else None


def _as_prompt(word: str) -> str:
    return f" To use it as a prompt, say: mlx-imagegen generate {word}"


def _module(name: str) -> ModuleType:
    return importlib.import_module(f".commands.{name}", __package__)
