"""Shortens a list of a published checkpoint's tensors (name, shape) so that tests can keep it.

    python tests/references/names.py MANIFEST.json OUT.json

MANIFEST.json holds {"config": …, "tensors": {name: {"shape": [...], "dtype": …}}}. OUT.json gets the config and the
tensors with a run of layers written once: "blocks.{0-18}.attn.to_q.weight": [3072, 3072]. `expand` undoes it.
"""

import json
import re
import sys
from pathlib import Path
from typing import Any

Shapes = dict[str, tuple[int, ...]]


def shorten(shapes: Shapes) -> dict[str, list[int]]:
    """Groups names that differ in their first number alone and have one shape; other numbers stay."""
    groups: dict[tuple[str, tuple[int, ...]], list[int]] = {}
    for name, shape in shapes.items():
        number = re.search(r"\.(\d+)\.", name)
        pattern = name if number is None else f"{name[: number.start(1)]}{{}}{name[number.end(1) :]}"
        groups.setdefault((pattern, shape), []).append(int(number[1]) if number else 0)
    out = {}
    for (pattern, shape), numbers in groups.items():
        for low, high in _runs(sorted(numbers)):
            out[pattern.replace("{}", str(low) if low == high else f"{{{low}-{high}}}")] = list(shape)
    return out


def expand(path: Path) -> tuple[dict[str, Any], Shapes]:
    """The config, and every tensor's shape."""
    data = json.loads(path.read_text())
    shapes: Shapes = {}
    for pattern, shape in data["tensors"].items():
        run = re.search(r"\{(\d+)-(\d+)\}", pattern)
        numbers = range(int(run[1]), int(run[2]) + 1) if run else [None]
        for number in numbers:
            shapes[pattern if run is None else pattern.replace(run[0], str(number))] = tuple(shape)
    return data["config"], shapes


def _runs(numbers: list[int]) -> list[tuple[int, int]]:
    runs: list[tuple[int, int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1] = (runs[-1][0], number)
        else:
            runs.append((number, number))
    return runs


if __name__ == "__main__":
    source, target = map(Path, sys.argv[1:])
    manifest = json.loads(source.read_text())
    shapes = {name: tuple(entry["shape"]) for name, entry in manifest["tensors"].items()}
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps({"config": manifest["config"], "tensors": shorten(shapes)}, indent=0))
    assert expand(target) == (manifest["config"], shapes)
