"""Qwen-Image's modulation at the published width: from the weights, from the cache, and folded by the converter.

    python benchmarks/run.py qwen_fold [--layers 4] [--folder FOLDER]

Makes a random bf16 transformer with that many of the 60 blocks, and measures each way in its own process, with files
dropped from the system's cache first: seconds, processor seconds and peak RSS of tabulating 8 and 50 steps, of reading
the stored tables, and of `quantize` with and without --fold. All but the constant parts grow with the blocks.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
from quant_convert import shapes, timed, write

from mlx_imagegen.bfloat import to_bf16
from mlx_imagegen.families.qwen_image.config import QwenImageConfig
from mlx_imagegen.families.qwen_image.modulation import QwenImageModulators
from mlx_imagegen.families.qwen_image.transformer import QwenImageTransformer
from tests.draw import drawn_data

ROOT = Path(__file__).resolve().parents[1]
BLOCKS = 60
# Of the published config what decides the widths; the rest is the stored draw's, whose other parts lie next to it.
WIDTHS = {"attention_head_dim": 128, "num_attention_heads": 24, "axes_dims_rope": [16, 56, 56]}
PREPARE = """
import sys, time, resource
from pathlib import Path
import mlx_imagegen
import mlx.core as mx
from mlx_imagegen.families import open_family
from mlx_imagegen.hub.recognition import recognize
from mlx_imagegen.loading.weights import WeightTransforms
folder, steps = Path(sys.argv[1]), int(sys.argv[2])
family = open_family(recognize(folder), folder, WeightTransforms())
wall, cpu = time.perf_counter(), time.process_time()
tables, said = family.modulation.of([1000.0 - 7 * i for i in range(steps)])
wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
print(f"  {steps:>2} steps, {said}: {wall:.2f} s, {cpu:.2f} s of processor", flush=True)
"""


def make(folder: Path, blocks: int) -> int:
    """The stored draw with a transformer of the published widths; gives the bytes of its modulation."""
    shutil.copytree(drawn_data() / "qwen_image/image", folder)
    path = folder / "transformer/config.json"
    data = json.loads(path.read_text()) | WIDTHS | {"num_layers": blocks}
    path.write_text(json.dumps(data))
    config = QwenImageConfig.read(data, "benchmark")
    modulation = shapes(QwenImageModulators(config))
    pool = to_bf16((0.02 * np.random.default_rng(0).standard_t(5, 2**24)).astype(np.float32)).tobytes()
    everything = sorted((shapes(QwenImageTransformer(config)) | modulation).items())  # block by block, as published
    write(folder / "transformer/diffusion_pytorch_model.safetensors", everything, pool)
    return sum(2 * int(np.prod(shape)) for shape in modulation.values())


def forget(folder: Path) -> None:
    """Drops the files from the system's cache, where there is a call for it."""
    for path in folder.rglob("*.safetensors"):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "qwen_fold")
    args = parser.parse_args()
    shutil.rmtree(args.folder, ignore_errors=True)
    os.environ["XDG_CACHE_HOME"] = str(args.folder / "cache")
    source = args.folder / "source"
    try:
        size = make(source, args.layers)
        print(f"{args.layers} of {BLOCKS} blocks: {size / 1e9:.2f} GB of modulation in bf16", flush=True)
        for steps in (8, 50):
            for _ in range(2):
                forget(args.folder)
                timed([sys.executable, "-c", PREPARE, str(source), str(steps)], quiet=False)
            kept = max((args.folder / "cache").rglob("*.safetensors"), key=lambda path: path.stat().st_mtime_ns)
            print(f"  {steps:>2} steps: {kept.stat().st_size / 1e6:.1f} MB kept", flush=True)
        whole = (source / "transformer/diffusion_pytorch_model.safetensors").stat().st_size
        for more in ([], ["--fold", "8"], ["--fold", "50"]):
            made = args.folder / "made"
            forget(args.folder)
            command = [sys.executable, "-m", "mlx_imagegen.quantize", "--quiet", "--model", str(source), "--bits", "6"]
            wall, cpu, peak = timed([*command, "-o", str(made), *more])
            out = (made / "transformer/diffusion_pytorch_model.safetensors").stat().st_size
            pace = f"{wall:.0f} s, {cpu:.0f} s of processor, {whole / cpu / 1e6:.0f} MB/s a core"
            sizes = f"{whole / 1e9:.2f} -> {out / 1e9:.2f} GB"
            print(f"  q6 {' '.join(more):10} {sizes}: {pace}, peak RSS {peak / 1e6:.0f} MB", flush=True)
            shutil.rmtree(made)
    finally:
        shutil.rmtree(args.folder, ignore_errors=True)


if __name__ == "__main__":
    main()
