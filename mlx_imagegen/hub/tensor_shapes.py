"""The shapes of published checkpoints, so that a model can be planned before it is downloaded.

In: a manifest whose `tensor_shapes` names a file of weights/tensor_shapes/. Out: a folder like the repository's, in
which the small config files are real and the tensors' bytes are holes that take no room. Families open it as they open
any other.
Must not know: families, plans. Nothing may be read from such a folder but headers: every weight in it is zero.
"""

import json
import math
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ..loading.checkpoint import DTYPES
from ..loading.config import read_json
from .manifest import Manifest, data_folder

RUN = re.compile(r"\{(\d+)-(\d+)\}")  # layers.{0-35}.norm stands for 36 names

Tensors = Mapping[str, Mapping[str, list[int]]]  # dtype -> name, or a run of names -> shape


def has_tensor_shapes(manifest: Manifest) -> bool:
    return manifest.tensor_shapes is not None


@contextmanager
def shape_only_folder(manifest: Manifest) -> Iterator[Path]:
    """A folder with the manifest's headers, for as long as the block runs."""
    data = read_tensor_shapes(str(manifest.tensor_shapes))
    with tempfile.TemporaryDirectory(prefix="mlx-imagegen-") as name:
        write_shape_only(Path(name), data)
        yield Path(name)


def read_tensor_shapes(name: str) -> dict[str, Any]:
    """A file's shapes, on top of its `base` file's where it names one."""
    data = read_json(data_folder("weights") / "tensor_shapes" / f"{name}.json")
    return _merged(read_tensor_shapes(data.pop("base")), data) if "base" in data else data


def _merged(base: Any, changes: Any) -> Any:
    if not isinstance(base, dict) or not isinstance(changes, dict):
        return changes
    return base | {key: _merged(base.get(key), value) for key, value in changes.items()}


def write_shape_only(folder: Path, shapes: Mapping[str, Any]) -> None:
    for place, content in shapes["files"].items():
        path = folder / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    for place, tensors in shapes["tensors"].items():
        (folder / place).mkdir(parents=True, exist_ok=True)
        _write_shape_only_file(folder / place / "model.safetensors", tensors)


def _write_shape_only_file(path: Path, kinds: Tensors) -> None:
    header, end = {}, 0
    for dtype, tensors in kinds.items():
        itemsize = np.dtype(DTYPES[dtype][0]).itemsize
        for names, shape in tensors.items():
            for name in each_name(names):
                size = math.prod(shape) * itemsize
                header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size]}
                end += size
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)  # a hole up to here


def each_name(names: str) -> Iterator[str]:
    run = RUN.search(names)
    if run is None:
        yield names
        return
    for number in range(int(run[1]), int(run[2]) + 1):
        yield f"{names[: run.start()]}{number}{names[run.end() :]}"
