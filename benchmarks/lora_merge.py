"""The cost of merging a LoRA while a Qwen-Image transformer is loaded, and how much of it survives packing.

    python benchmarks/lora_merge.py [--blocks 3] [--rank 64] [--rounds 5] [--hollow]

A transformer of the real width (60 blocks are the published one) is written to a temporary folder in bfloat16, with a
LoRA in Lightning's format on 12 modules a block. Every weight is then read as in loading, alone and with the merge, in
turns; the files are removed at the end. --hollow: the weights are holes in the file, which take no disk space and are
read at memory speed, so the ratio is the worst case. On a busy machine compare CPU seconds, not wall-clock time;
OPENBLAS_NUM_THREADS=1 keeps waiting threads out of them. The second table adds a change of 1% to a weight before
packing and, for comparison, to its codes.
"""

# ruff: noqa: I001
import mlx_imagegen  # noqa: F401  (before mlx.core, so that MLX finds OpenBLAS)

import argparse
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import mlx.core as mx
import numpy as np
from quant_convert import shapes

from mlx_imagegen.loading.checkpoint import open_checkpoint
from mlx_imagegen.layers.linear import Packing, unpacked
from mlx_imagegen.loading.weights import Weights, open_weights
from mlx_imagegen.lora.merge import Merge, open_loras
from mlx_imagegen.lora.match import Match, ModuleNames, match_loras
from mlx_imagegen.hub.tensor_shapes import write_shape_only
from mlx_imagegen.packing.affine import pack
from mlx_imagegen.families.qwen_image.config import QwenImageConfig
from mlx_imagegen.families.qwen_image.modulation import QwenImageModulators
from mlx_imagegen.families.qwen_image.transformer import QwenImageTransformer

ALPHA = 8.0
SIZES = {
    "attention_head_dim": 128, "num_attention_heads": 24, "in_channels": 64, "out_channels": 16,
    "joint_attention_dim": 3584, "axes_dims_rope": [16, 56, 56], "guidance_embeds": False, "patch_size": 2,
}  # fmt: skip


def main(blocks: int, rank: int, rounds: int = 5, hollow: bool = False) -> float:
    config = QwenImageConfig.read(SIZES | {"num_layers": blocks}, "Qwen-Image")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (write_hollow_base if hollow else write_base)(folder, config)
        write_lora(folder / "lora.safetensors", blocks, rank)
        trees = [QwenImageTransformer(config), QwenImageModulators(config)]
        weights = open_weights("transformer", open_checkpoint(folder / "transformer"), trees)
        ratio = compare(weights, folder / "lora.safetensors", rounds)
    survival()
    return ratio


def compare(weights: Weights, path: Path, rounds: int) -> float:
    taken: dict[str, list[tuple[float, float]]] = {"read": [], "open": [], "merged": []}
    merge = Merge()

    def choose() -> None:
        matches = match(weights, path)
        assert len(matches[0].matched) == len(matches[0].changes)
        merge.select(matches)

    for turn in range(rounds + 1):
        merge.select([])
        if turn == 0:  # warms the files' cache
            stream(weights, merge)
            continue
        taken["read"].append(timed(lambda: stream(weights, merge)))
        taken["open"].append(timed(choose))
        taken["merged"].append(timed(lambda: stream(weights, merge)))
    size, modules = weights.checkpoint.nbytes / 1e9, len(merge.matches[0].matched)
    print(f"{size:.2f} GB of bfloat16 as float32, {modules} modules changed")
    ratios = {}
    for index, clock in enumerate(("clock", "CPU")):
        found = {name: [pair[index] for pair in pairs] for name, pairs in taken.items()}
        for name, values in found.items():
            print(f"  {clock:5s} {name:7s} median {statistics.median(values):7.2f} s   min {min(values):7.2f}")
        middle = {name: statistics.median(values) for name, values in found.items()}
        ratios[clock] = (middle["merged"] + middle["open"]) / middle["read"]
        print(f"  {clock:5s} (open + merged) / read = {ratios[clock]:.2f}")
    return ratios["CPU"]


def match(weights: Weights, path: Path) -> list[Match]:
    return match_loras(open_loras([path]), [ModuleNames.of(weights, lambda component, modules: {})], "Qwen-Image")


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """(seconds of the clock, of all threads on CPUs)"""
    clock, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - clock, time.process_time() - cpu


def stream(weights: Weights, merge: Merge) -> None:
    """Every tensor in float32, one at a time."""
    for name, part in weights.slices.items():
        path, _, parameter = name.rpartition(".")
        mx.eval(merge("transformer", path, parameter, part.read()).astype(mx.float32))


def all_shapes(config: QwenImageConfig) -> dict[str, tuple[int, ...]]:
    return shapes(QwenImageTransformer(config), QwenImageModulators(config))


def write_hollow_base(folder: Path, config: QwenImageConfig) -> None:
    tensors = {name: list(shape) for name, shape in all_shapes(config).items()}
    write_shape_only(folder, {"files": {}, "tensors": {"transformer": {"BF16": tensors}}})


def write_base(folder: Path, config: QwenImageConfig) -> None:
    noise = mx.random.normal((2**22,)).astype(mx.bfloat16) * 0.02
    tensors = {}
    for name, shape in all_shapes(config).items():
        size = math.prod(shape)
        tensors[name] = mx.tile(noise, -(-size // noise.size))[:size].reshape(shape)
    (folder / "transformer").mkdir()
    mx.save_safetensors(str(folder / "transformer" / "model.safetensors"), tensors)


def write_lora(path: Path, blocks: int, rank: int) -> None:
    tensors = {}
    for module, rows, columns in lightning_modules(blocks):
        tensors[f"{module}.lora_down.weight"] = (mx.random.normal((rank, columns)) * 0.02).astype(mx.bfloat16)
        tensors[f"{module}.lora_up.weight"] = (mx.random.normal((rows, rank)) * 0.02).astype(mx.bfloat16)
        tensors[f"{module}.alpha"] = mx.array(ALPHA, mx.bfloat16)
    mx.save_safetensors(str(path), tensors)


def lightning_modules(blocks: int) -> Iterator[tuple[str, int, int]]:
    square = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
    dims = SIZES["attention_head_dim"] * SIZES["num_attention_heads"]
    for block in range(blocks):
        yield from ((f"transformer_blocks.{block}.attn.{name}", dims, dims) for name in square)
        for stream in ("img_mlp", "txt_mlp"):
            yield f"transformer_blocks.{block}.{stream}.net.0.proj", 4 * dims, dims
            yield f"transformer_blocks.{block}.{stream}.net.2", dims, 4 * dims


def survival(share: float = 0.01) -> None:
    """The part of a low-rank change, `share` of the weight's size, that is found again after packing."""
    dice = np.random.default_rng(0)
    weight = mx.array(dice.normal(0, 0.02, (512, 3072)).astype(np.float32))
    change = mx.array((dice.normal(size=(512, 16)) @ dice.normal(size=(16, 3072))).astype(np.float32))
    change = change * (share * mx.linalg.norm(weight) / mx.linalg.norm(change))
    print(f"a change of {share:.0%}: the part that is left when it is merged")
    for bits in (4, 6, 8):
        packing = Packing(bits, 64)

        def through(weight: mx.array, packing: Packing = packing) -> mx.array:
            return unpacked(pack(weight, packing), packing)

        plain = through(weight)
        before, into = through(weight + change) - plain, through(plain + change) - plain
        found = [float(np.array(mx.sum(each * change) / mx.sum(change * change))) for each in (before, into)]
        print(f"  {bits} bits: before packing {found[0]:6.1%}   into the codes {found[1]:6.1%}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--blocks", type=int, default=3)
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--hollow", action="store_true", help="weights that take no room on the disk")
    arguments = parser.parse_args()
    main(arguments.blocks, arguments.rank, arguments.rounds, arguments.hollow)
