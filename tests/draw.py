"""The folder of test data as tests and benchmarks use it: what tests/data stores, and the weights that it describes.

Most of the tiny models' weights are random. tests/data has a description in place of each such file
(tests/references/weight_descriptions.py), and here they are drawn.
"""

import functools
import shutil
import tempfile
from pathlib import Path

from tests.references.weight_descriptions import SUFFIX, write

STORED = Path(__file__).parent / "data"


@functools.cache
def drawn_data() -> Path:
    """A copy of tests/data with all weights in it. It lasts as long as the process; read only."""
    folder = Path(_temporary().name).resolve()
    for path in STORED.rglob("*"):
        target = folder / path.relative_to(STORED)
        if path.is_dir():
            target.mkdir(parents=True, exist_ok=True)
        elif path.name.endswith(SUFFIX):
            target.parent.mkdir(parents=True, exist_ok=True)
            write(path, target.with_name(path.name.removesuffix(SUFFIX) + ".safetensors"))
        elif not path.with_name(path.stem + SUFFIX).exists():  # weights that a reference script left there
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
    return folder


@functools.cache
def _temporary() -> "tempfile.TemporaryDirectory[str]":
    return tempfile.TemporaryDirectory(prefix="mlx_imagegen_data_")  # removed when the process ends
