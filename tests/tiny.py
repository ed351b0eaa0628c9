"""A tiny FLUX.1 folder whose layers are wide enough to be packed; its numbers are random and heavy-tailed.

The stored draws under tests/data are narrower than the smallest group of a packed weight.
"""

import functools
import json
import shutil
from collections.abc import Iterable
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlx_imagegen.families.flux1.config import FluxConfig
from mlx_imagegen.families.flux1.keys import ORIGINAL, SWAPPED_HALVES
from mlx_imagegen.families.flux1.modulation import FluxModulators
from mlx_imagegen.families.flux1.transformer import FluxTransformer
from mlx_imagegen.loading.weights import join, layers, own_parameters
from tests.draw import drawn_data

STORED = drawn_data() / "flux" / "dev"
WIDTHS = {"attention_head_dim": 32, "num_attention_heads": 2, "num_layers": 2, "num_single_layers": 3}
WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"


def draw_flux(folder: Path, seed: int = 0, dtype: mx.Dtype = mx.bfloat16) -> Path:
    """The stored draw with another transformer: 64 wide, so that most layers have whole groups."""
    shutil.copytree(STORED, folder, dirs_exist_ok=True)
    path = folder / "transformer" / "config.json"
    data = json.loads(path.read_text()) | WIDTHS | {"axes_dims_rope": [4, 14, 14]}
    path.write_text(json.dumps(data))
    mx.save_safetensors(str(folder / WEIGHTS), _flux(json.dumps(data), seed, dtype))
    return folder


@functools.cache
def _flux(config: str, seed: int, dtype: mx.Dtype) -> dict[str, mx.array]:
    """Drawn once: many tests ask for the same."""
    return draw_transformer(FluxConfig.read(json.loads(config), "config.json"), seed, dtype)


def draw_transformer(config: FluxConfig, seed: int, dtype: mx.Dtype) -> dict[str, mx.array]:
    return draw_tensors((FluxTransformer(config), FluxModulators(config)), seed, dtype)


def draw_tensors(trees: Iterable[nn.Module], seed: int, dtype: mx.Dtype) -> dict[str, mx.array]:
    """Heavy-tailed numbers for every parameter, by its name in a checkpoint."""
    dice = np.random.default_rng(seed)
    tensors = {}
    for tree in trees:
        for path, layer in layers(tree):
            for name, value in own_parameters(layer).items():
                spread = 0.8 / np.sqrt(value.shape[-1]) if value.ndim > 1 else 0.1
                drawn = dice.standard_t(4, value.shape) * spread + (name == "weight" and value.ndim == 1)
                tensors[join(path, name)] = mx.array(drawn.astype(np.float32)).astype(dtype)
    return tensors


def to_original(folder: Path) -> None:
    """Rewrites the folder's transformer as FLUX.1's original single file, fused linears and all."""
    ours = mx.load(str(folder / WEIGHTS))
    tensors = {}
    for pattern, parts in ORIGINAL.items():
        for index in range(8) if "{i}" in pattern else (0,):
            names = [name.format(i=index) for name, _ in parts]
            for kind in ("weight", "bias"):
                values = [ours[f"{name}.{kind}"] for name in names if f"{name}.{kind}" in ours]
                if len(values) == len(names):
                    whole = mx.concatenate(values)
                    if pattern == SWAPPED_HALVES:
                        whole = mx.concatenate(mx.split(whole, 2)[::-1])
                    written = "scale" if "norm.query_norm" in pattern or "norm.key_norm" in pattern else kind
                    tensors[f"{pattern.format(i=index)}.{written}"] = whole
    shutil.rmtree(folder / "transformer")
    mx.save_safetensors(str(folder / "flux1-tiny.safetensors"), tensors)


def to_scaled_fp8(folder: Path, ending: str = "scale_weight", rows: bool = False) -> None:
    """Rewrites the folder's matrices as ComfyUI's fp8 files have them: numbers below 448 and a scale next to them."""
    tensors = dict(mx.load(str(folder / WEIGHTS)))
    for name, value in list(tensors.items()):
        if value.ndim == 2:
            top = mx.max(mx.abs(value.astype(mx.float32)), axis=1 if rows else None, keepdims=True)
            scale = top / 448
            tensors[name] = mx.to_fp8(value.astype(mx.float32) / scale)
            tensors[name.replace("weight", ending)] = scale.reshape(-1, 1) if rows else scale.reshape(1)
    tensors["scaled_fp8"] = mx.to_fp8(mx.zeros((2,)))
    save_fp8(folder / WEIGHTS, tensors)


def save_fp8(path: Path, tensors: dict[str, mx.array]) -> None:
    """MLX writes fp8 as U8; the header is changed to say what it is."""
    mx.save_safetensors(str(path), tensors)
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = raw[8 : 8 + length].replace(b'"U8"', b'"F8_E4M3"')
    path.write_bytes(len(header).to_bytes(8, "little") + header + raw[8 + length :])
