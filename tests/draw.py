"""The folder of test data as tests and benchmarks use it: what tests/data stores, and the weights that it describes.

Most of the tiny models' weights are random. tests/data has a description in place of each such file
(tests/references/weight_descriptions.py), and here they are drawn. What two models of one seed have in common is stored
with one of them; shared.json says where.
"""

import functools
import json
import shutil
import tempfile
from pathlib import Path

from tests.references.weight_descriptions import SUFFIX, write

STORED = Path(__file__).parent / "data"
SHARED = "shared.json"  # a folder's part -> where it is, from there


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
    for listing in folder.rglob(SHARED):
        for part, place in json.loads(listing.read_text()).items():
            source, target = listing.parent / place, listing.parent / part
            target.parent.mkdir(parents=True, exist_ok=True)
            (shutil.copytree if source.is_dir() else shutil.copyfile)(source, target)
    return folder


@functools.cache
def _temporary() -> "tempfile.TemporaryDirectory[str]":
    return tempfile.TemporaryDirectory(prefix="mlx_imagegen_data_")  # removed when the process ends
