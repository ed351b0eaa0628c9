"""The folder of test data as tests and benchmarks use it: what tests/data stores, and the weights that it describes.

Most of the tiny models' weights are random. tests/data has a description in place of each such file
(tests/references/weight_descriptions.py), and here they are drawn. Equal files are stored once
(tests/references/share.py), and put back here.
"""

import functools
import json
import shutil
import tempfile
from pathlib import Path

from tests.references.weight_descriptions import SUFFIX, write

STORED = Path(__file__).parent / "data"
SHARED = "shared.json"  # a file that is not stored -> the one that is equal


@functools.cache
def drawn_data() -> Path:
    """A copy of tests/data with all weights in it. It lasts as long as the process; read only."""
    folder = Path(_temporary().name).resolve()
    stored = {path.relative_to(STORED).as_posix(): path for path in STORED.rglob("*") if path.is_file()}
    shared: dict[str, str] = json.loads((STORED / SHARED).read_text())
    stored |= {name: STORED / source for name, source in shared.items()}
    for name, path in stored.items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(SUFFIX):
            write(path, target.with_name(target.name.removesuffix(SUFFIX) + ".safetensors"))
        elif f"{name.rpartition('.')[0]}{SUFFIX}" not in stored:  # weights that a reference script left there
            shutil.copyfile(path, target)
    return folder


@functools.cache
def _temporary() -> "tempfile.TemporaryDirectory[str]":
    return tempfile.TemporaryDirectory(prefix="mlx_imagegen_data_")  # removed when the process ends
