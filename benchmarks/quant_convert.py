"""Converts a random FLUX.1-dev transformer of the published size (23.8 GB, bf16, 3 shards); measures time and memory.

    python benchmarks/quant_convert.py FOLDER [--quant q6] [--scale 1.0] [--keep]

The source and the result (36 GB at full size) are written to FOLDER and removed at the end. Prints seconds and MB/s of
`cat` over the source files, then of `python -m mlx_imagegen.quantize`, its processor seconds and its peak RSS.
--scale 0.1 takes a tenth of the blocks.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import mlx.nn as nn
import numpy as np

from mlx_imagegen.bfloat import to_bf16
from mlx_imagegen.families.flux1.config import FluxConfig
from mlx_imagegen.families.flux1.modulation import FluxModulators
from mlx_imagegen.families.flux1.transformer import FluxTransformer
from mlx_imagegen.loading.weights import layers, own_parameters
from tests.draw import drawn_data

ROOT = Path(__file__).resolve().parents[1]
SHARDS = 3
CONFIG = {
    "_class_name": "FluxTransformer2DModel", "attention_head_dim": 128, "guidance_embeds": True, "in_channels": 64,
    "joint_attention_dim": 4096, "num_attention_heads": 24, "num_layers": 19, "num_single_layers": 38, "patch_size": 1,
    "pooled_projection_dim": 768, "axes_dims_rope": [16, 56, 56],
}  # fmt: skip


def shapes(*trees: nn.Module) -> dict[str, tuple[int, ...]]:
    """Of every parameter, in the checkpoint's order."""
    return {
        f"{path}.{name}": value.shape
        for tree in trees
        for path, layer in layers(tree)
        for name, value in own_parameters(layer).items()
    }


def make(folder: Path, scale: float) -> int:
    """A FLUX.1 folder: the stored draw with a transformer of the published widths. Gives its bytes."""
    shutil.copytree(drawn_data() / "flux/dev", folder)
    shutil.rmtree(folder / "transformer")
    (folder / "transformer").mkdir()
    config = CONFIG | {"num_layers": max(1, round(19 * scale)), "num_single_layers": max(1, round(38 * scale))}
    (folder / "transformer/config.json").write_text(json.dumps(config))
    read = FluxConfig.read(config, "benchmark")
    tensors = list(shapes(FluxTransformer(read), FluxModulators(read)).items())
    dice = np.random.default_rng(0)
    pool = to_bf16(
        (0.02 * dice.standard_t(5, 2**24)).astype(np.float32)
    ).tobytes()  # heavy tails, as trained weights have
    weight_map, total, size = {}, 0, sum(2 * int(np.prod(shape)) for _, shape in tensors)
    for shard in range(SHARDS):
        name = f"diffusion_pytorch_model-{shard + 1:05}-of-{SHARDS:05}.safetensors"
        part: list[tuple[str, tuple[int, ...]]] = []
        while tensors and (total < size * (shard + 1) / SHARDS or shard == SHARDS - 1):
            part.append(tensors.pop(0))
            total += 2 * int(np.prod(part[-1][1]))
        weight_map |= {tensor: name for tensor, _ in part}
        write(folder / "transformer" / name, part, pool)
    index = {"metadata": {"total_size": size}, "weight_map": weight_map}
    (folder / "transformer/diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    return size


def write(path: Path, tensors: list[tuple[str, tuple[int, ...]]], pool: bytes) -> None:
    header, end = {}, 0
    for name, shape in tensors:
        size = 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        left = end
        while left:
            left -= file.write(pool[: min(left, len(pool))])


def timed(command: list[str], quiet: bool = True) -> tuple[float, float, int]:
    """Wall seconds, processor seconds and peak RSS.

    The peak is looked at from outside while the command runs: on Linux a child's ru_maxrss begins with its parent's.
    """
    before, started, peak = os.times(), time.perf_counter(), 0
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL if quiet else None) as child:
        while child.poll() is None:
            peak = max(peak, resident(child.pid))
            time.sleep(0.05)
    if child.returncode:
        raise SystemExit(f"{command} ended with {child.returncode}")
    wall, after = time.perf_counter() - started, os.times()
    return wall, after.children_user - before.children_user + after.children_system - before.children_system, peak


def resident(pid: int) -> int:
    """The highest RSS so far on Linux, the present one elsewhere; 0 when the process is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), 0)
    except OSError:
        listed = subprocess.run(
            ["ps", "-o", "rss=", "-p", str(pid)], capture_output=True, text=True, check=False
        ).stdout
        return int(listed or 0) * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--quant", nargs="+", default=["q6"], help="recipes: names or .toml files")
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--keep", action="store_true", help="leave the result (not the source) where it is")
    args = parser.parse_args()
    source = args.folder / "source"
    shutil.rmtree(source, ignore_errors=True)
    try:
        size = make(source, args.scale)
        files = [str(path) for path in sorted((source / "transformer").glob("*.safetensors"))]
        wall, cpu, _ = timed(["sh", "-c", 'cat "$@" > /dev/null', "cat", *files])
        print(
            f"{size / 1e9:.2f} GB of bf16; cat: {wall:.0f} s, {size / wall / 1e6:.0f} MB/s ({cpu:.0f} s of processor)"
        )
        for quant in args.quant:
            made = args.folder / Path(quant).stem
            shutil.rmtree(made, ignore_errors=True)
            command = [sys.executable, "-m", "mlx_imagegen.quantize", "--quiet", "--model", str(source)]
            wall, cpu, peak = timed([*command, "-o", str(made), "--quant", quant])
            pace = f"{wall:.0f} s, {size / wall / 1e6:.0f} MB/s; {cpu:.0f} s of processor, {size / cpu / 1e6:.0f} MB/s"
            print(
                f"{made.name}: {pace} a core; peak RSS {peak / 1e6:.0f} MB; load {os.getloadavg()[0]:.1f}", flush=True
            )
            if not args.keep:
                shutil.rmtree(made)
    finally:
        shutil.rmtree(source, ignore_errors=True)


if __name__ == "__main__":
    main()
