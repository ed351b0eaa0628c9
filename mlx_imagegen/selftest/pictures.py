"""The demo models' pictures against those drawn by diffusers and transformers in float32 (weights/demo_pictures/)."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from ..hub.manifest import data_folder
from ..pipeline import load
from ..precision import on_gpu
from .check import Check

PICTURES = "demo picture"
PROMPT = "a small red circle left of a large blue square on a white background"
SEED = 1
# Root mean square, as a part of white. float32 differs from the reference by 4e-5 here. bfloat16, computed on the CPU,
# by 3e-3 at most: the GPU's bound leaves room for its kernels' own order of sums.
CPU_LIMIT, GPU_LIMIT = 1e-3, 2e-2


def picture_checks() -> Iterator[Check]:
    for path in stored_pictures():
        yield picture_check(path)


def stored_pictures() -> list[Path]:
    return sorted((data_folder("weights") / "demo_pictures").glob("*.png"))


def picture_check(path: Path) -> Check:
    with Image.open(path) as opened:
        expected = np.asarray(opened.convert("RGB"), np.float64)
    result = load(path.stem).generate(PROMPT, seed=SEED)
    out = np.asarray(result.image, np.float64)
    error = float(np.sqrt(np.mean((out - expected) ** 2))) / 255
    return Check(PICTURES, f"{path.stem}, root mean square", error, GPU_LIMIT if on_gpu() else CPU_LIMIT)
