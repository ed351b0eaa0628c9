"""Memory of one step of a denoiser of the published size, packed, with random weights.

    python benchmarks/quant_resident.py FOLDER [--models flux:q4 hidream_o1:q6] [--size 256]

Others: flux2, qwen_image_21, z_image. The packed weights (at most 7 GB) are written to FOLDER and removed at the end.
Each model runs in its own process; its peak RSS is printed next to what plan.py computes from the headers.
"""

import mlx_imagegen  # noqa: F401  # isort: skip  # before mlx.core: it brings a fast BLAS in

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from quant_convert import CONFIG, ROOT

from mlx_imagegen.bfloat import to_bf16
from mlx_imagegen.families.flux1.config import FluxConfig
from mlx_imagegen.families.flux1.transformer import FluxTransformer, Modulation
from mlx_imagegen.families.flux2 import positions as flux2_positions
from mlx_imagegen.families.flux2.config import Flux2Config
from mlx_imagegen.families.flux2.transformer import Flux2Transformer
from mlx_imagegen.families.flux2.transformer import Modulation as Flux2Modulation
from mlx_imagegen.families.hidream_o1.transformer import HiDreamTransformer
from mlx_imagegen.families.qwen_image_21.config import QwenImage21Config
from mlx_imagegen.families.qwen_image_21.sequence import positions as qwen_image_21_positions
from mlx_imagegen.families.qwen_image_21.transformer import Modulation as QwenImage21Modulation
from mlx_imagegen.families.qwen_image_21.transformer import QwenImage21Transformer
from mlx_imagegen.families.z_image.config import ZImageConfig
from mlx_imagegen.families.z_image.positions import picture_positions, prompt_positions
from mlx_imagegen.families.z_image.transformer import Modulation as ZImageModulation
from mlx_imagegen.families.z_image.transformer import ZImageTransformer
from mlx_imagegen.footprint import process_peak_bytes
from mlx_imagegen.layers.linear import Linear
from mlx_imagegen.layers.rope import rope_table
from mlx_imagegen.limits import bound_cache
from mlx_imagegen.loading.checkpoint import open_checkpoint
from mlx_imagegen.loading.component import Component
from mlx_imagegen.loading.weights import join, layers, open_weights, own_parameters
from mlx_imagegen.packing.recipes import read_recipe
from mlx_imagegen.planning.plan import CPU_BASE_BYTES, block_bytes, held_bytes
from mlx_imagegen.precision import compute_dtype
from mlx_imagegen.text.qwen import QwenConfig, mrope

TEXT_TOKENS = 64
QWEN3 = QwenConfig(
    model_type="qwen3_vl_text", hidden_size=4096, intermediate_size=12288, num_attention_heads=32, num_hidden_layers=36,
    num_key_value_heads=8, rms_norm_eps=1e-6, rope_theta=5e6, mrope_section=(24, 20, 20), vocab_size=151936,
    head_dim=128,
)  # fmt: skip


Z_IMAGE = ZImageConfig(
    all_f_patch_size=(1,), all_patch_size=(2,), axes_dims=(32, 48, 48), cap_feat_dim=2560, dim=3840, in_channels=16,
    n_heads=30, n_kv_heads=30, n_layers=30, n_refiner_layers=2, norm_eps=1e-5, qk_norm=True, rope_theta=256.0,
    t_scale=1000.0,
)  # fmt: skip
KLEIN = Flux2Config(
    attention_head_dim=128, guidance_embeds=False, in_channels=128, joint_attention_dim=7680, num_attention_heads=24,
    num_layers=5, num_single_layers=20, axes_dims_rope=(32, 32, 32, 32), rope_theta=2000.0,
)  # fmt: skip
QWEN_IMAGE_21 = QwenImage21Config(
    attention_head_dim=128, context_in_dim=4096, in_channels=64, mlp_ratio=3, num_attention_heads=32, num_layers=32,
    out_channels=64,
)  # fmt: skip
FAMILIES = {"flux": "flux1"}  # where a model is called otherwise
HEADS = {"flux": 24, "flux2": 24, "hidream_o1": 32, "z_image": 30, "qwen_image_21": 32}
BLOCKS = {"flux": (19, 38), "flux2": (5, 20), "qwen_image_21": (32, 0)}  # double and single ones


class Patches:
    """The numbers of HiDream-O1's own block of config.json."""

    in_channels, patch_size, bottleneck_dim, timestep_freq_dim = 3, 32, 1024, 256


class HiDream:
    text, patch = QWEN3, Patches()


def build(name: str) -> nn.Module:
    if name == "flux":
        return FluxTransformer(FluxConfig.read(CONFIG, "benchmark"))
    if name == "z_image":
        return ZImageTransformer(Z_IMAGE)
    if name == "flux2":
        return Flux2Transformer(KLEIN)
    if name == "qwen_image_21":
        return QwenImage21Transformer(QWEN_IMAGE_21)
    return HiDreamTransformer(HiDream())  # type: ignore[arg-type]


def write(folder: Path, name: str, quant: str) -> None:
    """One file with random codes and scales of the recipe's packing, and its config.json."""
    tree, recipe = build(name), read_recipe(quant, FAMILIES.get(name, name))
    double, single = BLOCKS.get(name, (0, 0))
    depths = {"transformer_blocks": double, "single_transformer_blocks": single, "language_model": 36, "layers": 30}
    header: dict[str, Any] = {}
    packings, plan, end = {}, [], 0
    for path, layer in layers(tree):
        if isinstance(layer, Linear):
            requested_as = f"model.{path}" if name == "hidream_o1" else path  # as the checkpoint calls it
            packing = recipe.packing("transformer", requested_as, layer.weight.shape, depths.get(path.split(".")[0], 0))
            if packing:
                layer.pack(packing)
                packings[path] = {"bits": packing.bits, "group_size": packing.group_size, "mode": packing.mode}
        for part, value in own_parameters(layer).items():
            kind = "U32" if value.dtype == mx.uint32 else "BF16"
            size = value.size * (4 if kind == "U32" else 2)
            header[join(path, part)] = {"dtype": kind, "shape": value.shape, "data_offsets": [end, end + size]}
            plan.append((part, kind, value.size))
            end += size
    dice = np.random.default_rng(0)
    codes = dice.integers(0, 256, 2**26, np.uint8).tobytes()
    small = to_bf16(0.004 * (0.5 + dice.random(2**20, np.float32))).tobytes()
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for part, kind, count in plan:
            pool, left = (codes, count * 4) if kind == "U32" else (small, count * 2)
            if part == "biases":  # the middle of the codes on zero, more or less
                pool = to_bf16(np.full(2**20, -0.03, np.float32)).tobytes()
            while left:
                left -= file.write(pool[: min(left, len(pool))])
    (folder / "config.json").write_text(json.dumps({"quantization": packings}))


def step(folder: Path, name: str, size: int) -> None:
    """In a process of its own: loads, runs one step, prints."""
    bound_cache()
    config = json.loads((folder / "config.json").read_text())
    weights = open_weights("transformer", open_checkpoint(folder), [build(name)], config=config)
    component = Component(weights, lambda: build(name), compute_dtype(), heads=HEADS[name])
    tokens = (size // (32 if name == "hidream_o1" else 16)) ** 2
    planned = CPU_BASE_BYTES + held_bytes(component, gpu=False), block_bytes(component, tokens + TEXT_TOKENS, gpu=False)
    started = time.perf_counter()
    model = component.load()
    loaded, filled = process_peak_bytes(), time.perf_counter() - started
    started = time.perf_counter()
    steps = {
        "flux": flux_step, "flux2": flux2_step, "hidream_o1": hidream_step, "z_image": z_image_step,
        "qwen_image_21": qwen_image_21_step,
    }  # fmt: skip
    out = steps[name](model, tokens)
    mx.eval(out)
    seconds = time.perf_counter() - started
    assert bool(mx.isfinite(out).all()), "the step gave no numbers"
    peak = process_peak_bytes()
    print(
        f"{name}, {size}x{size}, {tokens} + {TEXT_TOKENS} tokens: resident planned {planned[0] / 1e9:.2f} GB, measured "
        f"{loaded / 1e9:.2f} GB ({loaded / planned[0] - 1:+.1%}); peak planned {sum(planned) / 1e9:.2f} GB, measured "
        f"{peak / 1e9:.2f} GB ({peak / sum(planned) - 1:+.1%}); loaded in {filled:.0f} s, step {seconds:.0f} s",
        flush=True,
    )


def flux_step(model: nn.Module, tokens: int) -> mx.array:
    side = round(tokens**0.5)
    rows, columns = np.mgrid[0:side, 0:side]
    image = np.stack([0 * rows, rows, columns], -1).reshape(-1, 3)
    rope = rope_table(np.concatenate([np.zeros((TEXT_TOKENS, 3)), image]), (16, 56, 56), 1e4)
    mod = Modulation(*(0.1 * mx.random.normal((*shape, 3072)) for shape in ((19, 6), (19, 6), (38, 3), (2,))))
    return model(mx.random.normal((1, tokens, 64)), mx.random.normal((1, TEXT_TOKENS, 4096)), rope, mod)


def flux2_step(model: nn.Module, tokens: int) -> mx.array:
    side = round(tokens**0.5)
    places = np.concatenate(
        [flux2_positions.text_positions(TEXT_TOKENS), flux2_positions.picture_positions((side, side))]
    )
    rope = rope_table(places, KLEIN.axes_dims_rope, KLEIN.rope_theta)
    mod = Flux2Modulation(*(0.1 * mx.random.normal((rows, KLEIN.inner_dim)) for rows in (6, 6, 3, 2)))
    return model(mx.random.normal((1, tokens, 128)), mx.random.normal((1, TEXT_TOKENS, 7680)), rope, mod)


def z_image_step(model: nn.Module, tokens: int) -> mx.array:
    side = round(tokens**0.5)
    positions = np.concatenate([picture_positions((side, side), TEXT_TOKENS + 1), prompt_positions(TEXT_TOKENS)])
    rope = rope_table(positions, Z_IMAGE.axes_dims, Z_IMAGE.rope_theta, np.float32)
    mod = ZImageModulation(*(0.1 * mx.random.normal((*shape, Z_IMAGE.dim)) for shape in ((2, 4), (30, 4), ())))
    return model(mx.random.normal((1, tokens, 64)), mx.random.normal((1, TEXT_TOKENS, Z_IMAGE.dim)), rope, mod)


def qwen_image_21_step(model: nn.Module, tokens: int) -> mx.array:
    side = round(tokens**0.5)
    places = qwen_image_21_positions((TEXT_TOKENS, (side, side)))
    rope = rope_table(places, QWEN_IMAGE_21.axes_dims_rope, 1e4)
    dims = QWEN_IMAGE_21.inner_dim
    mod = QwenImage21Modulation(0.1 * mx.random.normal((4, dims)), 0.1 * mx.random.normal((dims,)))
    prefix = model.prefix(mx.random.normal((1, TEXT_TOKENS, 4096)), None, (TEXT_TOKENS,), rope[:TEXT_TOKENS], mod)
    return model(mx.random.normal((1, tokens, 64)), rope[TEXT_TOKENS:], prefix, mod)


def hidream_step(model: nn.Module, tokens: int) -> mx.array:
    def rope(first: int, count: int) -> Any:
        return mrope(np.repeat(np.arange(first, first + count)[None], 3, axis=0), QWEN3)

    prefix = model.prefix(mx.random.normal((1, TEXT_TOKENS, 4096)), rope(0, TEXT_TOKENS))
    return model(mx.random.normal((1, tokens, 3072)), 500.0, rope(4096, tokens + 1), prefix)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--models", nargs="+", default=["flux:q4", "hidream_o1:q6"])
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    for model in args.models:
        name, quant = model.split(":")
        folder = args.folder / name
        if args.inside:
            step(folder, name, args.size)
            continue
        folder.mkdir(parents=True)
        try:
            write(folder, name, quant)
            print(f"{quant}: ", end="", flush=True)
            again = [sys.executable, str(ROOT / "benchmarks/run.py"), "quant_resident", str(args.folder), "--inside"]
            subprocess.run([*again, "--models", model, "--size", str(args.size)], check=True)
        finally:
            shutil.rmtree(folder)


if __name__ == "__main__":
    main()
