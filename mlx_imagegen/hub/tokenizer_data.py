"""Tokenizers that come with the package, for models from single files, which bring none.

In: the name of one in weights/tokenizers/. Out: its files in a folder, as a model's repository has them. The ids of a
byte-level vocabulary follow from the order of its merges: 256 bytes, then what each merge makes.
Must not know: how text is split, which family asks.
"""

from pathlib import Path
from typing import Any

from ..documents import read_json, write_json
from .manifest import data_folder

# Bytes that stand for themselves; all others follow them, and are written as characters from 256 up.
PRINTABLE = (*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100))


def write_tokenizer(folder: Path, name: str) -> None:
    source = data_folder("weights") / "tokenizers"
    data: dict[str, Any] = read_json(source / f"{name}.json")
    merges = (source / data["merges"]).read_text(encoding="utf-8")
    folder.mkdir(parents=True)
    (folder / "merges.txt").write_text(merges, encoding="utf-8")
    write_json(folder / "vocab.json", vocabulary(merges))
    write_json(folder / "tokenizer_config.json", data["tokenizer_config"])


def vocabulary(merges: str) -> dict[str, int]:
    """Token -> id, from a merges.txt."""
    others = 256 - len(PRINTABLE)
    characters = [*map(chr, PRINTABLE), *(chr(256 + index) for index in range(others))]
    merged = [line.replace(" ", "") for line in merges.splitlines() if line and not line.startswith("#version")]
    return {token: index for index, token in enumerate([*characters, *merged])}
