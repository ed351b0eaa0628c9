"""The flags of the parameter table: how each kind of parameter is written on a command line.

In: rows of request/parameters.py. Out: argparse's arguments, named like the parameters. The names that other programs
use are answered with ours.
Must not know: what a parameter does, what any command does.
"""

import argparse
import importlib
import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NoReturn

from ..request import kinds
from ..request.kinds import Kind, Parameter
from ..request.parameters import ALIASES, BY_NAME, MODELS_OWN, limits

Group = argparse._ArgumentGroup


def add_flags(group: argparse._ActionsContainer, rows: Iterable[Parameter]) -> None:
    """The rows' flags; rows without one are left out."""
    for row in rows:
        if row.flag:
            form = FORMS[row.kind] | ({"metavar": row.metavar} if row.metavar else {})
            group.add_argument(row.flag, help=flag_help(row), default=None, **form)


def add_flag(parser: argparse.ArgumentParser, name: str) -> None:
    """One parameter's, for commands that take few."""
    add_flags(parser, [BY_NAME[name]])


def flag_help(row: Parameter) -> str:
    """The row's help, with flags in the place of parameters."""
    shown = re.sub(
        r"`(\w+)`", lambda name: (BY_NAME[name[1]].flag or name[1]) if name[1] in BY_NAME else name[0], row.help
    )
    repeated = "; may be repeated" if FORMS[row.kind].get("action") in ("append", "extend") else ""
    default = "" if row.default_text == MODELS_OWN else row.default_text.strip("`")  # a group's heading says it
    return f"{shown}{repeated}{f' ({default})' if default else ''}"


def add_aliases(parser: argparse.ArgumentParser) -> None:
    """Flags that other programs have: not shown, and answered with the name of ours."""
    for alias, name in ALIASES.items():
        if flag := BY_NAME[name].flag:
            names = "--" + alias.replace("_", "-"), f"--{alias}"
            parser.add_argument(*names, action=_Alias, nargs="?", const=flag, help=argparse.SUPPRESS)


class _Alias(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, _: object, __: object, flag: str | None = None) -> NoReturn:
        parser.error(f"there is no {flag} (did you mean {self.const}?)")


def as_path(text: str) -> Path:
    """An empty one would mean the folder that one is in."""
    if not text:
        raise argparse.ArgumentTypeError("the name is empty; give a file or a folder")
    return Path(text)


def size(text: str) -> tuple[int, int]:
    """Width and height: 1024 or 1024x768."""
    sides = text.lower().replace("×", "x").split("x")
    if len(sides) > 2 or not all(side.isdecimal() and int(side) for side in sides):
        raise argparse.ArgumentTypeError(f"'{text}' is not a size such as 1024 or 1024x768")
    return int(sides[0]), int(sides[-1])


def sides(size: tuple[int, int] | None) -> dict[str, int]:
    """The parameters that --size stands for."""
    return dict(zip(("width", "height"), size, strict=True)) if size else {}


def seeds(text: str) -> list[int]:
    """One seed or a range: 7 or 1-4."""
    first, dash, last = text.partition("-")
    try:
        low, high = (int(first), int(last)) if dash and first else (int(text), int(text))
    except ValueError:
        low, high = 1, 0
    most = int(limits("count")[1])
    if not 0 <= high - low < most:
        raise argparse.ArgumentTypeError(
            f"'{text}' is neither a whole number nor a range such as 1-4, of {most} at most"
        )
    return list(range(low, high + 1))


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise argparse.ArgumentTypeError(f"not valid JSON ({error})") from None


def number_or_text(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def _parsed_by(module: str, name: str) -> Callable[[str], Any]:
    """A function of a module that takes time to import: imported when the flag is given."""

    def parse(text: str) -> Any:
        return getattr(importlib.import_module(f"..{module}", __package__), name)(text)

    return parse


# What argparse's add_argument takes for each kind.
FORMS: dict[Kind, dict[str, Any]] = {
    kinds.TEXT: {},
    kinds.SHAPE: {},
    kinds.WHOLE_NUMBER: {"type": int},
    kinds.NUMBER: {"type": float},
    kinds.NUMBERS: {"type": float, "nargs": "+"},
    kinds.ONE_OR_TWO_NUMBERS: {"type": float, "nargs": "+"},
    kinds.SWITCH: {"action": "store_true"},
    kinds.CHOICE: {"action": argparse.BooleanOptionalAction},
    kinds.SEEDS: {"type": seeds, "action": "extend"},
    kinds.RADIUS: {"type": lambda text: int(text) if text.isdecimal() else text},
    kinds.SWITCH_OR_TEXT: {},
    kinds.NUMBER_OR_TEXT: {"type": number_or_text},
    kinds.BOXES: {"type": _json},
    kinds.CORNERS: {},
    kinds.EXPANSION: {},
    kinds.PLACE: {},
    kinds.PICTURE: {"type": as_path},
    kinds.PICTURES: {"type": as_path, "nargs": "+"},
    kinds.ARRAY: {"type": as_path},
    kinds.ARRAYS: {"type": as_path, "nargs": "+"},
    kinds.CONTROLS: {"type": _parsed_by("request.controls", "parse_control"), "action": "append"},
    kinds.IMAGE_PROMPTS: {"type": _parsed_by("request.image_prompts", "parse_image_prompt"), "action": "append"},
    kinds.LORAS: {"type": _parsed_by("lora.merge", "parse_lora"), "action": "append"},
}
