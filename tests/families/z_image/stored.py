"""The stored draws with their weights drawn again: tests/data/z_image keeps shapes and diffusers' results alone."""

import functools
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from tests.references.drawn_weights import write_weights

DATA = Path(__file__).parents[2] / "data" / "z_image"
KINDS = ("base", "turbo")


@functools.cache
def stored(kind: str) -> Path:
    """A whole folder, for reading only, for as long as the tests run."""
    folder = Path(_kept().name) / kind
    shutil.copytree(DATA / kind, folder)
    if not (folder / "tokenizer").is_dir():  # every draw has the same
        shutil.copytree(DATA / KINDS[0] / "tokenizer", folder / "tokenizer")
    write_weights(folder)
    return folder


@functools.cache
def _kept() -> "tempfile.TemporaryDirectory[str]":
    return tempfile.TemporaryDirectory(prefix="z-image-")


def options_of(folder: Path) -> dict[str, Any]:
    options: dict[str, Any] = json.loads((folder / "options.json").read_text(encoding="utf-8"))
    return options
