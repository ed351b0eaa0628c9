"""The command line of scripts that draw from a seed."""

import argparse
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any


def run(draw: Callable[[Path, int], Any], doc: str | None) -> None:
    arguments = _parser(doc).parse_args()
    draw(arguments.folder, arguments.seed)


def run_on_base(draw: Callable[[Path, Path, int], Any], doc: str | None) -> None:
    """Of what is drawn for a model that is there."""
    arguments = _parser(doc, "base").parse_args()
    draw(arguments.folder, arguments.base, arguments.seed)


def run_on_base_by_kind(
    draw: Callable[[Path, Path, str, int], Any], doc: str | None, kinds: Iterable[str], usual: Iterable[str]
) -> None:
    """The same, a folder a kind."""
    parser = _parser(doc, "base")
    parser.add_argument("--kinds", nargs="+", choices=list(kinds), default=list(usual))
    arguments = parser.parse_args()
    for kind in arguments.kinds:
        draw(arguments.folder / kind, arguments.base, kind, arguments.seed)


def _parser(doc: str | None, *more: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=doc)
    for name in ("folder", *more):
        parser.add_argument(name, type=Path)
    parser.add_argument("--seed", type=int, default=0)
    return parser
