"""Converts a 12 GB GGUF file of Qwen-Image (Q4_K, random blocks at the published shapes); measures time and memory.

    python benchmarks/gguf_convert.py FOLDER [--kind Q4_K] [--quant q4] [--layers 60]

A ComfyUI folder of models and the result (25 GB at full size) are written to FOLDER and removed at the end. The text
encoder has one layer, so the time is the transformer's. Prints seconds and MB/s of `cat` over the file, then of `python
-m mlx_imagegen.quantize`, its processor seconds and its peak RSS.
"""

import argparse
import json
import os
import re
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Kind
from quant_convert import timed

from mlx_imagegen.hub.manifest import data_folder
from mlx_imagegen.hub.tensor_shapes import each_name, write_shape_only
from tests.gguf_files import draw_blocks

LAYER = re.compile(r"(?:transformer_blocks|model\.layers)\.(\d+)\.")
SHAPES = "tensor_shapes/qwen-image.json"
POOL_ROWS, COLUMNS = 8192, 3072  # of random blocks, written over and over
Shapes = Mapping[str, tuple[int, ...]]


def published(component: str, layers: int) -> Shapes:
    """A component's, up to so many of its layers, without a vision tower."""
    kinds = json.loads((data_folder("weights") / SHAPES).read_text())["tensors"][component]
    shapes = {name: tuple(shape) for tensors in kinds.values() for names, shape in tensors.items()
              for name in each_name(names)}  # fmt: skip
    return {name: shape for name, shape in shapes.items() if "visual." not in name and layer_of(name) < layers}


def layer_of(name: str) -> int:
    found = LAYER.match(name)
    return int(found[1]) if found else 0


def write_transformer(path: Path, shapes: Shapes, kind: Kind) -> int:
    """Its header by the `gguf` package's writer; matrices are blocks of a pool. Gives the file's bytes."""
    writer = gguf.GGUFWriter(path, "qwen_image")
    elements, nbytes = gguf.GGML_QUANT_SIZES[kind]
    sizes = {}
    for name, shape in shapes.items():
        packed = len(shape) == 2 and shape[1] % elements == 0
        stored = (*shape[:-1], shape[-1] // elements * nbytes) if packed else shape
        sizes[name] = int(np.prod(stored)) * (1 if packed else 4)
        dtype, raw = (np.dtype(np.uint8), kind) if packed else (np.dtype(np.float32), None)
        writer.add_tensor_info(name, stored, dtype, sizes[name], raw_dtype=raw)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    pool = draw_blocks(kind, POOL_ROWS, COLUMNS)[0].tobytes()
    with path.open("ab") as file:
        file.write(b"\0" * (-file.tell() % 32))
        for name, shape in shapes.items():
            is_plain = sizes[name] == 4 * int(np.prod(shape))
            write_run(file, sizes[name], b"\0" * len(pool) if is_plain else pool)
            file.write(b"\0" * (-file.tell() % 32))
    return path.stat().st_size


def write_run(file: Any, left: int, pool: bytes) -> None:
    while left:
        left -= file.write(pool[: min(left, len(pool))])


def make(models: Path, kind: Kind, layers: int) -> tuple[Path, int]:
    holes = {place: {"BF16": published(component, 1)} for place, component in
             (("text_encoders", "text_encoder"), ("vae", "vae"))}  # fmt: skip
    models.mkdir(parents=True)
    write_shape_only(models, {"files": {}, "tensors": holes})
    file = models / f"diffusion_models/qwen-image-{kind.name}.gguf"
    file.parent.mkdir()
    return file, write_transformer(file, published("transformer", layers), kind)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kind", default="Q4_K")
    parser.add_argument("--quant", default="q4")
    parser.add_argument("--layers", type=int, default=60)
    args = parser.parse_args()
    models, out = args.folder / "models", args.folder / "out"
    try:
        file, size = make(models, Kind[args.kind], args.layers)
        wall, cpu, _ = timed(["sh", "-c", 'cat "$1" > /dev/null', "cat", str(file)])
        print(f"{size / 1e9:.2f} GB of {args.kind}; cat: {wall:.0f} s, {size / wall / 1e6:.0f} MB/s", flush=True)
        command = [sys.executable, "-m", "mlx_imagegen.quantize", "--quiet", "--model", str(file), "-o", str(out)]
        wall, cpu, peak = timed([*command, "--quant", args.quant])
        pace = f"{wall:.0f} s, {size / wall / 1e6:.0f} MB/s; {cpu:.0f} s of processor, {size / cpu / 1e6:.0f} MB/s"
        print(f"converted: {pace} a core; peak RSS {peak / 1e6:.0f} MB; load {os.getloadavg()[0]:.1f}", flush=True)
    finally:
        shutil.rmtree(models, ignore_errors=True)
        shutil.rmtree(out, ignore_errors=True)


if __name__ == "__main__":
    main()
