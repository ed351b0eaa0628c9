"""The command line of scripts that draw from a seed."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any


def run(draw: Callable[[Path, int], Any], doc: str | None) -> None:
    parser = argparse.ArgumentParser(description=doc)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    draw(arguments.folder, arguments.seed)
