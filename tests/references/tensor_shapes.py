"""Writes weights/tensor_shapes/NAME.json from a model's folder: its configs, and its tensors' names, dtypes and shapes.

    python tests/references/tensor_shapes.py FOLDER NAME

Nothing but headers is read. Runs of layers that are alike become one line: `layers.{0-35}.norm.weight`.
"""

import json
import re
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

from mlx_imagegen.hub.manifest import data_folder
from mlx_imagegen.loading.checkpoint import open_checkpoint
from mlx_imagegen.loading.config import read_json

CONFIGS = ("config.json", "scheduler_config.json", "preprocessor_config.json")
NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")
LIST = re.compile(r"\[[^\[\]{}]*\]")
# A tokenizer in name only, for layouts that keep it next to the weights: planning encodes nothing.
TOKENIZER = {
    "vocab.json": {"<|endoftext|>": 0, "<|boi_token|>": 1, "<|tms_token|>": 2}, "merges.txt": "#version: 0.2\n",
}  # fmt: skip


def shapes_of(folder: Path) -> dict[str, Any]:
    """What tensor_shapes.write_shape_only makes a folder of."""
    files: dict[str, Any] = {
        path.relative_to(folder).as_posix(): read_json(path)
        for path in sorted(folder.rglob("*.json"))
        if path.name in CONFIGS
    }
    places = sorted(path.parent for path in folder.rglob("config.json") if any(path.parent.glob("*.safetensors")))
    tensors = {place.relative_to(folder).as_posix(): _kinds(place) for place in places}
    if "." in tensors:
        files |= TOKENIZER
    return {"files": files, "tensors": tensors}


def _kinds(place: Path) -> dict[str, dict[str, list[int]]]:
    alike: dict[tuple[str, str, tuple[int, ...]], list[int]] = {}
    whole = place / "model.safetensors"  # small models keep other tensors next to it
    for name, tensor in open_checkpoint(whole if whole.is_file() else place).items():
        number = NUMBER.search(name)
        pattern = NUMBER.sub("#", name, count=1)
        alike.setdefault((pattern, tensor.dtype, tensor.shape), []).append(int(number[0]) if number else 0)
    out: dict[str, dict[str, list[int]]] = {}
    for (pattern, dtype, shape), numbers in alike.items():
        for run in _runs(sorted(numbers)):
            out.setdefault(dtype, {})[pattern.replace("#", run, 1)] = list(shape)
    return out


def _runs(numbers: list[int]) -> list[str]:
    """[0, 1, 2, 5] -> {0-2}, 5"""
    breaks = [0, *(index for index, (a, b) in enumerate(pairwise(numbers), 1) if b != a + 1), len(numbers)]
    return [
        str(numbers[start]) if stop == start + 1 else f"{{{numbers[start]}-{numbers[stop - 1]}}}"
        for start, stop in pairwise(breaks)
    ]


def main() -> None:
    folder, name = Path(sys.argv[1]), sys.argv[2]
    path = data_folder("weights") / "tensor_shapes" / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(dumped(shapes_of(folder)), encoding="utf-8")


def dumped(made: dict[str, Any]) -> str:
    """JSON with a list a line, so that a change shows as the tensors that changed."""
    return LIST.sub(lambda found: " ".join(found[0].split()), json.dumps(made, indent=1)) + "\n"


if __name__ == "__main__":
    main()
