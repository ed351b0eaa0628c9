"""What a LoRA costs while a Qwen-Image transformer streams in, and what packing leaves of it.

    python benchmarks/lora_merge.py [--blocks 3] [--rank 64]

A transformer of the real width with a few blocks (the cost is the same for each) is written to a temporary folder in
bfloat16, with a LoRA in Lightning's format on 12 modules a block. Every weight is then read as loading does, alone and
with the merge, in turns; the files are removed at the end. The second table adds a change of 1% to a weight before
packing and, as a warning, to its codes.
"""

# ruff: noqa: I001
import mlx_imagegen  # noqa: F401  (before mlx.core, so that MLX finds OpenBLAS)

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import mlx.core as mx
import numpy as np

from mlx_imagegen.checkpoint import open_checkpoint
from mlx_imagegen.layers.linear import Packing, unpacked
from mlx_imagegen.loading import Weights, layers, own_parameters
from mlx_imagegen.lora.merge import Merge, open_loras
from mlx_imagegen.lora.match import Vocabulary, match_loras
from mlx_imagegen.quantization.packing import pack
from mlx_imagegen.qwen_image.config import QwenImageConfig
from mlx_imagegen.qwen_image.modulation import QwenImageModulators
from mlx_imagegen.qwen_image.transformer import QwenImageTransformer

ALPHA = 8.0
SIZES = {
    "attention_head_dim": 128, "num_attention_heads": 24, "in_channels": 64, "out_channels": 16,
    "joint_attention_dim": 3584, "axes_dims_rope": [16, 56, 56], "guidance_embeds": False, "patch_size": 2,
}  # fmt: skip


def main(blocks: int, rank: int, rounds: int = 5) -> float:
    config = QwenImageConfig.read(SIZES | {"num_layers": blocks}, "Qwen-Image")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_base(folder / "base.safetensors", config)
        write_lora(folder / "lora.safetensors", blocks, rank)
        weights = Weights.open("transformer", open_checkpoint(folder / "base.safetensors"))
        ratio = compare(weights, folder / "lora.safetensors", rounds)
    survival()
    return ratio


def compare(weights: Weights, path: Path, rounds: int) -> float:
    seconds: dict[str, list[float]] = {"open": [], "read": [], "merged": []}
    merge = Merge()
    for turn in range(rounds + 1):
        started = time.perf_counter()
        merge.choose([])
        read = stream(weights, merge)
        opened = time.perf_counter()
        vocabulary = Vocabulary.of(weights, lambda component, modules: {})
        matches = match_loras(open_loras([path]), [vocabulary], "Qwen-Image")
        merge.choose(matches)
        seconds_to_open = time.perf_counter() - opened
        merged = stream(weights, merge)
        if turn:  # the first turn warms the files' cache
            seconds["open"].append(seconds_to_open)
            seconds["read"].append(opened - started)
            seconds["merged"].append(merged)
        assert read and len(matches[0].matched) == sum(len(c) for c in matches[0].changes.values())
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    size = weights.checkpoint.nbytes / 1e9
    print(f"{size:.2f} GB of bfloat16 as float32, {len(merge.matches[0].matched)} modules changed")
    for name, values in seconds.items():
        print(f"  {name:7s} median {medians[name]:6.2f} s   min {min(values):6.2f}   max {max(values):6.2f}")
    ratio = (medians["merged"] + medians["open"]) / medians["read"]
    print(f"  (open + merged) / read = {ratio:.2f}")
    return ratio


def stream(weights: Weights, merge: Merge) -> float:
    """Seconds to have every tensor in float32, one at a time."""
    started = time.perf_counter()
    for name, part in weights.slices.items():
        path, _, parameter = name.rpartition(".")
        mx.eval(merge("transformer", path, parameter, part.read()).astype(mx.float32))
    return time.perf_counter() - started


def write_base(path: Path, config: QwenImageConfig) -> None:
    tensors = {}
    noise = mx.random.normal((2**22,)).astype(mx.bfloat16) * 0.02
    for tree in (QwenImageTransformer(config), QwenImageModulators(config)):
        for inner, layer in layers(tree):
            for name, value in own_parameters(layer).items():
                repeats = -(-value.size // noise.size)
                tensors[f"{inner}.{name}"] = mx.tile(noise, repeats)[: value.size].reshape(value.shape)
    mx.save_safetensors(str(path), tensors)


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
    arguments = parser.parse_args()
    main(arguments.blocks, arguments.rank)
